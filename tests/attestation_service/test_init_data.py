import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.attestation_service.init_data import MAX_INIT_DATA_BYTES, parse_init_data
from keybroker.model.errors import MalformedError, TooLargeError
from keybroker.model.rcar import InitData

TOML = '''version = "0.1.0"
algorithm = "{algorithm}"

[data]
"aa.toml" = """
[token_configs.kbs]
url = "http://127.0.0.1:8080"
"""
"cdh.toml" = """
socket = 'unix:///run/cdh.sock'
retries = 3
ratio = inf
when = 2026-01-02T03:04:05Z
"""
"note" = "plain"
'''


def parse(body: str, format_: str = "toml") -> tuple[Any, Any]:
    bound = parse_init_data(InitData(format_, body))
    return bound.digest, bound.claims


@pytest.mark.parametrize(
    ("spelling", "digest"),
    [
        ("sha256", hashlib.sha256),
        ("sha-256", hashlib.sha256),
        ("SHA-384", hashlib.sha384),
        ("sha384", hashlib.sha384),
        ("sha-512", hashlib.sha512),
    ],
)
def test_the_digest_is_that_of_the_exact_bytes(spelling: str, digest: Any) -> None:
    body = TOML.format(algorithm=spelling) + "# é\r\n"
    assert parse(body)[0] == digest(body.encode()).digest()


def test_inner_toml_becomes_json() -> None:
    claims = parse(TOML.format(algorithm="sha256"))[1]
    assert claims == {
        "aa.toml": {"token_configs": {"kbs": {"url": "http://127.0.0.1:8080"}}},
        "cdh.toml": {
            "socket": "unix:///run/cdh.sock",
            "retries": 3,
            "ratio": None,
            "when": "2026-01-02T03:04:05+00:00",
        },
        "note": "plain",
    }


def test_toml_and_json_of_one_content_give_the_same_claims() -> None:
    document = {"version": "0.1.0", "algorithm": "sha384", "data": {"aa.toml": "a = [1]"}}
    body = json.dumps(document)
    assert parse(body, "json") == (hashlib.sha384(body.encode()).digest(), {"aa.toml": {"a": [1]}})


def test_inner_toml_that_is_not_one_stays_text() -> None:
    deep = "a = " + "[" * 100 + "]" * 100
    for text in ("not = = toml", deep, "a = 1\na = 2"):
        document = {"version": "0.1.0", "algorithm": "sha256", "data": {"cdh.toml": text}}
        assert parse(json.dumps(document), "json")[1] == {"cdh.toml": text}


def document_of(policy: str) -> str:
    return json.dumps({"version": "0", "algorithm": "sha256", "data": {"policy.rego": policy}})


def test_the_data_of_an_agent_policy_replaces_the_policy() -> None:
    policy = (
        'package agent_policy\ndefault X := false\npolicy_data := {"containers": [{"OCI": {}}]}\n'
    )
    assert parse(document_of(policy), "json")[1] == {
        "agent_policy_claims": {"containers": [{"OCI": {}}]}
    }


@pytest.mark.parametrize(
    "policy",
    [
        "package agent_policy\ndefault X := false\n",
        'policy_data := {"a": 1}\nmore := true',
        "policy_data := {",
        'policy_data := {"a": 1, "a": 2}',
        "policy_data := {" + '"a": {' * 40 + "}" * 41,
    ],
)
def test_an_agent_policy_without_readable_data_stays_text(policy: str) -> None:
    assert parse(document_of(policy), "json")[1] == {"policy.rego": policy}


@pytest.mark.parametrize(
    ("format_", "body"),
    [
        ("yaml", "version: 0.1.0"),
        ("toml", "version = "),
        ("toml", 'version = "0.1.0"\nalgorithm = "sha256"\n'),
        ("toml", 'version = "0.1.0"\nalgorithm = "md5"\n[data]\n'),
        ("toml", 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\na = 1\n'),
        ("toml", 'version = 1\nalgorithm = "sha256"\n[data]\n'),
        ("toml", "a = " + "[" * 3000 + "]" * 3000),
        ("json", '{"version": "0.1.0", "algorithm": "sha256", "data": {}, "data": {}}'),
        ("json", "[]"),
        ("json", "\ud800"),
    ],
)
def test_what_is_no_init_data_is_refused(format_: str, body: str) -> None:
    with pytest.raises(MalformedError) as refused:
        parse(body, format_)
    assert refused.value.detail


def test_an_init_data_too_long_is_refused() -> None:
    with pytest.raises(TooLargeError):
        parse(" " * (MAX_INIT_DATA_BYTES + 1), "json")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["toml", "json", ""]),
    st.text(max_size=80)
    | st.text(alphabet="[]{}=\"\n'.,:#data version algorithm sha256 0é\\u", max_size=120)
    | st.binary(max_size=60).map(lambda raw: base64.b64encode(raw).decode()),
)
def test_any_text_is_init_data_or_malformed(format_: str, body: str) -> None:
    try:
        digest, claims = parse(body, format_)
        assert digest
        assert isinstance(claims, dict)
    except MalformedError as error:
        assert error.detail
