"""``keybroker check-config``: words for people, JSON for scripts, an exit code for both."""

import json
from pathlib import Path

import pytest

from keybroker.api.certificates import self_signed
from keybroker.cli.main import main
from keybroker.storage.encryption import make_key_file

_GOOD = """
[http_server]
private_key = "{directory}/https.key"
certificate = "{directory}/https.crt"
[admin]
authorization_mode = "DenyAll"
[storage_backend]
storage_type = "Sqlite"
backends.sqlite.path = "{directory}/storage/keybroker.db"
[encryption]
path = "{directory}/master.key"
[[plugins]]
name = "resource"
"""

_CARELESS = """
session_storage_type = "Memory"
[http_server]
insecure_http = true
[admin]
authorization_mode = "InsecureAllowAll"
[attestation_token]
insecure_header_jwk = true
[release]
allow_rsa1_5 = true
[attestation_service]
type = "coco_as_builtin"
[attestation_service.verifier_config.snp_verifier]
extra_trusted_roots = ["/no/such/root.pem"]
"""


def _checked(
    directory: Path, text: str, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str]:
    path = directory / "kbs.toml"
    path.write_text(text)
    code = main(["check-config", str(path), *options])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_a_good_file_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    self_signed(tmp_path, ["localhost"])
    make_key_file(tmp_path / "master.key")
    code, said = _checked(tmp_path, _GOOD.format(directory=tmp_path), capsys)
    assert code == 0, said
    for sentence in (
        "https://127.0.0.1:8080",
        "TLS profile intermediate: TLS 1.2 and 1.3",
        "nobody administrates the broker",
        f"Sqlite at {tmp_path}/storage/keybroker.db, encrypted",
        "by the built-in service, as no other is configured",
        "SEV-SNP: AMD's roots, certificates from https://kdsintf.amd.com",
        "resource: secrets in the broker's storage",
        "the file is valid",
    ):
        assert sentence in said
    assert "warning" not in said
    assert not (tmp_path / "storage").exists(), "nothing is started"


def test_what_is_careless_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _checked(tmp_path, _CARELESS, capsys, "--json")
    document = json.loads(said)
    assert code == 0
    assert document["valid"] is True
    warnings = "\n".join(document["warnings"])
    for word in (
        "http_server.insecure_http",
        "InsecureAllowAll",
        "insecure_header_jwk",
        "Memory loses",
        "RSA1_5",
        "/no/such/root.pem is trusted",
        "/no/such/root.pem cannot be read here",
        "serves no secret",
    ):
        assert word in warnings


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[http_server]\n", "admin: is missing"),
        ('[admin]\nauthorization_mode = "DenyAll"\n', "HTTPS needs private_key and certificate"),
        (
            '[admin]\nauthorization_mode = "AuthenticatedAuthorization"\n'
            "[admin.authentication.bearer_jwt]\n[admin.authorization.regex_acl]\n",
            "is empty, so nobody can authenticate",
        ),
        (
            '[admin]\nauthorization_mode = "AuthenticatedAuthorization"\n'
            '[admin.authentication.bearer_jwt]\nidentity_providers = [{issuer = "me"}]\n'
            '[admin.authorization.regex_acl]\nacls = [{role = "a", allowed_endpoints = "/kbs"}]\n',
            "must begin with",
        ),
        (
            '[admin]\nauthorization_mode = "DenyAll"\n[storage_backend]\nstorage_type = "Sqlite"\n',
            "needs the table storage_backend.backends.sqlite",
        ),
        (
            '[admin]\nauthorization_mode = "DenyAll"\n[storage_backend]\nstorage_type = "Redis"\n',
            "'Redis' is not in this build",
        ),
        (
            '[admin]\nauthorization_mode = "DenyAll"\n[encryption]\npath = "/no/such/key"\n',
            "/no/such/key cannot be read",
        ),
        (
            '[admin]\nauthorization_mode = "DenyAll"\n[http_server]\ntls_groups = "X25518"\n',
            "did you mean 'x25519'",
        ),
        (
            '[admin]\nauthorization_mode = "DenyAll"\n[http_server]\ntls_profile = "modern"\n'
            'tls_max_version = "1.2"\n',
            "starts at TLS 1.3",
        ),
        (
            '[admin]\nauthorization_mode = "DenyAll"\n[[plugins]]\nname = "nebula-ca"\n',
            "NebulaCa",
        ),
    ],
)
def test_what_would_keep_a_broker_from_starting_is_a_problem(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = _checked(tmp_path, text, capsys)
    assert code == 1
    assert problem in said
    code, said = _checked(tmp_path, text, capsys, "--json")
    assert code == 1
    document = json.loads(said)
    assert document["valid"] is False
    assert any(problem in line for line in document["problems"])


def test_the_environment_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KBS_CONFIG_FILE", raising=False)
    assert main(["check-config"]) == 1
    assert "KBS_CONFIG_FILE" in capsys.readouterr().err
    path = tmp_path / "kbs.toml"
    path.write_text(_CARELESS)
    monkeypatch.setenv("KBS_CONFIG_FILE", str(path))
    assert main(["check-config"]) == 0


_FURTHER_FACES = """
[key_transfer]
admin_username = "keeper"
admin_password = "a long password"
key_manager = { type = "vault", url = "https://vault:8200", token = "vault's token" }
[key_transfer.trust_authority]
api_key = "c2VjcmV0"
[workloads]
open_registration = true
allow_debug = true
socket = "127.0.0.1:8090"
"""


def test_further_faces_are_told_too_but_none_of_their_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    self_signed(tmp_path, ["localhost"])
    make_key_file(tmp_path / "master.key")
    text = _GOOD.format(directory=tmp_path) + _FURTHER_FACES
    code, said = _checked(tmp_path, text, capsys)
    assert code == 0, said
    for sentence in (
        "keys are kept by vault",
        "of Trust Authority at https://portal",
        "evidence of SGX and TDX is sent to https://api",
        "below /workload, and on 127.0.0.1:8090",
        "registered by everybody",
        "workloads.open_registration",
        "workloads.allow_debug",
    ):
        assert sentence in said
    for secret in ("a long password", "vault's token", "c2VjcmV0"):
        assert secret not in said
