"""Wrapping a key for a TEE under a fresh secret wrapping key (SWK), itself wrapped with RSA.

The form is that of the Trust Authority key broker::

    wrapped_key   IV length 4 | tag length 4 | ciphertext length 4 | IV 12 | ciphertext with tag
    wrapped_swk   RSA-OAEP (SHA-256, MGF1 with SHA-256, no label) of the SWK

Lengths are little-endian; the ciphertext's counts the tag. The SWK has 32 bytes and is used for
this one key with AES-256-GCM, without additional data.
"""

import os
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from keybroker.model.errors import JweError

#: The key that a TEE holds must have more bits than this. The original says "greater than 2048"
#: and means it: it refuses a modulus of 2048 bits, so the smallest key in use has 3072.
RSA_MORE_THAN_BITS = 2048

#: What an administrator may have a key wrapped to; the original's instructions name 2048 bits.
MIN_RECIPIENT_BITS = 2048

#: Above this one operation costs so much that a stranger's key could keep a core busy.
MAX_RSA_BITS = 8192

_EXPONENT_BYTES = 4
_SWK_BYTES = 32
_IV_BYTES = 12
_TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A key as it leaves the broker.

    Attributes:
        wrapped_key: the key under the SWK; or, where there is no SWK, under RSA itself.
        wrapped_swk: the SWK under RSA, or None.
    """

    wrapped_key: bytes = field(repr=False)
    wrapped_swk: bytes | None = field(repr=False, default=None)


def parse_held_key(held: bytes, *, little_endian_modulus: bool) -> rsa.RSAPublicKey:
    """Read the public key that an attester holds, as its evidence binds it.

    Args:
        held: the exponent (4 bytes, little-endian), then the modulus.
        little_endian_modulus: byte order of the modulus: true for SGX, whose enclaves hand it out
            as the hardware's library keeps it.

    Raises:
        JweError: too short, or not an RSA key of more than 2048 and at most 8192 bits.
    """
    exponent = int.from_bytes(held[:_EXPONENT_BYTES], "little")
    modulus_bytes = held[_EXPONENT_BYTES:]
    if len(modulus_bytes) > MAX_RSA_BITS // 8 + 1:
        raise JweError("the held RSA key is too large")
    modulus = int.from_bytes(modulus_bytes, "little" if little_endian_modulus else "big")
    if modulus.bit_length() <= RSA_MORE_THAN_BITS or not modulus % 2 or not exponent % 2:
        raise JweError("the held data is not an RSA key of more than 2048 bits")
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise JweError("the held data is not an RSA public key") from None
    return check_swk_recipient(key)


def check_swk_recipient(key: rsa.RSAPublicKey) -> rsa.RSAPublicKey:
    """Return the key if an SWK may be wrapped to it.

    Raises:
        JweError: it has 2048 bits or fewer, or more than 8192.
    """
    if not RSA_MORE_THAN_BITS < key.key_size <= MAX_RSA_BITS:
        raise JweError("the held RSA key must have more than 2048 and at most 8192 bits")
    return key


def parse_recipient_pem(pem: bytes) -> rsa.RSAPublicKey:
    """Read the public key that an administrator wants a key wrapped to.

    Args:
        pem: ``PUBLIC KEY`` (SubjectPublicKeyInfo), RSA of 2048 to 8192 bits.

    Raises:
        JweError: not that.
    """
    if b"-----BEGIN PUBLIC KEY-----" not in pem:
        raise JweError("the body must be an RSA public key in PEM (PUBLIC KEY)")
    try:
        key = load_pem_public_key(pem)
    except Exception:
        # Foreign bytes make OpenSSL raise more than one kind; none of them says anything useful.
        raise JweError("the public key cannot be read") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise JweError("the public key is not RSA")
    if not MIN_RECIPIENT_BITS <= key.key_size <= MAX_RSA_BITS:
        raise JweError("the RSA public key must have 2048 to 8192 bits")
    return key


def seal_to_held_key(recipient: rsa.RSAPublicKey, secret: bytes) -> WrappedKey:
    """Wrap a secret for a TEE: AES-256-GCM under a fresh SWK, which goes under RSA-OAEP SHA-256."""
    return _seal(recipient, secret, hashes.SHA256())


def seal_to_recipient(recipient: rsa.RSAPublicKey, secret: bytes) -> WrappedKey:
    """Wrap a secret to a public key with RSA-OAEP SHA-384.

    What is too long for one RSA operation, such as an RSA private key, goes under a fresh SWK, as
    for a TEE but with SHA-384.
    """
    room = recipient.key_size // 8 - 2 * hashes.SHA384.digest_size - 2
    if len(secret) > room:
        return _seal(recipient, secret, hashes.SHA384())
    return WrappedKey(recipient.encrypt(secret, _oaep(hashes.SHA384())))


def _seal(
    recipient: rsa.RSAPublicKey, secret: bytes, digest: hashes.SHA256 | hashes.SHA384
) -> WrappedKey:
    swk = os.urandom(_SWK_BYTES)
    iv = os.urandom(_IV_BYTES)
    ciphertext = AESGCM(swk).encrypt(iv, secret, None)
    header = struct.pack("<III", _IV_BYTES, _TAG_BYTES, len(ciphertext))
    return WrappedKey(header + iv + ciphertext, recipient.encrypt(swk, _oaep(digest)))


def _oaep(digest: hashes.SHA256 | hashes.SHA384) -> padding.OAEP:
    return padding.OAEP(padding.MGF1(digest), digest, None)
