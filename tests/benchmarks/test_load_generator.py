"""The load generator: it must count and time what happened, and stop at what should not happen."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.connection import Budget, Connection, UnexpectedAnswerError, content_length
from benchmarks.crypto import crypto_seconds
from benchmarks.load import Measurement
from benchmarks.processes import cpu_seconds, family, memory
from benchmarks.report import Line, table
from benchmarks.scripts import SCENARIOS, Scenario, require_ok, session_cookie

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Counting:
    """A script of two requests an operation."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    def start(self) -> bytes:
        return b"first\n"

    def advance(self, head: bytes, body: bytes) -> bytes | None:
        require_ok(head, body)
        self.answers.append(body)
        return b"second\n" if len(self.answers) % 2 else None


async def play(answers: Callable[[], list[bytes]], budget: Budget) -> tuple[Counting, list[float]]:
    """Play the script against a server that answers each line with these pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            for piece in answers():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    script = Counting()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(script), "127.0.0.1", port)
        try:
            return script, await connection.play(budget)
        finally:
            connection.close()


@pytest.mark.parametrize(
    "pieces", [[OK], [OK[:10], OK[10:]], [OK[:-1], OK[-1:]], [bytes([byte]) for byte in OK]]
)
async def test_answers_are_put_together_however_they_arrive(pieces: list[bytes]) -> None:
    script, latencies = await play(lambda: pieces, Budget(3, float("inf")))
    assert len(latencies) == 3
    assert script.answers == [b"{}"] * 6
    assert all(0 < latency < 30 for latency in latencies)


async def test_time_bounds_a_run_as_well() -> None:
    _, latencies = await play(lambda: [OK], Budget(10**9, time.perf_counter() + 0.05))
    assert latencies


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_needed_ends_the_run(answer: bytes) -> None:
    with pytest.raises(UnexpectedAnswerError):
        await play(lambda: [answer], Budget(3, float("inf")))


def test_headers_are_read_in_any_case() -> None:
    assert content_length(b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH:  12\r\nX: 1") == 12
    assert content_length(b"HTTP/1.1 204 No Content\r\nX: 1") == 0
    head = b"HTTP/1.1 200 OK\r\nSet-Cookie: kbs-session-id=abc; Path=/kbs\r\nX: 1"
    assert session_cookie(head) == b"kbs-session-id=abc"
    with pytest.raises(UnexpectedAnswerError):
        session_cookie(b"HTTP/1.1 200 OK\r\nX: kbs-session-id=abc")


def test_the_time_of_children_is_counted() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert len(family(process.pid)) == 2
        assert cpu_seconds(process.pid) >= 0.25
        sizes = memory(process.pid)
        assert [size.pid for size in sizes] == family(process.pid)
        assert all(0 < size.pss <= size.rss for size in sizes)
    finally:
        process.communicate(b"\n")


def test_a_process_that_is_gone_has_used_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu_seconds(process.pid) == 0
    assert memory(process.pid) == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_each_scenario_has_its_cryptography(scenario: Scenario) -> None:
    assert 0 < crypto_seconds(scenario) < 0.1


def test_the_table_says_whether_a_target_is_met() -> None:
    auth, bearer = SCENARIOS[0], SCENARIOS[-1]
    measured = Measurement(10, 1.0, [0.001 * n for n in range(10)], 0.002, 0.95)
    unknown = Measurement(10, 1.0, [0.001], None, 0.5)
    lines = list(
        table(
            [
                Line(auth, 1, measured, 1e-6),
                Line(bearer, 2, measured, 1e-6),
                Line(bearer, None, unknown, 1e-6),
            ]
        )
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[2][0] == "auth"
    assert [row[9] for row in cells[2:]] == ["no", "no", ""]
    assert cells[2][10] == "95%!"
    assert len({len(line) for line in lines}) == 1


def test_the_command_measures_a_broker_of_its_own(tmp_path: Path) -> None:
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--workers", "1", "--clients", "1"),
            *("--connections", "2", "--operations", "20", "--seconds", "1"),
            *("--json", str(tmp_path / "result.json")),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    for scenario in SCENARIOS:
        assert scenario.name in completed.stdout
    assert "first /healthz after" in completed.stdout
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["brokers"][0]["operations"] >= 10_000
