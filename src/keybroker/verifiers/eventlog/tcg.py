"""Numbers and names of the Trusted Computing Group that event logs are made of.

Specification: TCG PC Client Platform Firmware Profile 1.06 revision 52, section 10.4.1 (event
types); TCG Algorithm Registry 1.34, section 5.2 (algorithms).
"""

from collections.abc import Mapping
from typing import Final

EV_NO_ACTION: Final = 0x03
EV_SEPARATOR: Final = 0x04
EV_EVENT_TAG: Final = 0x06

EVENT_TYPES: Final[Mapping[int, str]] = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000002: "EV_UNUSED",
    EV_NO_ACTION: "EV_NO_ACTION",
    EV_SEPARATOR: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    EV_EVENT_TAG: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x0000000F: "EV_NONHOST_CODE",
    0x00000010: "EV_NONHOST_CONFIG",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x80000000: "EV_EFI_EVENT_BASE",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

SHA1: Final = 0x0004
SHA256: Final = 0x000B
SHA384: Final = 0x000C
SHA512: Final = 0x000D
SM3: Final = 0x0012

#: Algorithm → the name it has in claims.
ALGORITHM_NAMES: Final[Mapping[int, str]] = {
    0x0001: "RSA",
    0x0003: "TDES",
    SHA1: "SHA-1",
    SHA256: "SHA-256",
    SHA384: "SHA-384",
    SHA512: "SHA-512",
    SM3: "SM3",
}

#: Algorithm → name in hashlib and size of its digest in bytes.
HASHES: Final[Mapping[int, tuple[str, int]]] = {
    SHA1: ("sha1", 20),
    SHA256: ("sha256", 32),
    SHA384: ("sha384", 48),
    SHA512: ("sha512", 64),
    SM3: ("sm3", 32),
}


def event_type_name(event_type: int) -> str:
    """Return the name of an event type; the number in hexadecimal where it has none."""
    return EVENT_TYPES.get(event_type) or f"0x{event_type:08X}"


def algorithm_name(algorithm: int) -> str:
    """Return the name of an algorithm; the number in hexadecimal where it has none."""
    return ALGORITHM_NAMES.get(algorithm) or f"0x{algorithm:04X}"
