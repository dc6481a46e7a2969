"""Plays a scenario from several client processes at once, and measures both sides meanwhile."""

import asyncio
import multiprocessing
import ssl
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benchmarks.connection import Budget, Connection
from benchmarks.processes import cpu_seconds
from benchmarks.scripts import Scenario, make_script

#: Part of the operations that is run first and not measured, so that caches and sessions are there.
_WARM_UP_OPERATIONS = 20
_WARM_UP_SECONDS = 2.0

#: A client that has not finished this long after its deadline hangs.
_GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """How hard to ask.

    Attributes:
        processes: client processes.
        connections: of each process.
        operations: bound of all processes together.
        seconds: bound in time.
    """

    url: str
    processes: int
    connections: int
    operations: int
    seconds: float
    platform: Path | None
    cert_file: Path | None


@dataclass(frozen=True)
class Measurement:
    """What a run showed; times in seconds.

    Attributes:
        server_cpu: of all operations; None where the server's process is not known.
        client_busy: part of the wall time that the busiest client process computed.
    """

    operations: int
    wall: float
    latencies: list[float]
    server_cpu: float | None
    client_busy: float

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.wall

    @property
    def cpu(self) -> float | None:
        """Server CPU time of one operation."""
        return None if self.server_cpu is None else self.server_cpu / self.operations

    def percentile(self, part: float) -> float:
        """Return the latency that this part of the operations did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


class LoadError(Exception):
    """A client failed."""


def run_load(scenario: Scenario, plan: Plan, server_pid: int | None) -> Measurement:
    """Play a scenario.

    Raises:
        LoadError: a client got another answer than it needs, or none.
    """
    # Spawned, not forked: a client must share nothing with the process that measures.
    context = multiprocessing.get_context("spawn")
    pipes: list[Pipe] = []
    clients = []
    try:
        for _ in range(plan.processes):
            ours, theirs = context.Pipe()
            client = context.Process(target=_client, args=(scenario, plan, theirs), daemon=True)
            client.start()
            theirs.close()
            pipes.append(ours)
            clients.append(client)
        for pipe in pipes:
            _receive(pipe, _GRACE_SECONDS)
        cpu_before = None if server_pid is None else cpu_seconds(server_pid)
        began = time.perf_counter()
        for pipe in pipes:
            pipe.send("go")
        results = [_receive(pipe, plan.seconds + _GRACE_SECONDS) for pipe in pipes]
        wall = time.perf_counter() - began
        server_cpu = None
        if server_pid is not None and cpu_before is not None:
            server_cpu = cpu_seconds(server_pid) - cpu_before
    finally:
        for pipe in pipes:
            pipe.close()
        for client in clients:
            client.join(5)
            if client.is_alive():
                client.terminate()
    latencies = [latency for measured, _ in results for latency in measured]
    if not latencies:
        raise LoadError("no operation finished in time")
    busy = max(cpu for _, cpu in results) / wall
    return Measurement(len(latencies), wall, latencies, server_cpu, busy)


def _receive(pipe: Pipe, seconds: float) -> tuple[list[float], float]:
    try:
        if not pipe.poll(seconds):
            raise LoadError("a client does not finish")
        message = pipe.recv()
    except EOFError:
        raise LoadError("a client ended without a word") from None
    if isinstance(message, str):
        raise LoadError(message)
    result: tuple[list[float], float] = message
    return result


def _client(scenario: Scenario, plan: Plan, pipe: Pipe) -> None:
    try:
        uvloop.run(_play(scenario, plan, pipe))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


async def _play(scenario: Scenario, plan: Plan, pipe: Pipe) -> None:
    loop = asyncio.get_running_loop()
    parts = urlsplit(plan.url)
    tls = None
    if parts.scheme == "https":
        tls = ssl.create_default_context(cafile=plan.cert_file)
    connections: list[Connection] = []
    for _ in range(plan.connections):
        script = make_script(scenario, plan.url, plan.platform)
        _, connection = await loop.create_connection(
            lambda script=script: Connection(script),
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            ssl=tls,
        )
        connections.append(connection)
    warm_up_until = time.perf_counter() + _WARM_UP_SECONDS
    for connection in connections:  # each on its own: all must get their session
        await connection.play(Budget(1, float("inf")))
    warm_up = Budget(_WARM_UP_OPERATIONS * plan.connections, warm_up_until)
    await asyncio.gather(*(connection.play(warm_up) for connection in connections))
    pipe.send(([], 0.0))
    await loop.run_in_executor(None, pipe.recv)
    cpu = time.process_time()
    budget = Budget(plan.operations // plan.processes, time.perf_counter() + plan.seconds)
    played = await asyncio.gather(*(connection.play(budget) for connection in connections))
    cpu = time.process_time() - cpu
    for connection in connections:
        connection.close()
    pipe.send(([latency for latencies in played for latency in latencies], cpu))
