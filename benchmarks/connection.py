"""HTTP/1.1 over one kept-alive connection, with as little work of ours as can be.

A script says what to send and what to make of each answer, by plain calls: futures and tasks
would cost the client as much as the requests do.
"""

import asyncio
import time
from typing import Protocol, cast


class Script(Protocol):
    """One operation after the other, each of one or more requests."""

    def start(self) -> bytes:
        """Return the first request of the next operation."""

    def advance(self, head: bytes, body: bytes) -> bytes | None:
        """Take an answer (status line and headers, body); None: the operation is complete.

        Raises:
            UnexpectedAnswerError: not the answer that the script needs.
        """


class UnexpectedAnswerError(Exception):
    """The broker answered otherwise than the script needs."""


class Budget:
    """How many operations may still start; shared by the connections of one process."""

    def __init__(self, operations: int, deadline: float) -> None:
        self._left = operations
        self._deadline = deadline

    def take(self) -> bool:
        """Return whether one more operation may start."""
        if self._left <= 0 or time.perf_counter() >= self._deadline:
            return False
        self._left -= 1
        return True


class Connection(asyncio.Protocol):
    """Plays a script until its budget is used up."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._began = 0.0
        self._budget = Budget(0, 0.0)
        self._latencies: list[float] = []
        self._done: asyncio.Future[None] | None = None

    async def play(self, budget: Budget) -> list[float]:
        """Run operations; return the seconds that each took.

        Raises:
            UnexpectedAnswerError: the broker answered otherwise than expected, or hung up.
        """
        self._budget = budget
        self._latencies = []
        self._done = asyncio.get_running_loop().create_future()
        self._next()
        await self._done
        return self._latencies

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(UnexpectedAnswerError(f"the broker closed the connection: {error}"))

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            self._received = received
            return
        head = received[:end]
        try:
            length = content_length(head)
            if len(received) < end + 4 + length:
                self._received = received
                return
            self._received = b""
            request = self._script.advance(head, received[end + 4 : end + 4 + length])
        except Exception as error:
            self._fail(error)
            return
        if request is None:
            self._latencies.append(time.perf_counter() - self._began)
            self._next()
        else:
            self._send(request)

    def _next(self) -> None:
        if not self._budget.take():
            if self._done is not None and not self._done.done():
                self._done.set_result(None)
            return
        self._began = time.perf_counter()
        self._send(self._script.start())

    def _send(self, request: bytes) -> None:
        if self._transport is not None:
            self._transport.write(request)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


def content_length(head: bytes) -> int:
    """Return the length of the body that a head announces, in bytes.

    Raises:
        UnexpectedAnswerError: it announces none; brokers' answers are short and not chunked.
    """
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    if start < 0:
        if lowered.startswith((b"http/1.1 204", b"http/1.1 304")):
            return 0
        raise UnexpectedAnswerError("the answer has no content-length")
    end = lowered.find(b"\r\n", start + 2)
    return int(lowered[start + 17 : end if end >= 0 else None])


def require_ok(head: bytes, body: bytes) -> None:
    """Raise UnexpectedAnswerError unless the status is 200."""
    if not head.startswith(b"HTTP/1.1 200"):
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        raise UnexpectedAnswerError(f"{status}: {body[:300].decode('utf-8', 'replace')}")
