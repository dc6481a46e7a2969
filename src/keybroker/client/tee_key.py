"""The key pair that lives in the TEE: its public half is attested, its private half opens secrets.

A broker encrypts each secret to the public key as a JWE in flattened JSON serialisation. Every
header parameter is taken from ``protected`` alone, which the content encryption authenticates.
"""

import base64
import binascii
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from keybroker.client.errors import ProtocolError, SealedSecretError, TeeKeyError
from keybroker.model.errors import MalformedError
from keybroker.model.rcar import Response
from keybroker.model.strict_json import parse_json, parse_struct

#: NIST SP 800-131A rev. 2: RSA below this is disallowed for key transport.
MIN_RSA_BITS = 2048

ECDH_ES_A256KW = "ECDH-ES+A256KW"
RSA_OAEP_256 = "RSA-OAEP-256"
RSA1_5 = "RSA1_5"

_CEK_BYTES = 32
_IV_BYTES = 12
_TAG_BYTES = 16


class KeyKind(StrEnum):
    """A kind of TEE key that can be generated."""

    P256 = "P-256"
    P384 = "P-384"
    P521 = "P-521"
    RSA2048 = "RSA-2048"
    RSA3072 = "RSA-3072"
    RSA4096 = "RSA-4096"


_CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_CURVE_NAMES = {curve.name: name for name, curve in _CURVES.items()}

_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class TeeKeyPair:
    """A key pair of a TEE.

    Attributes:
        allow_rsa1_5: offer and accept ``RSA1_5`` (RFC 7518 section 4.2) with an RSA key. Only
            brokers that know nothing newer need it: it is open to padding oracles.
    """

    _key: _PrivateKey = field(repr=False)
    allow_rsa1_5: bool = False

    @classmethod
    def generate(cls, kind: KeyKind = KeyKind.P256) -> "TeeKeyPair":
        """Make a new key pair."""
        if kind.startswith("RSA-"):
            size = int(kind.removeprefix("RSA-"))
            return cls(rsa.generate_private_key(public_exponent=65537, key_size=size))
        return cls(ec.generate_private_key(_CURVES[kind]))

    @classmethod
    def from_pem(cls, pem: bytes | str, *, allow_rsa1_5: bool = False) -> "TeeKeyPair":
        """Read an unencrypted private key: PKCS #8, PKCS #1 (RSA) or SEC 1 (EC).

        Raises:
            TeeKeyError: not such a key, or of a kind or size that is not taken.
        """
        raw = pem.encode() if isinstance(pem, str) else pem
        try:
            key = load_pem_private_key(raw, password=None)
        except (ValueError, TypeError, UnicodeError) as error:
            raise TeeKeyError(f"the TEE key is not a PEM private key: {error}") from None
        except Exception as error:  # UnsupportedAlgorithm and OpenSSL's own
            raise TeeKeyError("the TEE key is of a kind that cannot be read") from error
        if isinstance(key, rsa.RSAPrivateKey):
            if key.key_size < MIN_RSA_BITS:
                raise TeeKeyError(f"the RSA key has {key.key_size} bits, fewer than {MIN_RSA_BITS}")
        elif not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.curve.name not in _CURVE_NAMES
        ):
            raise TeeKeyError("the TEE key must be EC on P-256, P-384 or P-521, or RSA")
        return cls(key, allow_rsa1_5)

    def to_pem(self) -> bytes:
        """Write the private key as unencrypted PKCS #8 PEM; the caller guards it."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def public_jwk(self) -> dict[str, str]:
        """Return the public key as ``tee-pubkey``: the members of kbs-types ``TeePubKey``."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            numbers = self._key.public_key().public_numbers()
            return {
                "kty": "RSA",
                "alg": RSA1_5 if self.allow_rsa1_5 else RSA_OAEP_256,
                "n": _encode(_unsigned(numbers.n)),
                "e": _encode(_unsigned(numbers.e)),
            }
        point = self._key.public_key().public_numbers()
        width = (self._key.curve.key_size + 7) // 8
        return {
            "kty": "EC",
            "crv": _CURVE_NAMES[self._key.curve.name],
            "alg": ECDH_ES_A256KW,
            "x": _encode(point.x.to_bytes(width, "big")),
            "y": _encode(point.y.to_bytes(width, "big")),
        }

    def open_response(self, raw: bytes) -> bytes:
        """Open the answer to a request for a secret.

        Args:
            raw: the body: a JWE in flattened JSON serialisation, UTF-8.

        Raises:
            ProtocolError: not such a JWE.
            SealedSecretError: a JWE that this key does not open.

        Specification: RFC 7516 section 5.2.
        """
        try:
            response = parse_struct(raw, Response)
        except MalformedError as error:
            raise ProtocolError(f"the answer is not an encrypted secret: {error.detail}") from None
        return self.open(response)

    def open(self, response: Response) -> bytes:
        """Open a parsed answer; raises as :meth:`open_response`."""
        header = _parse_header(response.protected)
        if header.get("enc") != "A256GCM":
            raise SealedSecretError("the secret is not encrypted with A256GCM")
        encrypted_key = _decode(response.encrypted_key, "encrypted_key")
        iv = _decode(response.iv, "iv")
        ciphertext = _decode(response.ciphertext, "ciphertext")
        tag = _decode(response.tag, "tag")
        # cryptography would take any length; a short tag is a weaker tag.
        if len(iv) != _IV_BYTES or len(tag) != _TAG_BYTES:
            raise ProtocolError("iv or tag of the encrypted secret has the wrong length")
        content_key = self._unwrap(header, encrypted_key)
        if len(content_key) != _CEK_BYTES:
            raise SealedSecretError("the secret cannot be opened with this TEE key")
        authenticated = response.protected
        if response.aad is not None:
            authenticated += "." + response.aad
        try:
            return AESGCM(content_key).decrypt(iv, ciphertext + tag, authenticated.encode())
        except (InvalidTag, UnicodeEncodeError):
            raise SealedSecretError("the secret cannot be opened with this TEE key") from None

    def _unwrap(self, header: dict[str, Any], encrypted_key: bytes) -> bytes:
        algorithm = header.get("alg")
        if isinstance(self._key, ec.EllipticCurvePrivateKey) and algorithm == ECDH_ES_A256KW:
            return _unwrap_ecdh(self._key, header, encrypted_key)
        if isinstance(self._key, rsa.RSAPrivateKey):
            if algorithm == RSA_OAEP_256:
                oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
                return _unwrap_rsa(self._key, encrypted_key, oaep)
            if algorithm == RSA1_5 and self.allow_rsa1_5:
                return _unwrap_rsa(self._key, encrypted_key, padding.PKCS1v15())
        raise SealedSecretError("the secret is encrypted with an algorithm not of this TEE key")


