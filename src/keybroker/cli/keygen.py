"""``keybroker keygen``: keys for administrators, for attestation tokens, and for TLS."""

import argparse
import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from keybroker.api.certificates import self_signed
from keybroker.model.errors import ConfigError, MalformedError
from keybroker.tokens.algorithms import PrivateKey, load_private_key

KEY_TYPES = ("ed25519", "ec-p256", "ec-p384", "ec-p521", "rsa")

#: 128 bits of security (NIST SP 800-57, part 1, table 2).
RSA_BITS = 3072

#: Validity of the certificates of a token signing key. Who trusts them names them one by one, and
#: takes them away again; a short life would only stop brokers at a bad moment.
TOKEN_CERTIFICATE_DAYS = 3650

#: Clocks of relying parties may be behind by this much.
_BACKDATED = timedelta(hours=1)

_SECRET, _PUBLIC = 0o600, 0o644


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "keygen", help="make keys for administrators, tokens and TLS; keys that exist are kept"
    )
    parser.add_argument(
        "purpose",
        nargs="?",
        choices=("admin", "token", "tls"),
        default="admin",
        help="admin: admin.key and admin.pub (default); token: token.key with its certificate,"
        " its chain, and the authority above it; tls: https.key with a self-signed https.crt",
    )
    parser.add_argument(
        "--type",
        choices=KEY_TYPES,
        help="kind of key (default: ed25519 for administrators, ec-p256 for tokens)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where to (default: here)"
    )
    parser.add_argument(
        "--days",
        type=int,
        default=TOKEN_CERTIFICATE_DAYS,
        help="token: validity of the certificates (default: %(default)s)",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="tls: name or address that clients use; may be repeated (default: localhost)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite keys that exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the keys and say where they are."""
    if options.purpose == "tls":
        made = _make_tls(options.out, options.name or ["localhost"], overwrite=options.force)
    else:
        if options.purpose == "admin":
            contents = _admin_files(make_key(options.type or "ed25519"))
        else:
            contents = _token_files(options.type or "ec-p256", options.days)
        made = [options.out / name for name in contents]
        _refuse_existing(made, overwrite=options.force)
        try:
            options.out.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, (content, mode) in contents.items():
                _write(options.out / name, content, mode, overwrite=options.force)
        except OSError as error:
            raise ConfigError(f"{options.out}: {error.strerror}") from None
    for path in made:
        print(path)
    return 0


def make_key(kind: str) -> PrivateKey:
    """Make a private key of one of :data:`KEY_TYPES`."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "rsa":
        return rsa.generate_private_key(65537, RSA_BITS)
    curves = {"ec-p256": ec.SECP256R1(), "ec-p384": ec.SECP384R1(), "ec-p521": ec.SECP521R1()}
    return ec.generate_private_key(curves[kind])


def write_admin_key_pair(private_key: Path, public_key: Path, kind: str = "ed25519") -> None:
    """Make an administrator's key pair, PEM; the private key with mode 0600.

    A private key that exists is kept, and its public half written again: a start that broke off
    can be repeated.

    Raises:
        ConfigError: the files cannot be written, or what exists is not a private key.
    """
    try:
        with contextlib.suppress(FileExistsError):
            _write(private_key, private_pem(make_key(kind)), _SECRET, overwrite=False)
        key = load_private_key(private_key.read_bytes())
        _write(public_key, public_pem(key), _PUBLIC, overwrite=True)
    except OSError as error:
        raise ConfigError(f"{private_key}: {error.strerror}") from None
    except MalformedError as error:
        raise ConfigError(f"{private_key}: {error.diagnostics()}") from None


def private_pem(key: PrivateKey) -> bytes:
    """Write a private key as PKCS #8 in PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: PrivateKey) -> bytes:
    """Write the public half of a key as SubjectPublicKeyInfo in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _admin_files(key: PrivateKey) -> Mapping[str, tuple[bytes, int]]:
    return {"admin.key": (private_pem(key), _SECRET), "admin.pub": (public_pem(key), _PUBLIC)}


def _token_files(kind: str, days: int) -> Mapping[str, tuple[bytes, int]]:
    """Make a signing key, its certificate, and the authority that relying parties trust.

    The names are those of Trustee's deployments.
    """
    if kind == "ed25519":
        raise ConfigError(
            "attestation tokens are signed with EC or RSA keys: choose another --type"
        )
    if not 0 < days <= 36500:
        raise ConfigError("--days must be from 1 to 36500")
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), make_key(kind)
    authority = _certificate("keybroker token authority", authority_key, days)
    leaf = _certificate("keybroker token signer", key, days, authority, authority_key)
    authority_pem, leaf_pem = (made.public_bytes(Encoding.PEM) for made in (authority, leaf))
    return {
        "ca.key": (private_pem(authority_key), _SECRET),
        "ca-cert.pem": (authority_pem, _PUBLIC),
        "token.key": (private_pem(key), _SECRET),
        "token-cert.pem": (leaf_pem, _PUBLIC),
        "token-cert-chain.pem": (leaf_pem + authority_pem, _PUBLIC),
    }


def _certificate(
    common_name: str,
    key: PrivateKey,
    days: int,
    issuer: x509.Certificate | None = None,
    issuer_key: ec.EllipticCurvePrivateKey | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    now, ca = datetime.now(UTC), issuer is None
    signing_key = key if issuer_key is None else issuer_key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, 0 if ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
            critical=False,
        )
    )
    return builder.sign(signing_key, hashes.SHA256())


def _make_tls(directory: Path, names: Sequence[str], *, overwrite: bool) -> Sequence[Path]:
    paths = directory / "https.key", directory / "https.crt"
    _refuse_existing(paths, overwrite=overwrite)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from None
    return self_signed(directory, names)


def _refuse_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{', '.join(there)} exists; --force overwrites")


def _write(path: Path, content: bytes, mode: int, *, overwrite: bool) -> None:
    """Write a file whole or not at all, never readable to others for a moment.

    Raises:
        FileExistsError: it exists and is not to be overwritten.
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            partial.replace(path)
        else:
            path.hardlink_to(partial)
    finally:
        partial.unlink(missing_ok=True)
