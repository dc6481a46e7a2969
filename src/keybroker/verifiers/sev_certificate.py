"""Certificates of AMD SEV: six to a platform, in two binary formats of AMD's own.

A *platform certificate* (PDH, PEK, OCA, CEK) has 2084 bytes and room for two signatures::

    0x000  version (1), API major, API minor, two reserved bytes
    0x008  usage of the key, its algorithm
    0x010  key (1028): curve, x (72), y (72); zeros
    0x414  signature: usage of the signer, its algorithm, signature (512)
    0x61c  signature, likewise

An *AMD certificate* (ASK, ARK) has 832 bytes with keys of 2048 bits and 1600 with 4096::

    0x000  version (1), key id (16), id of the certifying key (16), usage, 16 reserved bytes
    0x038  size of the public exponent and of the modulus, in bits
    0x040  public exponent, modulus, signature

All integers are little-endian, those of keys and signatures too. What is not covered by a signature
(unused slots, padding) must be as AMD's firmware leaves it, so that no two certificates differ in
bytes that nobody vouches for.

Specification: AMD 55766, Secure Encrypted Virtualization API, revision 3.24, appendix C (platform
certificates) and B (AMD certificates).
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keybroker.model.errors import EvidenceError

#: Size of a platform certificate in bytes.
PLATFORM_CERTIFICATE_BYTES: Final = 2084

#: Size of an AMD certificate by the size of its key in bits.
AMD_CERTIFICATE_BYTES: Final = {2048: 832, 4096: 1600}

#: Largest certificate. Clients send AMD's of either size in a buffer of this size.
MAX_CERTIFICATE_BYTES: Final = PLATFORM_CERTIFICATE_BYTES

_VERSION = 1
_SIGNED_BYTES = 0x414
_SLOT_BYTES = 8 + 512
_COORDINATE_BYTES = 72
_P384 = 2
_P384_BYTES = 48
_AMD_PREAMBLE_BYTES = 64


class Usage(IntEnum):
    """What a key is for."""

    ARK = 0x0000
    ASK = 0x0013
    NONE = 0x1000
    OCA = 0x1001
    PEK = 0x1002
    PDH = 0x1003
    CEK = 0x1004


_RSA, _ECDSA, _ECDH = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Algorithm:
    """``kind`` is RSA, ECDSA or ECDH (1, 2, 3); ``sha384`` tells the hash."""

    kind: int
    sha384: bool

    @property
    def hash(self) -> hashes.HashAlgorithm:
        """The hash function."""
        return hashes.SHA384() if self.sha384 else hashes.SHA256()


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of a platform certificate; ``raw`` is 512 bytes."""

    usage: Usage
    algorithm: Algorithm
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PlatformCertificate:
    """PDH, PEK, OCA or CEK. Parsed, not trusted.

    Attributes:
        api: major and minor version of the firmware's API when the key was made.
        key: on P-384.
        signed: the bytes that the signatures cover.
        signatures: one or two.
    """

    usage: Usage
    algorithm: Algorithm
    api: tuple[int, int]
    key: ec.EllipticCurvePublicKey = field(repr=False)
    signed: bytes = field(repr=False)
    signatures: tuple[Signature, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AmdCertificate:
    """ASK or ARK. Parsed, not trusted.

    Attributes:
        key_id: name of the key, 16 bytes.
        certifying_id: name of the key that signed; the ARK's own for the ARK.
        key: RSA, 2048 or 4096 bits.
        raw: the whole certificate, without what may follow it in a client's buffer.
    """

    usage: Usage
    key_id: bytes
    certifying_id: bytes
    key: rsa.RSAPublicKey = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    raw: bytes = field(repr=False)

    @property
    def algorithm(self) -> Algorithm:
        """How this key signs: with the hash that goes with its size."""
        return Algorithm(_RSA, sha384=self.key.key_size == 4096)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise EvidenceError(f"SEV certificate: {what}")


def _usage(data: bytes) -> Usage:
    try:
        return Usage(_number(data))
    except ValueError:
        raise EvidenceError(f"SEV certificate: unknown key usage 0x{_number(data):x}") from None


def _algorithm(data: bytes) -> Algorithm:
    value = _number(data)
    kind, hash_bits = value & 0xFF, value >> 8
    _require(kind in (_RSA, _ECDSA, _ECDH) and hash_bits in (0, 1), f"algorithm 0x{value:x}")
    return Algorithm(kind, sha384=hash_bits == 1)


def parse_platform_certificate(data: bytes, usage: Usage) -> PlatformCertificate:
    """Read a PDH, PEK, OCA or CEK.

    Args:
        data: exactly :data:`PLATFORM_CERTIFICATE_BYTES`.
        usage: what its key must be for.

    Raises:
        EvidenceError: another size, version, usage or curve, a point that is not on the curve, or
            bytes set that must be zero.
    """
    _require(len(data) == PLATFORM_CERTIFICATE_BYTES, f"{len(data)} bytes")
    _require(_number(data[:4]) == _VERSION, "unknown version")
    _require(not any(data[6:8]), "reserved bytes are set")
    found = _usage(data[8:12])
    _require(found is usage, f"it is a {found.name} in the place of a {usage.name}")
    algorithm = _algorithm(data[12:16])
    _require(
        algorithm.kind == (_ECDH if usage is Usage.PDH else _ECDSA),
        f"the algorithm of a {usage.name} key",
    )
    signatures = tuple(
        signature
        for start in (_SIGNED_BYTES, _SIGNED_BYTES + _SLOT_BYTES)
        if (signature := _signature(data[start : start + _SLOT_BYTES])) is not None
    )
    _require(bool(signatures), "it is not signed")
    return PlatformCertificate(
        usage=found,
        algorithm=algorithm,
        api=(data[4], data[5]),
        key=_ec_key(data[16:_SIGNED_BYTES]),
        signed=data[:_SIGNED_BYTES],
        signatures=signatures,
    )


def _ec_key(data: bytes) -> ec.EllipticCurvePublicKey:
    _require(_number(data[:4]) == _P384, "the key is not on P-384")
    coordinates = data[4 : 4 + _COORDINATE_BYTES], data[4 + _COORDINATE_BYTES :]
    x, y = (part[:_P384_BYTES] for part in coordinates)
    _require(not any(any(part[_P384_BYTES:]) for part in coordinates), "the key is padded")
    try:
        return ec.EllipticCurvePublicNumbers(_number(x), _number(y), ec.SECP384R1()).public_key()
    except ValueError:
        raise EvidenceError("SEV certificate: the key is not a point on P-384") from None


def _signature(data: bytes) -> Signature | None:
    usage, raw = _usage(data[:4]), data[8:]
    if usage is Usage.NONE:
        _require(not any(data[4:]), "an unused signature is not empty")
        return None
    return Signature(usage, _algorithm(data[4:8]), raw)


def parse_amd_certificate(data: bytes, usage: Usage) -> AmdCertificate:
    """Read an ASK or ARK.

    Args:
        data: the certificate. What follows it is ignored: clients send a buffer that has room for
            the larger of the two sizes, with whatever was in memory behind the smaller.
        usage: what its key must be for.

    Raises:
        EvidenceError: too short, too long, another version, usage or size of key, or an RSA key
            that is none.
    """
    _require(_AMD_PREAMBLE_BYTES <= len(data) <= MAX_CERTIFICATE_BYTES, f"{len(data)} bytes")
    _require(_number(data[:4]) == _VERSION, "unknown version")
    found = _usage(data[36:40])
    _require(found is usage, f"it is a {found.name} in the place of an {usage.name}")
    _require(not any(data[40:56]), "reserved bytes are set")
    bits = _number(data[60:64])
    _require(bits in AMD_CERTIFICATE_BYTES and _number(data[56:60]) == bits, "the size of its key")
    size = bits // 8
    _require(len(data) >= AMD_CERTIFICATE_BYTES[bits], "it is cut off")
    raw = data[: AMD_CERTIFICATE_BYTES[bits]]
    signed, signature = raw[:-size], raw[-size:]
    exponent, modulus = _number(signed[_AMD_PREAMBLE_BYTES:-size]), _number(signed[-size:])
    _require(modulus.bit_length() == bits, "the size of its modulus")
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise EvidenceError("SEV certificate: the RSA key is none") from None
    return AmdCertificate(
        usage=found,
        key_id=raw[4:20],
        certifying_id=raw[20:36],
        key=key,
        signed=signed,
        signature=signature,
        raw=raw,
    )


def verify_signed_by_amd(
    certificate: PlatformCertificate | AmdCertificate, issuer: AmdCertificate
) -> None:
    """Check that an ARK or ASK signed a certificate: RSASSA-PSS, salt as long as the digest.

    Raises:
        EvidenceError: it did not.
    """
    size = issuer.key.key_size // 8
    if isinstance(certificate, AmdCertificate):
        _require(certificate.certifying_id == issuer.key_id, "it names another issuer")
        signature = certificate.signature
        _require(len(signature) == size, "its signature is of another size than its issuer's key")
    else:
        raw = _signature_by(certificate, issuer.usage, issuer.algorithm)
        signature = raw[:size]
        _require(not any(raw[size:]), "its signature is padded")
    hash_ = issuer.algorithm.hash
    try:
        issuer.key.verify(
            signature[::-1],
            certificate.signed,
            padding.PSS(padding.MGF1(hash_), hash_.digest_size),
            hash_,
        )
    except InvalidSignature:
        raise _not_signed(certificate, issuer) from None


def verify_signed_by_platform(
    certificate: PlatformCertificate, issuer: PlatformCertificate
) -> None:
    """Check that a platform's key (CEK, OCA or PEK) signed a certificate, with ECDSA.

    Raises:
        EvidenceError: it did not.
    """
    raw = _signature_by(certificate, issuer.usage, issuer.algorithm)
    r, s = raw[:_COORDINATE_BYTES], raw[_COORDINATE_BYTES : 2 * _COORDINATE_BYTES]
    _require(
        not any(r[_P384_BYTES:] + s[_P384_BYTES:] + raw[2 * _COORDINATE_BYTES :]),
        "its signature is padded",
    )
    try:
        issuer.key.verify(
            encode_dss_signature(_number(r), _number(s)),
            certificate.signed,
            ec.ECDSA(issuer.algorithm.hash),
        )
    except InvalidSignature:
        raise _not_signed(certificate, issuer) from None


def _signature_by(certificate: PlatformCertificate, usage: Usage, algorithm: Algorithm) -> bytes:
    for signature in certificate.signatures:
        if signature.usage is usage:
            _require(signature.algorithm == algorithm, "its signature is of another algorithm")
            return signature.raw
    raise EvidenceError(
        f"the {certificate.usage.name} certificate has no signature by {usage.name}"
    )


def _not_signed(
    certificate: PlatformCertificate | AmdCertificate,
    issuer: PlatformCertificate | AmdCertificate,
) -> EvidenceError:
    return EvidenceError(
        f"the {certificate.usage.name} certificate is not signed by the {issuer.usage.name}"
    )
