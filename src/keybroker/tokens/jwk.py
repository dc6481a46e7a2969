"""Public keys as JSON Web Keys: read, written, and named by their thumbprint."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keybroker.model.errors import MalformedError
from keybroker.tokens import base64url

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

#: Below this a modulus can be factored with means that an attacker may have (NIST SP 800-57).
MIN_RSA_BITS = 2048

#: Above this one operation costs so much that a stranger's key could keep a core busy.
MAX_RSA_BITS = 8192

#: No use of RSA needs a larger exponent; the cost of an operation grows with its length.
MAX_RSA_EXPONENT = 2**32 - 1

#: Curve by JWK name (RFC 7518, section 6.2.1.1), with the octets of a coordinate.
CURVES: Mapping[str, tuple[ec.EllipticCurve, int]] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-384": (ec.SECP384R1(), 48),
    "P-521": (ec.SECP521R1(), 66),
}

_CURVE_NAMES = {curve.name: (name, size) for name, (curve, size) in CURVES.items()}

#: Members that only a private or symmetric key has (RFC 7518, section 6).
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def parse_public_jwk(jwk: Mapping[str, Any]) -> PublicKey:
    """Read a public key.

    Args:
        jwk: ``kty`` EC (P-256, P-384, P-521), RSA, or OKP (Ed25519). Members that say what the
            key is for (``alg``, ``use``, ``kid``) are the caller's to judge.

    Raises:
        MalformedError: another kind of key, a private key, a coordinate of the wrong length, a
            point that is not on its curve, or an RSA key outside the limits of this module.

    Specification: RFC 7518, section 6; RFC 8037, section 2.
    """
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise MalformedError("a JWK holds private members where a public key belongs")
    kty = jwk.get("kty")
    if kty == "EC":
        return _parse_ec(jwk)
    if kty == "RSA":
        return _parse_rsa(jwk)
    if kty == "OKP":
        return _parse_okp(jwk)
    raise MalformedError("a JWK has a kty other than EC, RSA and OKP")


def check_public_key(key: object) -> PublicKey:
    """Return a key that came from elsewhere (PEM, certificate) if its kind and size are accepted.

    Raises:
        MalformedError: another kind of key, or an RSA key outside the limits of this module.
    """
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        _check_rsa(numbers.n, numbers.e)
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVE_NAMES:
            raise MalformedError("an EC key is on a curve other than P-256, P-384 and P-521")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise MalformedError("a key is of a kind other than RSA, EC and Ed25519")


def public_jwk(key: PublicKey) -> dict[str, str]:
    """Write a public key with the members its kind requires and no others."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "n": _encode_integer(numbers.n), "e": _encode_integer(numbers.e)}
    if isinstance(key, ec.EllipticCurvePublicKey):
        crv, size = _CURVE_NAMES[key.curve.name]
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return {
            "kty": "EC",
            "crv": crv,
            "x": base64url.encode_text(point[1 : 1 + size]),
            "y": base64url.encode_text(point[1 + size :]),
        }
    return {"kty": "OKP", "crv": "Ed25519", "x": base64url.encode_text(key.public_bytes_raw())}


def thumbprint(key: PublicKey) -> str:
    """Return the SHA-256 thumbprint, base64url: the ``kid`` of keys that have no other.

    Specification: RFC 7638, section 3.
    """
    required = msgspec.json.encode(public_jwk(key), order="sorted")
    return base64url.encode_text(hashlib.sha256(required).digest())


def _member(jwk: Mapping[str, Any], name: str) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str):
        raise MalformedError(f"a JWK lacks the member {name!r}")
    return base64url.decode(value)


def _parse_ec(jwk: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
    crv = jwk.get("crv")
    curve, size = CURVES.get(crv, (None, 0)) if isinstance(crv, str) else (None, 0)
    if curve is None:
        raise MalformedError("a JWK has a curve other than P-256, P-384 and P-521")
    x, y = _member(jwk, "x"), _member(jwk, "y")
    if len(x) != size or len(y) != size:
        raise MalformedError(f"a coordinate of {crv} must be {size} octets")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + x + y)
    except ValueError:
        raise MalformedError("the point of a JWK is not on its curve") from None


def _parse_rsa(jwk: Mapping[str, Any]) -> rsa.RSAPublicKey:
    modulus, exponent = _member(jwk, "n"), _member(jwk, "e")
    # One octet more: some implementations write the sign octet of their big integers, against
    # RFC 7518, section 6.3.1.1; the number is the same.
    if len(modulus) > MAX_RSA_BITS // 8 + 1 or len(exponent) > 8:
        raise MalformedError("an RSA key is too large")
    n, e = int.from_bytes(modulus), int.from_bytes(exponent)
    _check_rsa(n, e)
    try:
        return rsa.RSAPublicNumbers(e, n).public_key()
    except ValueError:
        raise MalformedError("a JWK is not an RSA public key") from None


def _check_rsa(n: int, e: int) -> None:
    if not MIN_RSA_BITS <= n.bit_length() <= MAX_RSA_BITS:
        raise MalformedError(f"an RSA modulus must have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    if n % 2 == 0 or e % 2 == 0 or not 3 <= e <= MAX_RSA_EXPONENT:
        raise MalformedError("an RSA modulus or exponent is out of range")


def _parse_okp(jwk: Mapping[str, Any]) -> ed25519.Ed25519PublicKey:
    if jwk.get("crv") != "Ed25519":
        raise MalformedError("a JWK has a curve other than Ed25519")
    try:
        return ed25519.Ed25519PublicKey.from_public_bytes(_member(jwk, "x"))
    except ValueError:
        raise MalformedError("an Ed25519 key must be 32 octets") from None


def _encode_integer(value: int) -> str:
    return base64url.encode_text(value.to_bytes((value.bit_length() + 7) // 8))
