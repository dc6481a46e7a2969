"""Evidence through the Linux interface that is the same for all TEEs: configfs TSM reports.

A guest makes a directory below ``/sys/kernel/config/tsm/report``, writes the report data to its
``inblob``, and reads the report from ``outblob`` and what goes with it (for SNP the certificate
table) from ``auxblob``. ``generation`` counts the writes, so that a reader can tell that nobody
else wrote to the same directory in between.

Specification: Linux, Documentation/ABI/testing/configfs-tsm-report.
"""

import base64
import contextlib
import errno
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keybroker.client.attesters.cc_eventlog import EventLogFiles, read_eventlog
from keybroker.client.attesters.snp_report import parse_cert_table, report_to_json
from keybroker.client.errors import AttesterError
from keybroker.model.hashes import fit
from keybroker.model.tee import Tee

#: Where Linux 6.7 and later have it, once configfs is mounted.
TSM_REPORT_ROOT = Path("/sys/kernel/config/tsm/report")

#: Size of ``inblob`` in bytes, for SNP and TDX.
REPORT_DATA_BYTES = 64

#: ``provider`` of each kind that is supported.
PROVIDERS = {"sev_guest": Tee.SNP, "tdx_guest": Tee.TDX}

#: Another writer in the same directory is a mistake somewhere, but may be a passing one.
_MAX_ATTEMPTS = 3

#: Kernel answers that mean "somebody else wrote meanwhile" (report is stale).
_STALE = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EBUSY})


@dataclass(frozen=True)
class TsmReport:
    """What the kernel handed out: ``auxblob`` is empty where the provider has none."""

    tee: Tee
    outblob: bytes
    auxblob: bytes


@contextmanager
def report_entry(root: Path) -> Iterator[Path]:
    """Make a report directory, and remove it at the end; the kernel fills it with attributes."""
    entry = root / f"keybroker-{secrets.token_hex(8)}"
    entry.mkdir(mode=0o700)
    try:
        yield entry
    finally:
        # Attributes go with their directory, so this is rmdir and no tree removal.
        with contextlib.suppress(OSError):
            entry.rmdir()


#: Makes and removes a report directory below a root.
EntryMaker = Callable[[Path], AbstractContextManager[Path]]


class ConfigfsTsmAttester:
    """Attests the SNP or TDX guest that this machine is."""

    def __init__(
        self,
        root: Path = TSM_REPORT_ROOT,
        *,
        entry: EntryMaker = report_entry,
        eventlog: EventLogFiles | None = None,
    ) -> None:
        """Find out which TEE this is.

        Args:
            root: the ``report`` directory of TSM.
            entry: how a report directory comes and goes.
            eventlog: where a TDX guest's event logs are.

        Raises:
            AttesterError: there is no such directory, it may not be used, or its provider is
                unknown.
        """
        self._root = root
        self._entry = entry
        self._eventlog = eventlog if eventlog is not None else EventLogFiles()
        with self._report_directory() as directory:
            self._tee = _read_provider(directory)

    @property
    def tee(self) -> Tee:
        return self._tee

    def evidence(self, report_data: bytes) -> Any:
        """Return ``{attestation_report, cert_chain}`` for SNP, ``{quote, cc_eventlog}`` for TDX."""
        report = self.report(report_data)
        if report.tee is Tee.SNP:
            return {
                "attestation_report": report_to_json(report.outblob),
                "cert_chain": parse_cert_table(report.auxblob) or None,
            }
        return {
            "quote": base64.b64encode(report.outblob).decode(),
            "cc_eventlog": read_eventlog(self._eventlog),
        }

    def report(self, report_data: bytes) -> TsmReport:
        """Let the hardware sign ``report_data``.

        Args:
            report_data: at most 64 bytes; padded with zero bytes.

        Raises:
            AttesterError: the kernel refused, or others keep writing to the same directory.
        """
        if len(report_data) > REPORT_DATA_BYTES:
            raise AttesterError(f"report data of {len(report_data)} bytes is longer than 64 bytes")
        for _ in range(_MAX_ATTEMPTS):
            with self._report_directory() as directory:
                report = _request_report(directory, fit(report_data, REPORT_DATA_BYTES))
            if report is not None:
                return report
        raise AttesterError("another process keeps writing to the TSM report directory")

    @contextmanager
    def _report_directory(self) -> Iterator[Path]:
        try:
            with self._entry(self._root) as directory:
                yield directory
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise AttesterError(f"configfs TSM report: {reason}: {error.filename}") from error


def _read_provider(directory: Path) -> Tee:
    provider = (directory / "provider").read_text(errors="replace").strip()
    try:
        return PROVIDERS[provider]
    except KeyError:
        raise AttesterError(f"TSM provider {provider[:32]!r} is not supported") from None


def _request_report(directory: Path, inblob: bytes) -> TsmReport | None:
    """Return the report, or None where somebody else wrote to the directory in between."""
    tee = _read_provider(directory)
    writes = 0
    floor = _read_privilege_floor(directory)
    if floor > 0:
        # Below an SVSM the guest runs at a lower privilege, and asking for level 0 is refused.
        (directory / "privlevel").write_text(str(floor))
        writes += 1
    (directory / "inblob").write_bytes(inblob)
    writes += 1
    try:
        outblob = (directory / "outblob").read_bytes()
        auxblob = _read_optional(directory / "auxblob")
    except OSError as error:
        if error.errno in _STALE:
            return None
        raise
    return TsmReport(tee, outblob, auxblob) if _read_generation(directory) == writes else None


def _read_privilege_floor(directory: Path) -> int:
    text = _read_optional(directory / "privlevel_floor").strip()
    return int(text) if text.isdigit() else 0


def _read_generation(directory: Path) -> int:
    text = (directory / "generation").read_text(errors="replace").strip()
    if not text.isdecimal():
        raise AttesterError("TSM generation is not a number")
    return int(text)


def _read_optional(attribute: Path) -> bytes:
    try:
        return attribute.read_bytes()
    except FileNotFoundError:
        return b""
