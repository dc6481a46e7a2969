"""The event log that explains a TDX guest's runtime measurement registers.

Two logs follow each other: the firmware's (CCEL, an ACPI table) and the attestation agent's
(AAEL), both as a sequence of TCG_PCR_EVENT2. The end is marked by eight 0xFF bytes.

Specification: TCG PC Client Platform Firmware Profile 1.06, section 10.2; UEFI 2.11, section 38.
"""

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path

from keybroker.client.errors import AttesterError

#: The firmware's log.
CCEL_PATH = Path("/sys/firmware/acpi/tables/data/CCEL")

#: The attestation agent's log, unless ``AAEL_PATH`` says otherwise.
AAEL_PATH = Path("/run/attestation-agent/eventlog")

_EV_NO_ACTION = 3
_DIGEST_BYTES = {0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32}
_END = b"\xff" * 8
_ENDS = (_END, bytes(8))

#: First event of a log that has no CCEL: EV_NO_ACTION on register 3 with a 37-byte header that
#: names SHA-384 (0x000C, 48 bytes) and SM3 (0x0012, 32 bytes) as the digests that follow.
_HEADER = (
    bytes(4)
    + _EV_NO_ACTION.to_bytes(4, "little")
    + bytes(20)
    + (37).to_bytes(4, "little")
    + bytes(24)
    + (2).to_bytes(4, "little")
    + bytes.fromhex("0c003000")
    + bytes.fromhex("12002000")
    + bytes(1)
)


def _agent_log_path() -> Path:
    return Path(os.environ.get("AAEL_PATH") or AAEL_PATH)


@dataclass(frozen=True)
class EventLogFiles:
    """Where the two logs are."""

    firmware: Path = CCEL_PATH
    agent: Path = field(default_factory=_agent_log_path)


def read_eventlog(files: EventLogFiles) -> str | None:
    """Read both logs, as one, in base64; None where the guest has neither.

    Raises:
        AttesterError: a log cannot be read, or the firmware's is malformed.
    """
    firmware = _read(files.firmware)
    agent = _read(files.agent)
    if firmware is None and agent is None:
        return None
    log = _HEADER if firmware is None else trim_ccel(firmware)
    return base64.b64encode(log + (agent or b"") + _END).decode()


def trim_ccel(ccel: bytes) -> bytes:
    """Cut the firmware's log at its last event: the ACPI table is as large as its memory area.

    Raises:
        AttesterError: an event goes beyond the table, or a digest algorithm is unknown.
    """
    position = 8 + 20
    if _u32(ccel, 4) == _EV_NO_ACTION:
        position += 4 + _u32(ccel, position)
    while True:
        if position + 8 > len(ccel):
            raise AttesterError("the CCEL event log has no end")
        if ccel[position : position + 8] in _ENDS:
            return ccel[:position]
        position += 8
        digests = _u32(ccel, position)
        position += 4
        for _ in range(digests):
            algorithm = int.from_bytes(ccel[position : position + 2], "little")
            size = _DIGEST_BYTES.get(algorithm)
            if size is None:
                raise AttesterError(f"the CCEL event log uses digest algorithm {algorithm:#06x}")
            position += 2 + size
        position += 4 + _u32(ccel, position)


def _u32(log: bytes, position: int) -> int:
    if position + 4 > len(log):
        raise AttesterError("the CCEL event log is cut off")
    return int.from_bytes(log[position : position + 4], "little")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AttesterError(f"event log: {error.strerror}: {path}") from None
