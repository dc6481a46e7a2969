"""Certificates in the shape of AMD's: RSASSA-PSS with SHA-384, serial number 0, AMD's extensions.

Specification: AMD 57230, VCEK Certificate and KDS Interface, tables 9 to 13; RFC 5280.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keybroker.softtee import der

#: Stands in every name, so that nobody takes such a certificate for one of AMD's.
ORGANIZATION = "keybroker software TEE, trusted by nobody"

_AMD = "1.3.6.1.4.1.3704.1"
_SHA384 = der.sequence(der.oid("2.16.840.1.101.3.4.2.2"), der.null())
_SALT_BYTES = 48
_PSS_SHA384 = der.sequence(
    der.oid("1.2.840.113549.1.1.10"),
    der.sequence(
        der.context(0, _SHA384),
        der.context(1, der.sequence(der.oid("1.2.840.113549.1.1.8"), _SHA384)),
        der.context(2, der.integer(_SALT_BYTES)),
    ),
)


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension; ``value`` is what the OCTET STRING of it holds."""

    oid: str
    value: bytes
    critical: bool = False

    def encode(self) -> bytes:
        """Return it as DER."""
        critical = der.boolean(True) if self.critical else b""
        return der.sequence(der.oid(self.oid), critical, der.octet_string(self.value))


@dataclass(frozen=True, slots=True)
class PatchLevels:
    """Firmware versions that a VCEK or VLEK is for, 0 to 255 each; ``fmc`` from Turin on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None


def issue_certificate(
    *,
    subject: str,
    issuer: str,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signing_key: rsa.RSAPrivateKey,
    not_before: datetime,
    not_after: datetime,
    extensions: Sequence[Extension],
    serial: int = 0,
) -> bytes:
    """Make and sign a certificate; return its DER.

    Args:
        subject, issuer: common names.
        not_before, not_after: in UTC.
    """
    tbs = der.sequence(
        der.context(0, der.integer(2)),
        der.integer(serial),
        _PSS_SHA384,
        _name(issuer),
        der.sequence(der.time(not_before), der.time(not_after)),
        _name(subject),
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der.context(3, der.sequence(*(extension.encode() for extension in extensions))),
    )
    scheme = padding.PSS(padding.MGF1(hashes.SHA384()), _SALT_BYTES)
    signature = signing_key.sign(tbs, scheme, hashes.SHA384())
    return der.sequence(tbs, _PSS_SHA384, der.bit_string(signature))


def issuer_extensions() -> list[Extension]:
    """Return the extensions of an ARK, ASK or ASVK: it is a CA and may sign certificates."""
    return [
        Extension("2.5.29.19", der.sequence(der.boolean(True)), critical=True),
        Extension("2.5.29.15", der.bit_string(b"\x04", unused_bits=2), critical=True),
    ]


def endorsement_extensions(
    *,
    product: str,
    levels: PatchLevels,
    hardware_id: bytes | None,
    provider: str | None,
    wrap_hardware_id: bool = False,
) -> list[Extension]:
    """Return the extensions of a VCEK (with a hardware id) or a VLEK (with a provider).

    Args:
        product: ``Milan-B0`` and the like in a VCEK, ``Milan`` in a VLEK.
        hardware_id: 64 bytes, Turin 8.
        wrap_hardware_id: as an OCTET STRING, as certificates have it since 2023, else bare.
    """
    turin = levels.fmc is not None
    numbers = {
        f"{_AMD}.3.1": levels.bootloader,
        f"{_AMD}.3.2": levels.tee,
        f"{_AMD}.3.4": 0,
        f"{_AMD}.3.5": 0,
        f"{_AMD}.3.6": 0,
        f"{_AMD}.3.7": 0,
        f"{_AMD}.3.3": levels.snp,
        f"{_AMD}.3.8": levels.microcode,
    }
    if levels.fmc is not None:
        del numbers[f"{_AMD}.3.4"]
        numbers[f"{_AMD}.3.9"] = levels.fmc
    extensions = [
        Extension(f"{_AMD}.1", der.integer(1 if turin else 0)),
        Extension(f"{_AMD}.2", der.ia5_string(product)),
        *(Extension(oid, der.integer(number)) for oid, number in numbers.items()),
    ]
    if hardware_id is not None:
        value = der.octet_string(hardware_id) if wrap_hardware_id else hardware_id
        extensions.append(Extension(f"{_AMD}.4", value))
    if provider is not None:
        extensions.append(Extension(f"{_AMD}.5", der.ia5_string(provider)))
    return extensions


def pem(certificate: bytes) -> bytes:
    """Return a certificate as PEM."""
    text = base64.b64encode(certificate)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    return b"\n".join((begin, *lines, end, b""))


def _name(common_name: str) -> bytes:
    """Return a name with AMD's attributes in AMD's order."""
    attributes = (
        ("2.5.4.11", der.utf8_string("Engineering")),
        ("2.5.4.6", der.printable_string("US")),
        ("2.5.4.7", der.utf8_string("Santa Clara")),
        ("2.5.4.8", der.utf8_string("CA")),
        ("2.5.4.10", der.utf8_string(ORGANIZATION)),
        ("2.5.4.3", der.utf8_string(common_name)),
    )
    return der.sequence(
        *(der.set_of_one(der.sequence(der.oid(oid), value)) for oid, value in attributes)
    )
