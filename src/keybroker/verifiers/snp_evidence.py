"""SEV-SNP evidence as guests send it: a report and a certificate table, in JSON.

The form is the serialisation of the Rust crate ``sev``: the report field by field with byte strings
as arrays of numbers, and the certificates with the names of their types::

    {"attestation_report": {"version": 3, "policy": 196608, …, "signature": {"r": […], "s": […]}},
     "cert_chain": [{"cert_type": "VCEK", "data": [48, 130, …]}]}

The signature covers the binary report, so the fields are put together again into exactly those
bytes, and the result goes through the one parser that there is (:mod:`.snp_report`).
"""

import struct
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from keybroker.model.errors import EvidenceError
from keybroker.verifiers.snp_report import Generation, SnpReport, generation_of, parse_report
from keybroker.verifiers.x509 import MAX_CERTIFICATE_BYTES

#: Most entries of a certificate table; a full one has four certificates and a revocation list.
MAX_CERTIFICATES: Final = 16

#: Certificate table entries by their identifiers in AMD 56421 (GHCB), section 4.1.8.1.
CERTIFICATE_TYPES: Final = {
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
    "63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "CRL",
}


@dataclass(frozen=True, slots=True)
class CertificateTable:
    """Certificates that came with a report, each as its raw bytes. Parsed, not trusted.

    ``ask`` holds the ASVK where the report is signed by a VLEK.
    """

    ark: bytes | None = field(default=None, repr=False)
    ask: bytes | None = field(default=None, repr=False)
    vcek: bytes | None = field(default=None, repr=False)
    vlek: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SnpEvidence:
    """A report and the certificates that came with it; None: no table came."""

    report: SnpReport
    certificates: CertificateTable | None


def parse_evidence(value: Any, *, processor: Generation | None = None) -> SnpEvidence:
    """Read the JSON form.

    Args:
        value: a parsed JSON value.
        processor: as in :func:`keybroker.verifiers.snp_report.parse_report`.

    Raises:
        EvidenceError: not of this form, or the report in it is refused.
    """
    members = _object(value, "the evidence")
    raw = encode_report(members.get("attestation_report"), processor=processor)
    return SnpEvidence(
        report=parse_report(raw, processor=processor),
        certificates=parse_certificates(members.get("cert_chain")),
    )


def encode_report(value: Any, *, processor: Generation | None = None) -> bytes:
    """Put a report in JSON form together into the 1184 bytes that were signed.

    Raises:
        EvidenceError: a field is missing or out of its range, or the processor is unknown.
    """
    report = _object(value, "attestation_report")
    version = _number(report, "version", 4)
    cpuid = bytes(24)
    if version >= 3:
        family, model, stepping = (
            _number(report, name, 1) for name in ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")
        )
        cpuid = bytes((family, model, stepping)).ljust(24, b"\0")
        generation = generation_of(family, model)
    else:
        generation = processor or Generation.MILAN
    mitigations = tuple(
        _number(report, name, 8) if version >= 5 and report.get(name) is not None else 0
        for name in ("launch_mit_vector", "current_mit_vector")
    )
    signature = _object(report.get("signature"), "signature")
    return b"".join(
        (
            struct.pack(
                "<IIQ",
                version,
                _number(report, "guest_svn", 4),
                _number(report, "policy", 8),
            ),
            _octets(report, "family_id", 16),
            _octets(report, "image_id", 16),
            struct.pack("<II", _number(report, "vmpl", 4), _number(report, "sig_algo", 4)),
            _tcb(report, "current_tcb", generation),
            struct.pack("<QII", _number(report, "plat_info", 8), _number(report, "key_info", 4), 0),
            _octets(report, "report_data", 64),
            _octets(report, "measurement", 48),
            _octets(report, "host_data", 32),
            _octets(report, "id_key_digest", 48),
            _octets(report, "author_key_digest", 48),
            _octets(report, "report_id", 32),
            _octets(report, "report_id_ma", 32),
            _tcb(report, "reported_tcb", generation),
            cpuid,
            _octets(report, "chip_id", 64),
            _tcb(report, "committed_tcb", generation),
            _firmware_version(report, "current"),
            _firmware_version(report, "committed"),
            _tcb(report, "launch_tcb", generation),
            struct.pack("<QQ", *mitigations),
            bytes(152),
            _octets(signature, "r", 72),
            _octets(signature, "s", 72),
            bytes(368),
        )
    )


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvidenceError(f"{name} is not a JSON object")
    return value


def _number(members: dict[str, Any], name: str, size: int) -> int:
    value = members.get(name)
    if type(value) is not int or not 0 <= value < 1 << 8 * size:
        raise EvidenceError(f"{name} is not an unsigned integer of {size} bytes")
    return value


def _octets(members: dict[str, Any], name: str, size: int) -> bytes:
    value = members.get(name)
    if not isinstance(value, list) or len(value) != size:
        raise EvidenceError(f"{name} is not an array of {size} bytes")
    return _bytes(value, name)


def _bytes(value: list[Any], name: str) -> bytes:
    try:
        return bytes(value)
    except (ValueError, TypeError):
        raise EvidenceError(f"{name} is not an array of bytes") from None


def _tcb(members: dict[str, Any], name: str, generation: Generation) -> bytes:
    tcb = _object(members.get(name), name)
    bootloader, tee, snp, microcode = (
        _number(tcb, part, 1) for part in ("bootloader", "tee", "snp", "microcode")
    )
    if generation.has_fmc:
        return bytes((_number(tcb, "fmc", 1), bootloader, tee, snp, 0, 0, 0, microcode))
    return bytes((bootloader, tee, 0, 0, 0, 0, snp, microcode))


def _firmware_version(members: dict[str, Any], name: str) -> bytes:
    version = _object(members.get(name), name)
    return bytes((*(_number(version, part, 1) for part in ("build", "minor", "major")), 0))


def parse_certificates(value: Any) -> CertificateTable | None:
    """Read ``cert_chain``; None stays None.

    Raises:
        EvidenceError: not of this form, or too many or too large certificates.
    """
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_CERTIFICATES:
        raise EvidenceError(f"cert_chain is not a list of at most {MAX_CERTIFICATES} certificates")
    found: dict[str, bytes] = {}
    for entry in value:
        members = _object(entry, "an entry of cert_chain")
        kind = _certificate_type(members.get("cert_type"))
        if kind is None or kind.lower() in found:  # of several, the first counts
            continue
        data = members.get("data")
        if not isinstance(data, list) or len(data) > MAX_CERTIFICATE_BYTES:
            raise EvidenceError(
                f"the {kind} is not an array of at most {MAX_CERTIFICATE_BYTES} bytes"
            )
        found[kind.lower()] = _bytes(data, f"the {kind}")
    return CertificateTable(**found)


def _certificate_type(value: Any) -> str | None:
    """Return ARK, ASK, VCEK or VLEK; None for an entry that does not matter here."""
    if isinstance(value, dict) and isinstance(value.get("OTHER"), str):
        try:
            value = CERTIFICATE_TYPES.get(str(UUID(value["OTHER"])))
        except ValueError:
            raise EvidenceError("the OTHER type of a certificate is not a UUID") from None
    elif not isinstance(value, str):
        raise EvidenceError("cert_type is neither a name nor OTHER with a UUID")
    return value if value in ("ARK", "ASK", "VCEK", "VLEK") else None
