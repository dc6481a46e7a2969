"""Messages of the handshake, and whatever a lying broker may answer to them."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybroker.cli.client_output import explanation_lines
from keybroker.client.errors import ClientError, InputError, ProtocolError
from keybroker.client.exchange import Answer, refuse
from keybroker.client.explanation import read_explanation
from keybroker.client.handshake import (
    device_report_data,
    encode_request,
    init_data_digest,
    make_init_data,
    parse_challenge,
    parse_token_answer,
    primary_report_data,
)
from keybroker.client.resource_uri import parse_resource_uri
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.rcar import RuntimeData
from keybroker.model.tee import Tee

JWK = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def test_the_request_is_what_guests_send() -> None:
    assert json.loads(encode_request(Tee.AZ_SNP_VTPM)) == {
        "version": "0.4.0",
        "tee": "az-snp-vtpm",
        "extra-params": {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]},
    }


def test_report_data_is_the_digest_of_canonical_json() -> None:
    runtime_data = RuntimeData(nonce="bm9uY2U=", tee_pubkey={**JWK, "kid": "not hashed"})
    key = '{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}'
    device = f'{{"nonce":"bm9uY2U=","tee-pubkey":{key}}}'
    primary = f'{{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{key}}}'
    assert (
        device_report_data(runtime_data, HashAlgorithm.SHA512)
        == hashlib.sha512(device.encode()).digest()
    )
    assert (
        primary_report_data(runtime_data, "", HashAlgorithm.SHA384)
        == hashlib.sha384(primary.encode()).digest()
    )


@pytest.mark.parametrize("name", ["sha256", "SHA-256", "Sha256"])
def test_a_selected_hash_is_read_in_any_spelling(name: str) -> None:
    raw = json.dumps({"nonce": "n", "extra-params": {"selected-hash-algorithm": name}})
    assert parse_challenge(raw.encode()).hash_algorithm is HashAlgorithm.SHA256


@pytest.mark.parametrize("extra", ["", None, {}, [], "sha512"])
def test_without_a_selection_it_is_sha384(extra: Any) -> None:
    raw = json.dumps({"nonce": "n", "extra-params": extra})
    assert parse_challenge(raw.encode()).hash_algorithm is HashAlgorithm.SHA384


@pytest.mark.parametrize("selected", ["md5", 1, ["sha256"], ""])
def test_an_unknown_hash_is_refused(selected: Any) -> None:
    raw = json.dumps({"nonce": "n", "extra-params": {"selected-hash-algorithm": selected}})
    with pytest.raises(ProtocolError):
        parse_challenge(raw.encode())


def test_a_nonce_without_utf8_form_is_a_protocol_error() -> None:
    terms = parse_challenge(b'{"nonce": "\\ud800", "extra-params": ""}')
    runtime_data = RuntimeData(nonce=terms.nonce, tee_pubkey=JWK)
    with pytest.raises(ProtocolError):
        primary_report_data(runtime_data, "", terms.hash_algorithm)


@given(
    st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["nonce", "extra-params", "token", "type", "detail"]), json_values
    ).map(lambda members: json.dumps(members).encode())
)
def test_no_answer_raises_anything_but_a_client_error(raw: bytes) -> None:
    for parse in (parse_challenge, parse_token_answer, lambda raw: refuse(Answer(400, raw))):
        try:
            parse(raw)
        except ClientError:
            pass


@given(st.dictionaries(st.sampled_from(["allowed", "appraisal", "rules"]), json_values))
def test_an_explanation_of_any_shape_is_read(document: dict[str, Any]) -> None:
    explanation = read_explanation(document)
    assert explanation.allowed is (document.get("allowed") is True)


@given(json_values)
def test_a_rule_of_any_shape_is_read(rule: Any) -> None:
    rules = [rule, {"rule": rule, "line": rule, "expression": rule, "reference": rule}]
    explanation = read_explanation({"rules": rules, "appraisal": {"cpu0": {"rules": rules}}})
    assert all(isinstance(line, str) for line in explanation_lines(explanation))


@given(st.text(max_size=30) | st.text(max_size=30).map(lambda text: "kbs://" + text))
def test_no_path_raises_anything_but_an_input_error(path: str) -> None:
    try:
        uri = parse_resource_uri(path)
    except InputError:
        return
    assert all(segment not in ("", ".", "..") for segment in uri.path.split("/"))


def test_a_plugin_is_named_by_the_scheme() -> None:
    uri = parse_resource_uri("kbs+nebula-ca:///credential?name=pod&ip=10.0.0.1%2F8")
    assert uri.path == "nebula-ca/credential"
    assert uri.query == (("name", "pod"), ("ip", "10.0.0.1/8"))


def test_init_data_is_digested_by_the_hash_it_names() -> None:
    toml = 'version = "0.1.0"\nalgorithm = "sha256"\n'
    assert init_data_digest(make_init_data(toml)) == hashlib.sha256(toml.encode()).digest()
    text = '{"version": "0.1.0", "algorithm": "sha-512"}'
    assert init_data_digest(make_init_data(text)) == hashlib.sha512(text.encode()).digest()


@given(st.text(max_size=40), st.sampled_from(["toml", "json"]))
def test_no_init_data_raises_anything_but_an_input_error(body: str, format_: str) -> None:
    try:
        init_data_digest(make_init_data(body, format_))
    except InputError:
        pass


def test_init_data_of_another_format_is_refused() -> None:
    with pytest.raises(InputError):
        make_init_data("a: 1", "yaml")
