"""Event logs of software TDs: what firmware and agent would have logged, and what it extends.

Specification: TCG PC Client Platform Firmware Profile 1.06, section 10.2.2; UEFI 2.11, section 38.
"""

import hashlib
from collections.abc import Mapping
from struct import pack
from typing import Final

_SHA384: Final = 0x000C
_EV_NO_ACTION: Final = 3
_EV_SEPARATOR: Final = 4
_EV_EVENT_TAG: Final = 6
_EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
_AAEL_TAG: Final = 0x4141454C
_LOAD_OPTIONS_TAG: Final = 0x8F3B22ED

_HEADER_BODY: Final = b"Spec ID Event03".ljust(24, b"\0") + pack("<IHH", 1, _SHA384, 48) + b"\0"
_HEADER: Final = pack("<II20sI", 0, _EV_NO_ACTION, bytes(20), len(_HEADER_BODY)) + _HEADER_BODY


class SoftwareEventLog:
    """A log under construction, and the registers that it gives."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._registers = {index: bytes(48) for index in (1, 2, 3, 4)}
        self._padding = 0

    @classmethod
    def linux(
        cls, kernel: bytes = b"software kernel", command_line: str = "console=hvc0"
    ) -> "SoftwareEventLog":
        """Log a direct boot of a Linux kernel, as TDVF does it.

        Args:
            kernel: what stands for the image; its SHA-384 is the reference value ``tdvfkernel``.
            command_line: its SHA-384 in UTF-16 with a zero is ``tdvfkernelparams``.
        """
        log = cls()
        log.add(1, _EV_SEPARATOR, bytes(4))
        log.add(2, _EV_SEPARATOR, bytes(4))
        path = pack("<BBH", 4, 4, 18) + "kernel".encode("utf-16-le") + bytes(2)
        path += pack("<BBH", 0x7F, 0xFF, 4)
        image = pack("<QQQQ", 0x7CB30018, len(kernel), 0, len(path)) + path
        log.add(2, _EV_EFI_BOOT_SERVICES_APPLICATION, image, hashlib.sha384(kernel).digest())
        label = b"LOADED_IMAGE::LoadOptions\0"
        log.add(
            3,
            _EV_EVENT_TAG,
            pack("<II", _LOAD_OPTIONS_TAG, len(label)) + label,
            cls.command_line_digest(command_line),
        )
        return log

    @staticmethod
    def command_line_digest(command_line: str) -> bytes:
        """Return the digest that the firmware extends for a kernel command line, 48 bytes."""
        return hashlib.sha384(command_line.encode("utf-16-le") + bytes(2)).digest()

    def add(self, register: int, event_type: int, data: bytes, digest: bytes | None = None) -> None:
        """Log an event and extend a register.

        Args:
            register: TCG index, 1 to 4 for RTMR 0 to 3.
            event_type: number of the type.
            data: what is logged.
            digest: what is extended, 48 bytes; default: SHA-384 of the data.
        """
        digest = digest if digest is not None else hashlib.sha384(data).digest()
        self._events.append(
            pack("<IIIH", register, event_type, 1, _SHA384) + digest + pack("<I", len(data)) + data
        )
        extended = hashlib.sha384(self._registers[register] + digest).digest()
        self._registers[register] = extended

    def add_agent_event(self, domain: str, operation: str, content: str) -> None:
        """Log what an attestation agent does, into RTMR 3."""
        entry = f"{domain} {operation} {content}".encode()
        self.add(4, _EV_EVENT_TAG, pack("<II", _AAEL_TAG, len(entry)) + entry)

    def pad(self, size: int) -> None:
        """Make the memory area of the log at least this many bytes."""
        self._padding = size

    @property
    def registers(self) -> Mapping[int, bytes]:
        """TCG index → 48 bytes."""
        return dict(self._registers)

    @property
    def raw(self) -> bytes:
        """The log as it lies in memory."""
        return (_HEADER + b"".join(self._events) + b"\xff" * 8).ljust(self._padding, b"\xff")
