"""What the kernel says of a process and its children: CPU time and memory, from ``/proc``."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes; PSS counts a page shared by n processes as 1/n of it."""

    pid: int
    rss: int
    pss: int


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    members = [pid]
    for member in members:
        for task in _tasks(member):
            try:
                children = (task / "children").read_text()
            except OSError:  # it ended meanwhile
                continue
            members.extend(int(child) for child in children.split())
    return members


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, that a process and its descendants have used.

    Its resolution is a tick of the kernel's clock, 10 ms as a rule.
    """
    ticks = 0
    for member in family(pid):
        try:
            stat = Path(f"/proc/{member}/stat").read_text()
        except OSError:
            continue
        # The second field is the command's name in parentheses, and may hold anything.
        fields = stat[stat.rindex(")") + 2 :].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_SECOND


def memory(pid: int) -> list[Memory]:
    """Return the memory of a process and each of its descendants."""
    found: list[Memory] = []
    for member in family(pid):
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        sizes = {
            line.split(":")[0]: int(line.split()[1]) * 1024
            for line in rollup.splitlines()[1:]
            if line.endswith("kB")
        }
        found.append(Memory(member, sizes["Rss"], sizes["Pss"]))
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
