"""A small certificate authority and token maker for the token tests."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from keybroker.tokens import base64url
from keybroker.tokens.algorithms import ALGORITHMS, PrivateKey
from keybroker.tokens.jwk import public_jwk


@dataclass(frozen=True)
class Trust:
    """An ``attestation_token`` table."""

    trusted_jwk_sets: Sequence[str] = ()
    trusted_certs_paths: Sequence[str] = ()
    extra_teekey_paths: Sequence[str] = ()
    insecure_header_jwk: bool = False


@dataclass(frozen=True)
class Signer:
    """A ``signer`` table."""

    key_path: str
    cert_path: str | None = None
    cert_url: str | None = None


@dataclass(frozen=True)
class Authority:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Any


def key_for(alg: str) -> PrivateKey:
    """Make a key that fits an algorithm."""
    if alg == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if alg[0] in "RP":
        return rsa.generate_private_key(65537, 2048)
    curve = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}[alg]
    return ec.generate_private_key(curve)


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certify(
    subject: str,
    issuer: Authority | None = None,
    *,
    key: Any = None,
    ca: bool = True,
    path_length: int | None = None,
    days: tuple[int, int] = (-1, 30),
    cert_sign: bool = True,
    digital_signature: bool = True,
    critical_unknown: bool = False,
    constraints: bool = True,
    hash_: hashes.HashAlgorithm | None = None,
    san: Sequence[x509.GeneralName] = (),
) -> Authority:
    """Make a certificate; with no issuer it is self-signed."""
    key = key if key is not None else ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(issuer.certificate.subject if issuer else name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
    if constraints:
        builder = builder.add_extension(
            x509.BasicConstraints(ca, path_length if ca else None), critical=True
        ).add_extension(
            x509.KeyUsage(
                digital_signature=digital_signature,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=True,
                key_cert_sign=ca and cert_sign,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    if critical_unknown:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"),
            critical=True,
        )
    signing_key = issuer.key if issuer else key
    algorithm = None
    if not isinstance(signing_key, ed25519.Ed25519PrivateKey):
        algorithm = hash_ or hashes.SHA256()
    return Authority(builder.sign(signing_key, algorithm), key)


def pem(*authorities: Authority) -> bytes:
    return b"".join(a.certificate.public_bytes(Encoding.PEM) for a in authorities)


def private_pem(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def x5c(*authorities: Authority) -> list[str]:
    return [
        base64.b64encode(a.certificate.public_bytes(Encoding.DER)).decode() for a in authorities
    ]


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a token that is in time; a change to None leaves a claim out."""
    now = int(time.time())
    made = {"iat": now, "exp": now + 300, "tee-pubkey": {"kty": "EC"}, **changes}
    return {key: value for key, value in made.items() if value is not None}


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64url.encode_text(raw)


def token(
    key: PrivateKey,
    header: Mapping[str, Any] | bytes,
    payload: Mapping[str, Any] | bytes | None = None,
    *,
    alg: str = "ES256",
) -> str:
    """Sign anything with anything."""
    signing_input = f"{segment(header)}.{segment(claims() if payload is None else payload)}"
    signature = ALGORITHMS[alg].sign(key, signing_input.encode())
    return f"{signing_input}.{base64url.encode_text(signature)}"


def header_with_jwk(key: PrivateKey, alg: str = "ES256", **members: Any) -> dict[str, Any]:
    return {
        "typ": "JWT",
        "alg": alg,
        "jwk": {**public_jwk(key.public_key()), "alg": alg, **members},
    }


def write(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    return str(path)
