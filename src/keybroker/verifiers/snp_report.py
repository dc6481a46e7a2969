"""The attestation report of AMD SEV-SNP: 1184 bytes, versions 2 to 5.

::

    0x000  version, guest SVN, policy, family id, image id, VMPL, signature algorithm
    0x038  current TCB, platform info, key info
    0x050  report data (64), measurement (48), host data (32)
    0x0E0  id key digest (48), author key digest (48), report id (32), report id of the MA (32)
    0x180  reported TCB; from version 3: CPUID family, model, stepping
    0x1A0  chip id (64), committed TCB, current and committed firmware version, launch TCB
    0x1F8  from version 5: launch and current mitigation vector
    0x2A0  signature over all of the above: ECDSA P-384 with SHA-384, r and s of 72 bytes each

All integers are little-endian. What the specification reserves must be zero, or the report is
refused: bits that a later firmware gives a meaning must not be overlooked.

Specification: AMD 56860, SEV Secure Nested Paging Firmware ABI, revision 1.58, section 7.3.
"""

import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from keybroker.model.errors import EvidenceError

#: Size of the report in bytes.
REPORT_BYTES: Final = 0x4A0

#: The signature covers bytes 0 up to this offset, at which it begins.
SIGNED_BYTES: Final = 0x2A0

#: Versions that can be read; version 2 does not name the processor.
OLDEST_VERSION: Final = 2
NEWEST_VERSION: Final = 5
_FIRST_WITH_CPUID: Final = 3
_FIRST_WITH_MITIGATIONS: Final = 5

_SIGNATURE_PART_BYTES: Final = 72
_P384_BYTES: Final = 48
_ECDSA_P384_SHA384: Final = 1

_LAYOUT = struct.Struct("<IIQ16s16sII8sQII64s48s32s48s48s32s32s8s24s64s8s4s4s8sQQ152s512s")

_POLICY_RESERVED_ONE = 1 << 17
_POLICY_KNOWN = (1 << 26) - 1
_PLATFORM_KNOWN = 0b1011_1111
_KEY_INFO_KNOWN = 0b1_1111


class Generation(StrEnum):
    """Processors by the names of AMD's key distribution service."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"

    @property
    def has_fmc(self) -> bool:
        """Whether the TCB has a part for the FMC firmware (AMD 56860, table 3)."""
        return self is Generation.TURIN

    @property
    def hardware_id_bytes(self) -> int:
        """Size of the id that names a chip to the key distribution service, in bytes."""
        return 8 if self is Generation.TURIN else 64


class SigningKey(StrEnum):
    """Which kind of key signed a report."""

    VCEK = "vcek"
    VLEK = "vlek"


_SIGNING_KEYS = {0: SigningKey.VCEK, 1: SigningKey.VLEK}
_SIGNING_KEY_NONE = 7


@dataclass(frozen=True, slots=True)
class Tcb:
    """Security version numbers of a platform's firmware; ``fmc`` is None before Turin."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None


@dataclass(frozen=True, slots=True)
class FirmwareVersion:
    """Version of the SNP firmware."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True)
class SnpReport:
    """A report. Parsed, not trusted.

    Attributes:
        signed: the bytes that the signature covers.
        signature_r, signature_s: big-endian integers.
        policy: guest policy bits; ``platform_info``, ``key_info`` likewise as in the report.
        cpuid: family, model, stepping; None in version 2.
        launch_mitigations, current_mitigations: mitigation vectors; None before version 5.
    """

    version: int
    generation: Generation
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: Tcb
    platform_info: int
    key_info: int
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: Tcb
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: Tcb
    current_version: FirmwareVersion
    committed_version: FirmwareVersion
    launch_tcb: Tcb
    launch_mitigations: int | None
    current_mitigations: int | None
    signature_r: int = field(repr=False)
    signature_s: int = field(repr=False)
    signed: bytes = field(repr=False)

    @property
    def chip_id_is_masked(self) -> bool:
        """Whether the platform's owner chose to hide the chip id (it is all zero then)."""
        return not any(self.chip_id)

    @property
    def hardware_id(self) -> bytes:
        """The id by which AMD's key distribution service knows the chip: 64 bytes, Turin 8."""
        return self.chip_id[: self.generation.hardware_id_bytes]


def generation_of(family: int, model: int) -> Generation:
    """Tell the processor from its CPUID family and model (base and extended combined).

    Raises:
        EvidenceError: no SEV-SNP processor whose keys are known here; the diagnostics name it.
    """
    if family == 0x19 and model <= 0x0F:
        return Generation.MILAN
    if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return Generation.GENOA
    if family == 0x1A and model <= 0x11:
        return Generation.TURIN
    name = f"CPUID family 0x{family:02x} model 0x{model:02x}"
    if family == 0x1A and (
        0x50 <= model <= 0x57
        or 0x90 <= model <= 0x9F
        or 0xA0 <= model <= 0xAF
        or 0xC0 <= model <= 0xC7
    ):
        name = f"EPYC Venice ({name})"
    raise EvidenceError(f"the processor {name} is not supported: only Milan, Genoa and Turin are")


