"""One thread that writes to a SQLite database, and shares each commit among all who wait.

A durable commit costs a flush of the disk, whatever it holds. Writes that arrive while one flush
runs therefore go into one transaction together: throughput grows with the load while each writer
still waits for its own flush.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from keybroker.model.errors import StorageError

_T = TypeVar("_T")

#: Most writes in one transaction: a bound on how long the write lock is held and on what must be
#: repeated one by one where one of them fails.
MAX_GROUP = 256


@dataclass(frozen=True, slots=True)
class _Write:
    operation: Callable[[sqlite3.Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


class GroupCommit:
    """The writer of one database in this process."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        explain: Callable[[Exception], StorageError],
        tidy: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        """Start the thread; it owns the connection from now on and closes it.

        Args:
            connection: opened with ``check_same_thread=False`` and ``isolation_level=None``.
            explain: says what an error of the database means.
            tidy: called after each commit, on the thread and outside of transactions.
        """
        self._connection = connection
        self._explain = explain
        self._tidy = tidy
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def write(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run the operation in a transaction and return its result once that is durable.

        Args:
            operation: executes statements; may be run a second time where a write that shared its
                transaction failed, so it must have no other effect.

        Raises:
            StorageError: the write failed; nothing of it is stored.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        with self._lock:
            if not self._open:
                raise StorageError("the database was closed")
            self._queue.put(_Write(operation, loop, future))
        # A cancelled waiter must not leave others in doubt whether the write happens: it does.
        return await asyncio.shield(future)

    def close(self) -> None:
        """Finish the writes that wait, then close the connection."""
        with self._lock:
            if self._open:
                self._open = False
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            first = self._queue.get()
            group: list[_Write] = []
            if first is None:
                break
            group.append(first)
            while len(group) < MAX_GROUP:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    closing = True
                    break
                group.append(following)
            self._commit(group)
            if self._tidy is not None:
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._tidy(self._connection)
        self._connection.close()

    def _commit(self, group: list[_Write]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except Exception as error:  # another process holds the lock: so for each of them
            for write in group:
                _fail(write, self._explained(error))
            return
        try:
            results = [write.operation(self._connection) for write in group]
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            if len(group) == 1:
                _fail(group[0], self._explained(error))
                return
            # One of them spoilt it for all (or the disk is full): each alone, each its own result.
            for write in group:
                self._commit([write])
            return
        for write, result in zip(group, results, strict=True):
            _succeed(write, result)

    def _explained(self, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        return self._explain(error)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # some errors have rolled back already
            with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
                self._connection.execute("ROLLBACK")


def _succeed(write: _Write, result: Any) -> None:
    _settle(write, lambda: write.future.set_result(result))


def _fail(write: _Write, error: StorageError) -> None:
    _settle(write, lambda: write.future.set_exception(error))


def _settle(write: _Write, action: Callable[[], None]) -> None:
    def settle() -> None:
        if not write.future.done():
            action()

    try:
        write.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop of the waiter is gone, and so is the waiter
        return
