"""SNP attestation reports and certificate tables in the JSON form that guests send.

The form is what the sev crate's types serialise to, since guests are built with it: byte strings
are lists of integers, TCB versions are objects whose ``fmc`` is null before Turin, and the
signature keeps its two 72-byte little-endian numbers.

Specification: AMD SEV-SNP ABI (56860) revision 1.58, table 22 (ATTESTATION_REPORT); AMD GHCB
(56421) revision 2.03, section 4.1.8.1 (certificate table).
"""

import struct
import uuid
from typing import Any

from keybroker.client.errors import AttesterError

#: Size of a report in bytes.
REPORT_BYTES = 1184

#: A table that the host claims to be larger is not read: four certificates take 6 KiB.
MAX_TABLE_BYTES = 1 << 20

_FIRST_VERSION = 2
_FIRST_WITH_CPUID = 3
_FIRST_WITH_MITIGATIONS = 5

_TABLE_ENTRY = struct.Struct("<16sII")
_EMPTY_GUID = bytes(16)
_CERT_TYPES = {
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
    "63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "CRL",
}

#: CPUID family of the processors whose TCB version has a byte for the FMC (Turin and later).
_FAMILY_WITH_FMC = 0x1A


def report_to_json(report: bytes) -> dict[str, Any]:
    """Turn a report into its JSON form.

    Args:
        report: :data:`REPORT_BYTES` bytes as the firmware wrote them.

    Raises:
        AttesterError: not a report of version 2 or later, or a version 2 report with a masked
            chip id, which does not say how to read its TCB versions.
    """
    if len(report) != REPORT_BYTES:
        raise AttesterError(f"the SNP report has {len(report)} bytes instead of {REPORT_BYTES}")
    version = _u32(report, 0x000)
    if version < _FIRST_VERSION:
        raise AttesterError(f"the SNP report has version {version}, which is not supported")
    with_cpuid = version >= _FIRST_WITH_CPUID
    with_mitigations = version >= _FIRST_WITH_MITIGATIONS
    chip_id = report[0x1A0:0x1E0]
    with_fmc = report[0x188] >= _FAMILY_WITH_FMC if with_cpuid else _is_short_chip_id(chip_id)
    return {
        "version": version,
        "guest_svn": _u32(report, 0x004),
        "policy": _u64(report, 0x008),
        "family_id": list(report[0x010:0x020]),
        "image_id": list(report[0x020:0x030]),
        "vmpl": _u32(report, 0x030),
        "sig_algo": _u32(report, 0x034),
        "current_tcb": _tcb(report, 0x038, with_fmc),
        "plat_info": _u64(report, 0x040),
        "key_info": _u32(report, 0x048),
        "report_data": list(report[0x050:0x090]),
        "measurement": list(report[0x090:0x0C0]),
        "host_data": list(report[0x0C0:0x0E0]),
        "id_key_digest": list(report[0x0E0:0x110]),
        "author_key_digest": list(report[0x110:0x140]),
        "report_id": list(report[0x140:0x160]),
        "report_id_ma": list(report[0x160:0x180]),
        "reported_tcb": _tcb(report, 0x180, with_fmc),
        "cpuid_fam_id": report[0x188] if with_cpuid else None,
        "cpuid_mod_id": report[0x189] if with_cpuid else None,
        "cpuid_step": report[0x18A] if with_cpuid else None,
        "chip_id": list(chip_id),
        "committed_tcb": _tcb(report, 0x1E0, with_fmc),
        "current": _firmware_version(report, 0x1E8),
        "committed": _firmware_version(report, 0x1EC),
        "launch_tcb": _tcb(report, 0x1F0, with_fmc),
        "launch_mit_vector": _u64(report, 0x1F8) if with_mitigations else None,
        "current_mit_vector": _u64(report, 0x200) if with_mitigations else None,
        "signature": {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])},
    }


def parse_cert_table(table: bytes) -> list[dict[str, Any]]:
    """Read the certificate table that a host hands to its guest.

    Args:
        table: entries of GUID (16 bytes), offset and length (4 bytes each, little endian), ended
            by a zero GUID, then the certificates. Empty where the host provides none.

    Returns:
        ``{"cert_type": …, "data": [bytes]}`` for each entry.

    Raises:
        AttesterError: the table is not ended, or points outside itself.
    """
    if len(table) > MAX_TABLE_BYTES:
        raise AttesterError(f"the SNP certificate table has more than {MAX_TABLE_BYTES} bytes")
    entries: list[dict[str, Any]] = []
    position = 0
    while table:
        if position + _TABLE_ENTRY.size > len(table):
            raise AttesterError("the SNP certificate table has no end")
        guid, offset, length = _TABLE_ENTRY.unpack_from(table, position)
        if guid == _EMPTY_GUID:
            break
        if offset + length > len(table):
            raise AttesterError("the SNP certificate table points outside itself")
        name = str(uuid.UUID(bytes=guid))
        entries.append(
            {
                "cert_type": _CERT_TYPES.get(name, {"OTHER": name}),
                "data": list(table[offset : offset + length]),
            }
        )
        position += _TABLE_ENTRY.size
    return entries


def _is_short_chip_id(chip_id: bytes) -> bool:
    # Turin identifies a chip by 8 bytes; a version 2 report tells its processor by nothing else.
    if not any(chip_id):
        raise AttesterError("a version 2 SNP report with a masked chip id cannot be read")
    return not any(chip_id[8:])


def _tcb(report: bytes, offset: int, with_fmc: bool) -> dict[str, int | None]:
    tcb = report[offset : offset + 8]
    fmc, bootloader, tee, snp = (*tcb[:4],) if with_fmc else (None, tcb[0], tcb[1], tcb[6])
    return {"fmc": fmc, "bootloader": bootloader, "tee": tee, "snp": snp, "microcode": tcb[7]}


def _firmware_version(report: bytes, offset: int) -> dict[str, int]:
    build, minor, major = report[offset : offset + 3]
    return {"major": major, "minor": minor, "build": build}


def _u32(report: bytes, offset: int) -> int:
    return int.from_bytes(report[offset : offset + 4], "little")


def _u64(report: bytes, offset: int) -> int:
    return int.from_bytes(report[offset : offset + 8], "little")