def parse_report(data: bytes, *, processor: Generation | None = None) -> SnpReport:
    """Read a report.

    Args:
        data: exactly :data:`REPORT_BYTES`.
        processor: the processor that a report of version 2 comes from, which cannot say it. Of a
            later version it must agree with what the report says.

    Raises:
        EvidenceError: another size or version, an unknown processor, a reserved bit that is set,
            or a report that says it is not signed.
    """
    if len(data) != REPORT_BYTES:
        raise EvidenceError(f"an SNP report has {REPORT_BYTES} bytes, not {len(data)}")
    (
        version, guest_svn, policy, family_id, image_id, vmpl, algorithm, current_tcb,
        platform_info, key_info, reserved_4c, report_data, measurement, host_data, id_key_digest,
        author_key_digest, report_id, report_id_ma, reported_tcb, cpuid_and_reserved, chip_id,
        committed_tcb, current_version, committed_version, launch_tcb, launch_mitigations,
        current_mitigations, reserved_208, signature,
    ) = _LAYOUT.unpack(data)  # fmt: skip

    generation, cpuid = _processor(version, cpuid_and_reserved, processor)
    _check_zero("bytes 0x4c to 0x4f", reserved_4c)
    _check_zero("bytes 0x208 to 0x29f", reserved_208.strip(b"\0"))
    mitigations: tuple[int | None, int | None] = (launch_mitigations, current_mitigations)
    if version < _FIRST_WITH_MITIGATIONS:
        _check_zero("bytes 0x1f8 to 0x207", launch_mitigations | current_mitigations)
        mitigations = (None, None)
    if not policy & _POLICY_RESERVED_ONE:
        raise EvidenceError("bit 17 of the guest policy must be one")
    _check_zero("bits 26 to 63 of the guest policy", policy & ~_POLICY_KNOWN)
    _check_zero("bits 6, 8 to 63 of the platform info", platform_info & ~_PLATFORM_KNOWN)
    if algorithm != _ECDSA_P384_SHA384:
        raise EvidenceError(f"the signature algorithm is {algorithm}, not 1 (ECDSA P-384, SHA-384)")
    signature_r, signature_s = _signature(signature)
    return SnpReport(
        version=version,
        generation=generation,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        current_tcb=_tcb("current", current_tcb, generation),
        platform_info=platform_info,
        key_info=key_info,
        signing_key=_signing_key(key_info),
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=_tcb("reported", reported_tcb, generation),
        cpuid=cpuid,
        chip_id=chip_id,
        committed_tcb=_tcb("committed", committed_tcb, generation),
        current_version=_firmware_version("current", current_version),
        committed_version=_firmware_version("committed", committed_version),
        launch_tcb=_tcb("launch", launch_tcb, generation),
        launch_mitigations=mitigations[0],
        current_mitigations=mitigations[1],
        signature_r=signature_r,
        signature_s=signature_s,
        signed=data[:SIGNED_BYTES],
    )


def _check_zero(what: str, value: int | bytes) -> None:
    if value:
        raise EvidenceError(f"{what} of the report are reserved and must be zero")


def _processor(
    version: int, cpuid_and_reserved: bytes, named: Generation | None
) -> tuple[Generation, tuple[int, int, int] | None]:
    if not OLDEST_VERSION <= version <= NEWEST_VERSION:
        raise EvidenceError(
            f"report version {version} is not one of {OLDEST_VERSION} to {NEWEST_VERSION}"
        )
    if version < _FIRST_WITH_CPUID:
        _check_zero("bytes 0x188 to 0x19f", cpuid_and_reserved.strip(b"\0"))
        if named is None:
            raise EvidenceError(
                f"a report of version {version} does not say which processor it comes from:"
                " update the platform's firmware, or name the processor"
            )
        return named, None
    _check_zero("bytes 0x18b to 0x19f", cpuid_and_reserved[3:].strip(b"\0"))
    family, model, stepping = cpuid_and_reserved[:3]
    generation = generation_of(family, model)
    if named is not None and named is not generation:
        raise EvidenceError(f"the report comes from {generation}, not from {named}")
    return generation, (family, model, stepping)


def _tcb(name: str, raw: bytes, generation: Generation) -> Tcb:
    # AMD 56860, section 2.2: the parts moved when Turin got one more
    if generation.has_fmc:
        _check_zero(f"bytes 4 to 6 of the {name} TCB", raw[4:7].strip(b"\0"))
        return Tcb(fmc=raw[0], bootloader=raw[1], tee=raw[2], snp=raw[3], microcode=raw[7])
    _check_zero(f"bytes 2 to 5 of the {name} TCB", raw[2:6].strip(b"\0"))
    return Tcb(bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])


def _firmware_version(name: str, raw: bytes) -> FirmwareVersion:
    _check_zero(f"the last byte of the {name} version", raw[3])
    return FirmwareVersion(major=raw[2], minor=raw[1], build=raw[0])


def _signing_key(key_info: int) -> SigningKey:
    _check_zero("bits 5 to 31 of the key info", key_info & ~_KEY_INFO_KNOWN)
    number = key_info >> 2 & 7
    if number == _SIGNING_KEY_NONE:
        raise EvidenceError("the report says that it is not signed (signing key: none)")
    if number not in _SIGNING_KEYS:
        raise EvidenceError(f"the report names the reserved signing key {number}")
    return _SIGNING_KEYS[number]


def _signature(raw: bytes) -> tuple[int, int]:
    first, second = raw[:_SIGNATURE_PART_BYTES], raw[_SIGNATURE_PART_BYTES:]
    if first[_P384_BYTES:].strip(b"\0") or second[_P384_BYTES:].strip(b"\0"):
        raise EvidenceError("the signature is longer than one of P-384")
    return (
        int.from_bytes(first[:_P384_BYTES], "little"),
        int.from_bytes(second[:_P384_BYTES], "little"),
    )
