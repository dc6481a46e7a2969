"""SNP guests of registered workloads: what their report binds, and the key they are answered to."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keybroker.model.errors import EvidenceError, JweError
from keybroker.verifiers.snp_evidence import SnpEvidence, parse_certificates
from keybroker.verifiers.snp_report import REPORT_BYTES, parse_report
from keybroker.workloads.payloads import SnpAttestation
from keybroker.workloads.registration import generation_named

#: Sizes of RSA keys that are encrypted to, in bits.
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192

#: Longest modulus or exponent in base64.
_MAX_NUMBER_CHARS: Final = MAX_RSA_BITS // 8 * 4 // 3 + 4

#: Bit of the guest policy that lets the host debug the guest (AMD 56860, section 4.3).
_POLICY_DEBUG: Final = 1 << 19

_HEX = re.compile(r"[0-9a-fA-F]*")


def _oaep(algorithm: hashes.HashAlgorithm) -> padding.OAEP:
    return padding.OAEP(padding.MGF1(algorithm), algorithm, None)


#: Padding by ``alg``, and the bytes of a block that it takes. Guests of the original say ``RSA`` or
#: nothing and expect PKCS#1 v1.5; the other names are those of RFC 7518, section 4.1.
_PADDINGS: Final[Mapping[str, tuple[padding.AsymmetricPadding, int]]] = {
    "": (padding.PKCS1v15(), 11),
    "RSA": (padding.PKCS1v15(), 11),
    "RSA1_5": (padding.PKCS1v15(), 11),
    # SHA-1 as RFC 7518 defines it; OAEP does not rest on collision resistance
    "RSA-OAEP": (_oaep(hashes.SHA1()), 42),  # noqa: S303 # nosec B303
    "RSA-OAEP-256": (_oaep(hashes.SHA256()), 66),
}


@dataclass(frozen=True, slots=True)
class GuestKey:
    """The RSA key that lives in a guest, with the padding that it asked for.

    Attributes:
        modulus_text, exponent_text: base64 as they came, which is what the report binds.
    """

    key: rsa.RSAPublicKey = field(repr=False)
    alg: str
    modulus_text: str = field(repr=False, default="")
    exponent_text: str = field(repr=False, default="")

    @property
    def capacity(self) -> int:
        """The longest secret that it can be sent, in bytes."""
        return self.key.key_size // 8 - _PADDINGS[self.alg][1]

    def numbers(self) -> tuple[bytes, bytes]:
        """Return modulus and exponent, big-endian."""
        numbers = self.key.public_numbers()
        return tuple(  # type: ignore[return-value] # two of them
            number.to_bytes((number.bit_length() + 7) // 8, "big")
            for number in (numbers.n, numbers.e)
        )


def parse_guest_key(value: Mapping[str, Any]) -> GuestKey:
    """Read ``tee-pubkey``: ``alg``, and ``k-mod`` and ``k-exp``, or ``n`` and ``e``, in base64.

    Raises:
        JweError: not of that form, another ``alg``, or a key that is not RSA of
            :data:`MIN_RSA_BITS` to :data:`MAX_RSA_BITS`.
    """
    alg = value.get("alg", "")
    if not isinstance(alg, str) or alg not in _PADDINGS:
        raise _unusable("alg must be RSA, RSA1_5, RSA-OAEP or RSA-OAEP-256")
    modulus, exponent = value.get("k-mod", value.get("n")), value.get("k-exp", value.get("e"))
    if not isinstance(modulus, str) or not isinstance(exponent, str):
        raise _unusable("the modulus (k-mod) and exponent (k-exp) must be there")
    return GuestKey(make_rsa_key(_number(modulus), _number(exponent)), alg, modulus, exponent)


def make_rsa_key(modulus: int, exponent: int) -> rsa.RSAPublicKey:
    """Make an RSA key of its numbers.

    Raises:
        JweError: they are none, or of another size than is taken.
    """
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        raise _unusable(f"the key must have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise _unusable("the modulus and exponent are no RSA key") from None


def _unusable(why: str) -> JweError:
    text = f"tee-pubkey: {why}"
    return JweError(text, detail=text)


def _number(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARS:
        raise _unusable("a number is too long")
    standard = text.rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return int.from_bytes(
            base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True), "big"
        )
    except (binascii.Error, ValueError):
        raise _unusable("a number is not base64") from None


def bound_report_data(nonce: str, key: GuestKey) -> bytes:
    """Return what a report must bind: SHA-512 of nonce, modulus and exponent, in text, 64 bytes."""
    text = nonce + key.modulus_text + key.exponent_text
    return hashlib.sha512(text.encode("utf-8", "surrogatepass")).digest()


def parse_snp_evidence(attestation: SnpAttestation) -> SnpEvidence:
    """Read report and certificates.

    Raises:
        EvidenceError: not hexadecimal, an unknown generation, or a report that is refused.
    """
    text = attestation.report
    if len(text) != 2 * REPORT_BYTES or not _HEX.fullmatch(text):
        raise EvidenceError(f"the report is not {REPORT_BYTES} bytes in hexadecimal")
    generation = generation_named(attestation.generation)
    if generation is None:
        raise EvidenceError(f"unknown processor generation {attestation.generation[:16]!r}")
    return SnpEvidence(
        report=parse_report(bytes.fromhex(text), processor=generation),
        certificates=parse_certificates(attestation.certificates),
    )


def allows_debug(policy: int) -> bool:
    """Whether an SNP guest policy lets the host read and write the guest's memory."""
    return bool(policy & _POLICY_DEBUG)


def seal_to_guest(key: GuestKey, secret: bytes) -> str:
    """Encrypt a secret of at most :attr:`GuestKey.capacity` bytes; return hexadecimal."""
    return key.key.encrypt(secret, _PADDINGS[key.alg][0]).hex()