def _unwrap_rsa(
    key: rsa.RSAPrivateKey, encrypted_key: bytes, scheme: padding.AsymmetricPadding
) -> bytes:
    try:
        return key.decrypt(encrypted_key, scheme)
    except ValueError:
        raise SealedSecretError("the secret cannot be opened with this TEE key") from None


def _unwrap_ecdh(
    key: ec.EllipticCurvePrivateKey, header: dict[str, Any], encrypted_key: bytes
) -> bytes:
    """ECDH-ES with A256KW, RFC 7518 section 4.6."""
    shared = key.exchange(ec.ECDH(), _parse_ephemeral(header.get("epk"), key.curve))
    other_info = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (
            ECDH_ES_A256KW.encode(),
            _party_info(header, "apu"),
            _party_info(header, "apv"),
        )
    ) + (8 * _CEK_BYTES).to_bytes(4, "big")
    wrapping_key = ConcatKDFHash(hashes.SHA256(), _CEK_BYTES, other_info).derive(shared)
    try:
        return aes_key_unwrap(wrapping_key, encrypted_key)
    except (InvalidUnwrap, ValueError):
        raise SealedSecretError("the secret cannot be opened with this TEE key") from None


def _parse_ephemeral(epk: Any, curve: ec.EllipticCurve) -> ec.EllipticCurvePublicKey:
    if not isinstance(epk, dict) or epk.get("kty") != "EC":
        raise ProtocolError("the encrypted secret has no EC key epk in its protected header")
    if epk.get("crv") != _CURVE_NAMES[curve.name]:
        raise SealedSecretError("the secret is encrypted on another curve than this TEE key's")
    width = (curve.key_size + 7) // 8
    x, y = _decode(epk.get("x"), "epk.x"), _decode(epk.get("y"), "epk.y")
    if len(x) != width or len(y) != width:
        raise ProtocolError("a coordinate of epk has the wrong length")
    try:
        # Refuses points that are not on the curve, which would leak bits of the private key.
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + x + y)
    except ValueError:
        raise ProtocolError("epk is not a point of its curve") from None


def _party_info(header: dict[str, Any], name: str) -> bytes:
    return _decode(header[name], name) if name in header else b""


def _parse_header(protected: str) -> dict[str, Any]:
    try:
        header = parse_json(_decode(protected, "protected"))
    except MalformedError as error:
        raise ProtocolError(f"the protected header is malformed: {error.detail}") from None
    if not isinstance(header, dict):
        raise ProtocolError("the protected header is not a JSON object")
    if "crit" in header or "zip" in header:
        raise ProtocolError("the encrypted secret uses a JWE extension that is not supported")
    return header


def _unsigned(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: Any, name: str) -> bytes:
    """Decode base64url without padding, RFC 7515 section 2; nothing but the alphabet is taken."""
    if not isinstance(text, str):
        raise ProtocolError(f"the encrypted secret has no string {name}")
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        if b"+" in padded or b"/" in padded:
            raise ValueError
        return base64.b64decode(padded.replace(b"-", b"+").replace(b"_", b"/"), validate=True)
    except (ValueError, binascii.Error):
        raise ProtocolError(f"{name} of the encrypted secret is not base64url") from None
