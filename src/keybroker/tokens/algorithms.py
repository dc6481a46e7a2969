"""The signature algorithms a token may have. No ``none`` and no HMAC: there is no way to ask.

A verifier that takes HMAC beside signatures can be given a public key as the secret; one that
takes ``none`` takes anything. Neither is implemented, so neither can be switched on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from keybroker.model.errors import MalformedError
from keybroker.tokens.jwk import PublicKey, check_public_key

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class SignatureAlgorithm(Protocol):
    """One ``alg`` of RFC 7518, section 3.1, or RFC 8037."""

    @property
    def name(self) -> str:
        """The ``alg`` value."""
        ...

    @property
    def heavy(self) -> bool:
        """Whether verifying costs more CPU than the event loop should be kept from (100 µs)."""
        ...

    def fits(self, key: PublicKey) -> bool:
        """Return whether keys of this kind may be used with the algorithm."""
        ...

    def verify(self, key: PublicKey, signature: bytes, message: bytes) -> bool:
        """Return whether the signature is the key's; False where the key does not fit."""
        ...

    def sign(self, key: PrivateKey, message: bytes) -> bytes:
        """Sign.

        Raises:
            TypeError: the key does not fit.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Ecdsa:
    """ECDSA; the signature is R and S, each as long as a coordinate (RFC 7518, section 3.4)."""

    name: str
    curve: str
    size: int
    scheme: ec.ECDSA
    heavy: bool = True

    def fits(self, key: PublicKey) -> bool:
        return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == self.curve

    def verify(self, key: PublicKey, signature: bytes, message: bytes) -> bool:
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != self.curve:
            return False
        if len(signature) != 2 * self.size:
            return False
        r, s = int.from_bytes(signature[: self.size]), int.from_bytes(signature[self.size :])
        try:
            key.verify(encode_dss_signature(r, s), message, self.scheme)
        except InvalidSignature:
            return False
        return True

    def sign(self, key: PrivateKey, message: bytes) -> bytes:
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != self.curve:
            raise TypeError(f"{self.name} needs another key")
        r, s = decode_dss_signature(key.sign(message, self.scheme))
        return r.to_bytes(self.size) + s.to_bytes(self.size)


@dataclass(frozen=True, slots=True)
class _Rsa:
    """RSA with PKCS #1 v1.5 or PSS padding (RFC 7518, sections 3.3 and 3.5)."""

    name: str
    digest: hashes.HashAlgorithm
    padding: padding.PKCS1v15 | padding.PSS
    heavy: bool = False

    def fits(self, key: PublicKey) -> bool:
        return isinstance(key, rsa.RSAPublicKey)

    def verify(self, key: PublicKey, signature: bytes, message: bytes) -> bool:
        if not isinstance(key, rsa.RSAPublicKey):
            return False
        try:
            key.verify(signature, message, self.padding, self.digest)
        except InvalidSignature:
            return False
        return True

    def sign(self, key: PrivateKey, message: bytes) -> bytes:
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError(f"{self.name} needs another key")
        return key.sign(message, self.padding, self.digest)


@dataclass(frozen=True, slots=True)
class _EdDsa:
    """Ed25519 (RFC 8037, section 3.1)."""

    name: str = "EdDSA"
    heavy: bool = False

    def fits(self, key: PublicKey) -> bool:
        return isinstance(key, ed25519.Ed25519PublicKey)

    def verify(self, key: PublicKey, signature: bytes, message: bytes) -> bool:
        if not isinstance(key, ed25519.Ed25519PublicKey):
            return False
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def sign(self, key: PrivateKey, message: bytes) -> bytes:
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise TypeError(f"{self.name} needs another key")
        return key.sign(message)


def _pss(digest: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(padding.MGF1(digest), digest.digest_size)


#: Every algorithm that is accepted, by its ``alg``.
ALGORITHMS: Mapping[str, SignatureAlgorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        _Ecdsa("ES256", "secp256r1", 32, ec.ECDSA(hashes.SHA256()), heavy=False),
        _Ecdsa("ES384", "secp384r1", 48, ec.ECDSA(hashes.SHA384())),
        _Ecdsa("ES512", "secp521r1", 66, ec.ECDSA(hashes.SHA512())),
        _Rsa("RS256", hashes.SHA256(), padding.PKCS1v15()),
        _Rsa("RS384", hashes.SHA384(), padding.PKCS1v15()),
        _Rsa("RS512", hashes.SHA512(), padding.PKCS1v15()),
        _Rsa("PS256", hashes.SHA256(), _pss(hashes.SHA256())),
        _Rsa("PS384", hashes.SHA384(), _pss(hashes.SHA384())),
        _Rsa("PS512", hashes.SHA512(), _pss(hashes.SHA512())),
        _EdDsa(),
    )
}


def default_algorithm(key: PublicKey) -> SignatureAlgorithm:
    """Return the algorithm that a key of this kind signs with unless told otherwise."""
    return next(algorithm for algorithm in ALGORITHMS.values() if algorithm.fits(key))


def load_private_key(pem: bytes) -> PrivateKey:
    """Read a private key that can sign tokens.

    Args:
        pem: PKCS #8, or the older forms of EC and RSA keys; not encrypted.

    Raises:
        MalformedError: something else, or a key of a kind or size that is not accepted.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # No "from": the parser's message could quote the key.
        raise MalformedError("not an unencrypted private key in PEM") from None
    if not isinstance(key, PrivateKey):
        raise MalformedError("a private key is neither EC nor RSA nor Ed25519")
    check_public_key(key.public_key())
    return key
