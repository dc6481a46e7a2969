"""The table for people and the document for programs."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.backends.openssl import backend

from benchmarks.load import Measurement
from benchmarks.processes import Memory
from benchmarks.scripts import Scenario, describe

#: Targets that are not of one scenario.
MAXIMUM_PSS = 120 << 20
MAXIMUM_START_SECONDS = 1.0

#: A client that computes for more of the time than this may be what limits the rate; the server's
#: CPU time for each operation is not touched by it.
CLIENT_LIMIT = 0.9


@dataclass(frozen=True)
class Line:
    """A scenario's result with what it is held against."""

    scenario: Scenario
    workers: int | None
    measured: Measurement
    crypto: float

    @property
    def ratio(self) -> float | None:
        """Server CPU time over that of the bare cryptography."""
        return None if self.measured.cpu is None else self.measured.cpu / self.crypto

    @property
    def target(self) -> str:
        """The target in words; empty for none."""
        if self.scenario.maximum_cpu is not None:
            return f"≤ {self.scenario.maximum_cpu * 1e6:.0f} µs"
        if self.scenario.maximum_ratio is not None:
            return f"≤ {self.scenario.maximum_ratio:g} × crypto"
        return ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none or nothing was measured."""
        if self.measured.cpu is None or self.ratio is None:
            return None
        if self.scenario.maximum_cpu is not None:
            return self.measured.cpu <= self.scenario.maximum_cpu
        if self.scenario.maximum_ratio is not None:
            return self.ratio <= self.scenario.maximum_ratio
        return None


@dataclass(frozen=True)
class Footprint:
    """What a broker of our own took beside CPU time."""

    workers: int
    start_seconds: float
    operations: int
    memory: Sequence[Memory]


_COLUMNS = (
    "scenario",
    "workers",
    "ops/s",
    "p50 ms",
    "p99 ms",
    "CPU µs/op",
    "crypto µs",
    "ratio",
    "target",
    "met",
    "client",
)


def table(lines: Sequence[Line]) -> Iterator[str]:
    """Write the results as lines of a Markdown table."""
    rows = [_COLUMNS, *(_row(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for index, row in enumerate(rows):
        yield "| " + " | ".join(map(str.ljust, row, widths)) + " |"
        if index == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def footprint_lines(footprint: Footprint) -> Iterator[str]:
    """Write start-up time and memory as lines of text."""
    start = _verdict(footprint.start_seconds <= MAXIMUM_START_SECONDS)
    yield (
        f"{footprint.workers} worker(s): first /healthz after {footprint.start_seconds:.2f} s"
        f" (target ≤ {MAXIMUM_START_SECONDS:g} s: {start}); memory after"
        f" {footprint.operations} operations:"
    )
    for process in footprint.memory:
        met = _verdict(process.pss <= MAXIMUM_PSS)
        yield (
            f"  process {process.pid}: RSS {process.rss / 2**20:.0f} MiB,"
            f" PSS {process.pss / 2**20:.0f} MiB (target ≤ {MAXIMUM_PSS >> 20} MiB: {met})"
        )


def document(lines: Sequence[Line], footprints: Sequence[Footprint]) -> dict[str, Any]:
    """Return everything as a JSON value; times in seconds, sizes in bytes."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "openssl": backend.openssl_version_text(),
            "keybroker": version("keybroker"),
        },
        "scenarios": [_described(line) for line in lines],
        "brokers": [
            {
                "workers": footprint.workers,
                "start": footprint.start_seconds,
                "operations": footprint.operations,
                "memory": [
                    {"pid": process.pid, "rss": process.rss, "pss": process.pss}
                    for process in footprint.memory
                ],
            }
            for footprint in footprints
        ],
    }


def _row(line: Line) -> tuple[str, ...]:
    measured = line.measured
    busy = f"{measured.client_busy:.0%}" + ("!" if measured.client_busy > CLIENT_LIMIT else "")
    return (
        line.scenario.name,
        "" if line.workers is None else str(line.workers),
        f"{measured.rate:.0f}",
        f"{measured.percentile(0.5) * 1e3:.2f}",
        f"{measured.percentile(0.99) * 1e3:.2f}",
        "" if measured.cpu is None else f"{measured.cpu * 1e6:.0f}",
        f"{line.crypto * 1e6:.0f}",
        "" if line.ratio is None else f"{line.ratio:.1f}",
        line.target,
        "" if line.met is None else _verdict(line.met),
        busy,
    )


def _described(line: Line) -> dict[str, Any]:
    measured = line.measured
    return {
        "name": line.scenario.name,
        **describe(line.scenario),
        "workers": line.workers,
        "operations": measured.operations,
        "rate": measured.rate,
        "p50": measured.percentile(0.5),
        "p99": measured.percentile(0.99),
        "server_cpu": measured.cpu,
        "crypto_cpu": line.crypto,
        "ratio": line.ratio,
        "target": line.target or None,
        "met": line.met,
        "client_busy": measured.client_busy,
    }


def _verdict(met: bool) -> str:
    return "yes" if met else "no"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
