"""Keys as octets: what kinds there are, how they are made, and how registered ones are read.

An AES key is its 16, 24 or 32 octets. RSA and EC private keys are PKCS #8 in DER without
encryption, which is what the original hands out.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from keybroker.model.errors import MalformedError

AES = "AES"
RSA = "RSA"
EC = "EC"
ALGORITHMS = (AES, RSA, EC)

AES_LENGTHS = (128, 192, 256)
RSA_LENGTHS = (2048, 3072, 4096, 7680)

#: By every name that a client may use; the original knows two for the first.
CURVES: Mapping[str, ec.EllipticCurve] = {
    "secp256r1": ec.SECP256R1(),
    "prime256v1": ec.SECP256R1(),
    "secp384r1": ec.SECP384R1(),
    "secp521r1": ec.SECP521R1(),
}

#: A PEM file of the largest RSA key has 6 KiB.
MAX_KEY_DATA_CHARS = 32 * 1024

#: The original's parser passes over these, and tools that wrap lines rely on it.
_LINE_BREAKS = str.maketrans("", "", "\r\n")

_PUBLIC_EXPONENT = 65537

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What kind of key.

    Attributes:
        algorithm: one of :data:`ALGORITHMS`.
        length: in bits, for AES and RSA.
        curve: a name in :data:`CURVES`, for EC.
    """

    algorithm: str
    length: int | None = None
    curve: str | None = None

    @property
    def bits(self) -> int:
        """The length in bits; for EC that of the field."""
        return self.length or CURVES[self.curve or ""].key_size


@dataclass(frozen=True, slots=True)
class Material:
    """A key and its public part.

    Attributes:
        octets: as :mod:`keybroker.key_transfer.material` says.
        public: SubjectPublicKeyInfo in DER; None for AES.
    """

    octets: bytes = field(repr=False)
    public: bytes | None = field(repr=False, default=None)


def parse_spec(algorithm: str, length: int | None, curve: str | None) -> KeySpec:
    """Read what kind of key a client wants.

    Raises:
        MalformedError: no such algorithm, length or curve.
    """
    name = algorithm.upper()
    if name not in ALGORITHMS:
        raise MalformedError("algorithm must be AES, RSA or EC")
    if name == EC:
        # The original demands a key length for EC too and does nothing with it.
        if curve not in CURVES:
            raise MalformedError("curve_type must be secp256r1, secp384r1 or secp521r1")
        return KeySpec(EC, curve=curve)
    lengths = AES_LENGTHS if name == AES else RSA_LENGTHS
    if length not in lengths:
        known = ", ".join(str(bits) for bits in lengths)
        raise MalformedError(f"key_length for {name} must be one of {known}")
    return KeySpec(name, length)


def generate(spec: KeySpec) -> Material:
    """Make a key. An RSA key of 7680 bits takes seconds."""
    if spec.algorithm == AES:
        return Material(os.urandom(spec.bits // 8))
    if spec.algorithm == RSA:
        return _material(rsa.generate_private_key(_PUBLIC_EXPONENT, spec.bits))
    return _material(ec.generate_private_key(CURVES[spec.curve or ""]))


def parse_key_data(key_data: str, spec: KeySpec) -> Material:
    """Read a key that a client registers.

    Args:
        key_data: base64 with padding: of the octets of an AES key, or of a private key in PEM.

    Raises:
        MalformedError: not that, or not the kind of key that the client says.
    """
    if len(key_data) > MAX_KEY_DATA_CHARS:
        raise MalformedError("key_data is too long")
    try:
        octets = base64.b64decode(key_data.translate(_LINE_BREAKS), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("key_data is not base64") from None
    if spec.algorithm == AES:
        if len(octets) * 8 != spec.length:
            raise MalformedError("key_data does not have the length that key_length says")
        return Material(octets)
    try:
        key = load_pem_private_key(octets, password=None)
    except Exception:
        # Nothing of the parser's words may leave: they could quote the key.
        raise MalformedError("key_data is not an unencrypted private key in PEM") from None
    return _material(_check_kind(key, spec))


def check_octets(octets: bytes, spec: KeySpec) -> bytes:
    """Return what a key manager gave if it is a key of the kind that the record says.

    Raises:
        MalformedError: it is something else.
    """
    if spec.algorithm == AES:
        if len(octets) * 8 != spec.length:
            raise MalformedError("not an AES key of the recorded length")
        return octets
    try:
        key = load_der_private_key(octets, password=None)
    except Exception:
        raise MalformedError("not a private key") from None
    _check_kind(key, spec)
    return octets


def _check_kind(key: object, spec: KeySpec) -> PrivateKey:
    if spec.algorithm == RSA and isinstance(key, rsa.RSAPrivateKey):
        if key.key_size != spec.length:
            raise MalformedError("the key does not have the length that key_length says")
        return key
    if spec.algorithm == EC and isinstance(key, ec.EllipticCurvePrivateKey):
        if spec.curve is None or key.curve.name != CURVES[spec.curve].name:
            raise MalformedError("the key is not on the curve that curve_type says")
        return key
    raise MalformedError("the key is not of the algorithm that is said")


def _material(key: PrivateKey) -> Material:
    return Material(
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )
