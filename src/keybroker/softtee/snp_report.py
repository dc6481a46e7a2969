"""The bytes of an SEV-SNP report, and the JSON that guests make of it.

Specification: AMD 56860, SEV Secure Nested Paging Firmware ABI, section 7.3; for the JSON, the
serialisation of the Rust crate ``sev`` 8.
"""

import struct
from dataclasses import dataclass
from typing import Any

from keybroker.softtee.certificates import PatchLevels

#: The signature covers this many bytes of the report.
SIGNED_BYTES = 0x2A0
REPORT_BYTES = 0x4A0

#: CPUID family, model and stepping of one processor of each generation.
CPUID = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}


@dataclass(frozen=True, slots=True)
class ReportFields:
    """What goes into a report; see the specification for the meaning of each field.

    Byte strings shorter than their field are padded with zero bytes at the end.
    """

    generation: str
    version: int
    tcb: PatchLevels
    chip_id: bytes
    report_data: bytes
    host_data: bytes = b""
    measurement: bytes = b""
    policy: int = 0x30000
    platform_info: int = 0x25
    key_info: int = 0
    vmpl: int = 0
    guest_svn: int = 0
    family_id: bytes = b""
    image_id: bytes = b""
    id_key_digest: bytes = b""
    author_key_digest: bytes = b""
    report_id: bytes = bytes(32)
    report_id_ma: bytes = b"\xff" * 32
    firmware: tuple[int, int, int] = (1, 55, 40)
    mitigations: int = 0
    signature_algorithm: int = 1

    def encode(self) -> bytes:
        """Return the signed part: :data:`SIGNED_BYTES` bytes.

        Raises:
            ValueError: a field is longer than its place.
        """
        tcb = encode_tcb(self.tcb)
        major, minor, build = self.firmware
        firmware = bytes((build, minor, major, 0))
        cpuid = bytes(CPUID[self.generation]) if self.version >= 3 else b""
        mitigations = self.mitigations if self.version >= 5 else 0
        return b"".join(
            (
                struct.pack("<IIQ", self.version, self.guest_svn, self.policy),
                _padded(self.family_id, 16),
                _padded(self.image_id, 16),
                struct.pack("<II", self.vmpl, self.signature_algorithm),
                tcb,
                struct.pack("<QII", self.platform_info, self.key_info, 0),
                _padded(self.report_data, 64),
                _padded(self.measurement, 48),
                _padded(self.host_data, 32),
                _padded(self.id_key_digest, 48),
                _padded(self.author_key_digest, 48),
                _padded(self.report_id, 32),
                _padded(self.report_id_ma, 32),
                tcb,
                _padded(cpuid, 24),
                _padded(self.chip_id, 64),
                tcb,
                firmware,
                firmware,
                tcb,
                struct.pack("<QQ", mitigations, mitigations),
                bytes(152),
            )
        )


def encode_tcb(levels: PatchLevels) -> bytes:
    """Return a TCB version: 8 bytes, laid out anew from Turin on."""
    if levels.fmc is not None:
        parts = (levels.fmc, levels.bootloader, levels.tee, levels.snp, 0, 0, 0, levels.microcode)
    else:
        parts = (levels.bootloader, levels.tee, 0, 0, 0, 0, levels.snp, levels.microcode)
    return bytes(parts)


def encode_signature(r: int, s: int) -> bytes:
    """Return the signature field: r and s as 72 bytes each, little-endian, then zero bytes."""
    return (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(
        REPORT_BYTES - SIGNED_BYTES, b"\0"
    )


def report_json(report: bytes) -> dict[str, Any]:
    """Return a report as guests send it.

    Args:
        report: 1184 bytes of version 3 to 5, from a generation in :data:`CPUID`.
    """
    version, guest_svn, policy = struct.unpack_from("<IIQ", report, 0)
    vmpl, algorithm = struct.unpack_from("<II", report, 0x30)
    platform_info, key_info = struct.unpack_from("<QI", report, 0x40)
    launch, current = struct.unpack_from("<QQ", report, 0x1F8)
    turin = report[0x188] == CPUID["Turin"][0]

    def octets(start: int, end: int) -> list[int]:
        return list(report[start:end])

    def tcb(start: int) -> dict[str, int | None]:
        raw = report[start : start + 8]
        if turin:
            return {
                "fmc": raw[0],
                "bootloader": raw[1],
                "tee": raw[2],
                "snp": raw[3],
                "microcode": raw[7],
            }
        return {
            "fmc": None,
            "bootloader": raw[0],
            "tee": raw[1],
            "snp": raw[6],
            "microcode": raw[7],
        }

    def firmware(start: int) -> dict[str, int]:
        build, minor, major = report[start : start + 3]
        return {"major": major, "minor": minor, "build": build}

    return {
        "version": version,
        "guest_svn": guest_svn,
        "policy": policy,
        "family_id": octets(0x10, 0x20),
        "image_id": octets(0x20, 0x30),
        "vmpl": vmpl,
        "sig_algo": algorithm,
        "current_tcb": tcb(0x38),
        "plat_info": platform_info,
        "key_info": key_info,
        "report_data": octets(0x50, 0x90),
        "measurement": octets(0x90, 0xC0),
        "host_data": octets(0xC0, 0xE0),
        "id_key_digest": octets(0xE0, 0x110),
        "author_key_digest": octets(0x110, 0x140),
        "report_id": octets(0x140, 0x160),
        "report_id_ma": octets(0x160, 0x180),
        "reported_tcb": tcb(0x180),
        "cpuid_fam_id": report[0x188],
        "cpuid_mod_id": report[0x189],
        "cpuid_step": report[0x18A],
        "chip_id": octets(0x1A0, 0x1E0),
        "committed_tcb": tcb(0x1E0),
        "current": firmware(0x1E8),
        "committed": firmware(0x1EC),
        "launch_tcb": tcb(0x1F0),
        "launch_mit_vector": launch if version >= 5 else None,
        "current_mit_vector": current if version >= 5 else None,
        "signature": {"r": octets(0x2A0, 0x2E8), "s": octets(0x2E8, 0x330)},
    }


def _padded(content: bytes, size: int) -> bytes:
    if len(content) > size:
        raise ValueError(f"a field of {size} bytes cannot hold {len(content)}")
    return content.ljust(size, b"\0")
