"""The RSA key pair that an attester holds, to which keys are wrapped by key transfer.

Its public half is bound by the evidence: the exponent (4 bytes, little-endian), then the modulus,
little-endian for SGX and big-endian for other TEEs. A wrapped key is opened with the private half::

    wrapped_swk   RSA-OAEP (SHA-256) of the secret wrapping key, 32 bytes
    wrapped_key   IV length 4 | tag length 4 | ciphertext length 4 | IV | ciphertext with tag
"""

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from keybroker.client.errors import ProtocolError, SealedSecretError, TeeKeyError

#: Brokers refuse 2048 bits and fewer.
DEFAULT_BITS = 3072
MORE_THAN_BITS = 2048

_HEADER = struct.Struct("<III")
_IV_BYTES = 12
_TAG_BYTES = 16
_SWK_BYTES = 32


@dataclass(frozen=True)
class HeldKeyPair:
    """A key pair."""

    _key: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def generate(cls, bits: int = DEFAULT_BITS) -> "HeldKeyPair":
        """Make a key pair; takes up to some seconds."""
        return cls(rsa.generate_private_key(65537, bits))

    @classmethod
    def from_pem(cls, pem: bytes) -> "HeldKeyPair":
        """Read an unencrypted RSA private key.

        Raises:
            TeeKeyError: not that.
        """
        try:
            key = load_pem_private_key(pem, password=None)
        except Exception:
            raise TeeKeyError("the held key is not an unencrypted private key in PEM") from None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TeeKeyError("the held key must be RSA")
        return cls(key)

    def to_pem(self) -> bytes:
        """Write the private key as unencrypted PKCS #8 PEM; the caller guards it."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def public_pem(self) -> bytes:
        """Write the public key (SubjectPublicKeyInfo)."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def user_data(self, attestation_type: str) -> bytes:
        """Write the public key as evidence binds it.

        Args:
            attestation_type: ``SGX``, ``TDX`` or another kind of TEE.

        Raises:
            TeeKeyError: the key has 2048 bits or fewer.
        """
        if self._key.key_size <= MORE_THAN_BITS:
            raise TeeKeyError(f"the held key must have more than {MORE_THAN_BITS} bits")
        numbers = self._key.public_key().public_numbers()
        modulus = numbers.n.to_bytes(
            (self._key.key_size + 7) // 8, "little" if attestation_type == "SGX" else "big"
        )
        return numbers.e.to_bytes(4, "little") + modulus

    def unwrap(self, answer: Mapping[str, Any]) -> bytes:
        """Open the answer to a transfer.

        Raises:
            ProtocolError: it is not one.
            SealedSecretError: it was wrapped to another key, or changed on the way.
        """
        return self._open(answer, hashes.SHA256())

    def unwrap_for_administrator(self, answer: Mapping[str, Any]) -> bytes:
        """Open the answer to ``POST /keys/{id}``; raises as :meth:`unwrap`."""
        return self._open(answer, hashes.SHA384())

    def _open(self, answer: Mapping[str, Any], digest: hashes.SHA256 | hashes.SHA384) -> bytes:
        wrapped_key = _octets(answer.get("wrapped_key"))
        if answer.get("wrapped_swk") is None:
            return self._decrypt(wrapped_key, digest)
        swk = self._decrypt(_octets(answer["wrapped_swk"]), digest)
        if len(wrapped_key) < _HEADER.size + _IV_BYTES + _TAG_BYTES or len(swk) != _SWK_BYTES:
            raise ProtocolError("the wrapped key is too short")
        iv_bytes, tag_bytes, length = _HEADER.unpack_from(wrapped_key)
        start = _HEADER.size + _IV_BYTES
        if (iv_bytes, tag_bytes) != (_IV_BYTES, _TAG_BYTES) or len(wrapped_key) != start + length:
            raise ProtocolError("the lengths of the wrapped key do not fit")
        try:
            return AESGCM(swk).decrypt(wrapped_key[_HEADER.size : start], wrapped_key[start:], None)
        except InvalidTag:
            raise SealedSecretError("the wrapped key cannot be opened") from None

    def _decrypt(self, wrapped: bytes, digest: hashes.SHA256 | hashes.SHA384) -> bytes:
        try:
            return self._key.decrypt(wrapped, padding.OAEP(padding.MGF1(digest), digest, None))
        except ValueError:
            raise SealedSecretError("the key was wrapped to another public key") from None


def _octets(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ProtocolError("the wrapped key is not base64") from None
