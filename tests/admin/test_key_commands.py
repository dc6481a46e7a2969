"""``keybroker keygen`` and ``keybroker admin-token``, up to a broker that takes what they make."""

import argparse
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from keybroker.cli.admin_token import issue_admin_token, parse_duration
from keybroker.cli.keygen import KEY_TYPES, write_admin_key_pair
from keybroker.cli.main import main
from keybroker.config.admin import AdminConfig
from keybroker.config.attestation import AttestationTokenConfig, SignerConfig
from keybroker.kbs.admin import AdminAccess
from keybroker.model.errors import AdminAuthError, ConfigError
from keybroker.tokens.signer import TokenSigner
from keybroker.tokens.verifier import TokenVerifier

TOKEN_FILES = ("ca.key", "ca-cert.pem", "token.key", "token-cert.pem", "token-cert-chain.pem")


def access(public_key: Path) -> AdminAccess:
    provider = {"issuer": "ops", "audience": "kbs", "public_key_uri": str(public_key)}
    rules = [{"role": "admin", "allowed_endpoints": "^/kbs/.+$"}]
    config = {
        "authorization_mode": "AuthenticatedAuthorization",
        "authentication": {"bearer_jwt": {"identity_providers": [provider]}},
        "authorization": {"regex_acl": {"acls": rules}},
    }
    return AdminAccess(msgspec.convert(config, AdminConfig))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kind", KEY_TYPES)
async def test_a_token_made_with_a_made_key_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    assert main(["keygen", "admin", "--type", kind, "--out", str(tmp_path / "new")]) == 0
    key = tmp_path / "new" / "admin.key"
    assert capsys.readouterr().out.split() == [str(key), str(key.with_suffix(".pub"))]
    assert (mode(key), mode(key.parent)) == (0o600, 0o700)
    identity = ["--issuer", "ops", "--audience", "kbs", "--subject", "ada"]
    assert main(["admin-token", "--key", str(key), *identity, "--ttl", "5m"]) == 0
    token = capsys.readouterr().out.strip()
    administrator = await access(key.with_suffix(".pub")).authorize(
        f"Bearer {token}", "POST", "/kbs/v0/resource-policy"
    )
    assert (administrator.subject, administrator.role) == ("ada", "admin")
    assert main(["admin-token", "--key", str(key), "--issuer", "ops"]) == 0
    with pytest.raises(AdminAuthError):
        await access(key.with_suffix(".pub")).authorize(
            f"Bearer {capsys.readouterr().out.strip()}", "POST", "/kbs/v0/resource-policy"
        )


@pytest.mark.parametrize("kind", [None, "ec-p384", "ec-p521", "rsa"])
async def test_a_token_signer_of_made_keys_is_trusted_by_its_authority(
    tmp_path: Path, kind: str | None
):
    arguments = ["keygen", "token", "--out", str(tmp_path), *(["--type", kind] if kind else [])]
    assert main(arguments) == 0
    assert {name: mode(tmp_path / name) for name in TOKEN_FILES} == {
        name: 0o600 if name.endswith(".key") else 0o644 for name in TOKEN_FILES
    }
    signer = await TokenSigner.create(
        SignerConfig(
            key_path=str(tmp_path / "token.key"),
            cert_path=str(tmp_path / "token-cert-chain.pem"),
        ),
        None,
    )
    verifier = TokenVerifier(
        AttestationTokenConfig(trusted_certs_paths=(str(tmp_path / "ca-cert.pem"),))
    )
    await verifier.verify(signer.sign({"exp": 4102444800}))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees_with_the_chain(tmp_path: Path):
    assert main(["keygen", "token", "--out", str(tmp_path), "--days", "7"]) == 0
    subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", "ca-cert.pem", "token-cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_a_tls_certificate_is_made_for_the_names(tmp_path: Path):
    names = ["--name", "broker.example", "--name", "10.0.0.1"]
    assert main(["keygen", "tls", "--out", str(tmp_path), *names]) == 0
    certificate = x509.load_pem_x509_certificate((tmp_path / "https.crt").read_bytes())
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert mode(tmp_path / "https.key") == 0o600


@pytest.mark.parametrize("purpose", ["admin", "token", "tls"])
def test_keys_that_exist_are_kept_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], purpose: str
):
    arguments = ["keygen", purpose, "--out", str(tmp_path)]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main([*arguments, "--force"]) == 0
    after = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[path] != before[path] for path in before)


def test_one_existing_file_keeps_all_others_from_being_made(tmp_path: Path):
    (tmp_path / "token-cert.pem").write_text("mine")
    assert main(["keygen", "token", "--out", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["token-cert.pem"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["keygen", "token", "--type", "ed25519"],
        ["keygen", "token", "--days", "0"],
        ["keygen", "--out", "/proc/none"],
        ["admin-token", "--key", "/absent"],
        ["admin-token", "--key", __file__],
        ["admin-token", "--key", __file__, "--role", ""],
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("keybroker ")
    assert "Traceback" not in error


def test_a_key_pair_is_completed_when_a_start_broke_off(tmp_path: Path):
    private, public = tmp_path / "admin.key", tmp_path / "admin.pub"
    write_admin_key_pair(private, public)
    kept, halved = private.read_bytes(), public.read_bytes()
    public.unlink()
    write_admin_key_pair(private, public)
    assert (private.read_bytes(), public.read_bytes()) == (kept, halved)
    private.write_text("damaged")
    with pytest.raises(ConfigError):
        write_admin_key_pair(private, public)
    assert private.read_text() == "damaged"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604800)]
)
def test_durations_are_read(text: str, seconds: int):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1w", "1h30m", "367d", "h", "9" * 20, "1.5h"])
def test_other_durations_are_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_duration(text)


@pytest.mark.parametrize("seconds", [0, -5, 367 * 86400])
def test_a_token_has_an_end(tmp_path: Path, seconds: int):
    write_admin_key_pair(tmp_path / "key", tmp_path / "pub")
    with pytest.raises(ConfigError):
        issue_admin_token((tmp_path / "key").read_bytes(), role="admin", seconds=seconds)
