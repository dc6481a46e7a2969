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
from typing import Annotated, Any, Final, TypeAlias
from uuid import UUID

import msgspec

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
    try:
        report = msgspec.convert(value, _Report)
        return _encode(report, processor)
    except msgspec.ValidationError as error:
        raise EvidenceError(f"attestation_report: {error}") from None
    except (struct.error, ValueError):
        raise EvidenceError(
            "attestation_report: a number is out of the range of its field"
        ) from None


_Byte = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
_Unsigned = Annotated[int, msgspec.Meta(ge=0)]


def _octets(size: int) -> Any:
    return Annotated[list[int], msgspec.Meta(min_length=size, max_length=size)]


_Octets16: TypeAlias = _octets(16)  # type: ignore[valid-type]
_Octets32: TypeAlias = _octets(32)  # type: ignore[valid-type]
_Octets48: TypeAlias = _octets(48)  # type: ignore[valid-type]
_Octets64: TypeAlias = _octets(64)  # type: ignore[valid-type]
_Octets72: TypeAlias = _octets(72)  # type: ignore[valid-type]


class _Tcb(msgspec.Struct):
    bootloader: _Byte
    tee: _Byte
    snp: _Byte
    microcode: _Byte
    fmc: _Byte | None = None


class _FirmwareVersion(msgspec.Struct):
    major: _Byte
    minor: _Byte
    build: _Byte


class _Signature(msgspec.Struct):
    r: _Octets72
    s: _Octets72


class _Report(msgspec.Struct):
    """The fields as the crate ``sev`` names them; byte strings are lists of numbers."""

    version: _Unsigned
    guest_svn: _Unsigned
    policy: _Unsigned
    family_id: _Octets16
    image_id: _Octets16
    vmpl: _Unsigned
    sig_algo: _Unsigned
    current_tcb: _Tcb
    plat_info: _Unsigned
    key_info: _Unsigned
    report_data: _Octets64
    measurement: _Octets48
    host_data: _Octets32
    id_key_digest: _Octets48
    author_key_digest: _Octets48
    report_id: _Octets32
    report_id_ma: _Octets32
    reported_tcb: _Tcb
    chip_id: _Octets64
    committed_tcb: _Tcb
    current: _FirmwareVersion
    committed: _FirmwareVersion
    launch_tcb: _Tcb
    signature: _Signature
    cpuid_fam_id: _Byte | None = None
    cpuid_mod_id: _Byte | None = None
    cpuid_step: _Byte | None = None
    launch_mit_vector: _Unsigned | None = None
    current_mit_vector: _Unsigned | None = None


def _encode(report: _Report, processor: Generation | None) -> bytes:
    cpuid = b""
    if report.version >= _FIRST_WITH_CPUID:
        family, model, stepping = report.cpuid_fam_id, report.cpuid_mod_id, report.cpuid_step
        if family is None or model is None or stepping is None:
            raise EvidenceError("the report lacks one of cpuid_fam_id, cpuid_mod_id and cpuid_step")
        cpuid = bytes((family, model, stepping))
        generation = generation_of(family, model)
    else:
        generation = processor or Generation.MILAN
    with_mitigations = report.version >= _FIRST_WITH_MITIGATIONS
    return _REPORT.pack(
        report.version,
        report.guest_svn,
        report.policy,
        bytes(report.family_id),
        bytes(report.image_id),
        report.vmpl,
        report.sig_algo,
        _encode_tcb(report.current_tcb, generation),
        report.plat_info,
        report.key_info,
        bytes(report.report_data),
        bytes(report.measurement),
        bytes(report.host_data),
        bytes(report.id_key_digest),
        bytes(report.author_key_digest),
        bytes(report.report_id),
        bytes(report.report_id_ma),
        _encode_tcb(report.reported_tcb, generation),
        cpuid,
        bytes(report.chip_id),
        _encode_tcb(report.committed_tcb, generation),
        _encode_version(report.current),
        _encode_version(report.committed),
        _encode_tcb(report.launch_tcb, generation),
        (report.launch_mit_vector or 0) if with_mitigations else 0,
        (report.current_mit_vector or 0) if with_mitigations else 0,
        bytes(report.signature.r),
        bytes(report.signature.s),
    )


#: AMD 56860, attestation report; ``x`` and what is left of a shorter string are zero bytes.
_REPORT = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8s24s64s8s4s4s8sQQ152x72s72s368x")
_FIRST_WITH_CPUID = 3
_FIRST_WITH_MITIGATIONS = 5


def _encode_tcb(tcb: _Tcb, generation: Generation) -> bytes:
    if generation.has_fmc:
        if tcb.fmc is None:
            raise EvidenceError("a TCB of this processor must have fmc")
        return bytes((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))
    return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))


def _encode_version(version: _FirmwareVersion) -> bytes:
    return bytes((version.build, version.minor, version.major, 0))


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvidenceError(f"{name} is not a JSON object")
    return value


def _bytes(value: list[Any], name: str) -> bytes:
    try:
        return bytes(value)
    except (ValueError, TypeError):
        raise EvidenceError(f"{name} is not an array of bytes") from None


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
