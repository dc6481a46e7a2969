"""Values in one SQLite file, shared by all workers of a machine: the embedded default.

Reads run on the calling thread: a ``SELECT`` by primary key from a database in WAL mode costs
about 4 µs and never waits for a writer, where handing it to another thread costs about 80 µs.
Listings, whose cost grows with the namespace, run in a thread. Writes that must last go through
one thread a process, which waits for the disk (:mod:`keybroker.storage.group_commit`). Writes of
what is short-lived wait for no disk, and so they too run on the calling thread where no other
process is writing at that moment.

Every row and every namespace carries a revision from a counter that the same transaction raises
and that never goes back, so one ``SELECT`` tells any process whether its copy is current.

The file must be on a local disk: WAL needs shared memory, which network file systems lack.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from keybroker.model.errors import StorageError
from keybroker.storage.durable_file import make_directories
from keybroker.storage.group_commit import GroupCommit
from keybroker.storage.interface import check_key

_T = TypeVar("_T")

#: Of so many writes on the calling thread the next goes to the writing thread, which then looks
#: after the log.
_QUICK_WRITES = 256

#: A longer log of short-lived values is moved into the database.
_LONG_LOG_BYTES = 4 * 1024 * 1024

#: How long to wait for a writer of another process.
_WRITE_BUSY_MS = 10_000

#: How long a read may wait; it only ever does while a crashed database is being recovered.
_READ_BUSY_MS = 2_000

#: "kbrk" in ASCII; tells the file from another program's (SQLite's ``application_id``).
_APPLICATION_ID = 0x6B62726B

#: Version of the tables below.
_SCHEMA_VERSION = 1

#: Entries deleted in one transaction: a bound on how long others wait for the write lock.
_DELETED_AT_ONCE = 1000

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS entries (
        namespace TEXT NOT NULL,
        key       TEXT NOT NULL,
        value     BLOB NOT NULL,
        revision  INTEGER NOT NULL,
        PRIMARY KEY (namespace, key)
    )""",
    """CREATE TABLE IF NOT EXISTS namespaces (
        namespace TEXT PRIMARY KEY,
        revision  INTEGER NOT NULL
    )""",
)

#: A row's revision is above all that its namespace had, so that a key that was deleted and written
#: anew shows another one.
_INSERT_NEW = """
    INSERT INTO entries (namespace, key, value, revision)
    VALUES (?1, ?2, ?3, 1 + coalesce((SELECT revision FROM namespaces WHERE namespace = ?1), 0))
    ON CONFLICT (namespace, key) DO NOTHING
"""

_EXPLANATIONS = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_READONLY": "the file or its directory is read-only",
    "SQLITE_CANTOPEN": "the file cannot be opened or made",
    "SQLITE_BUSY": "another process holds the database for too long",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_NOTADB": "the file is not a SQLite database",
    "SQLITE_IOERR": "the disk failed or is full",
}

#: A damaged file can also make a message that is not UTF-8, which Python then cannot decode.
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class SqliteDatabase:
    """One database file: a connection to read, one to list, and a thread to write."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Open the file, made with mode 0600 if it is new. Blocks; call it in a thread.

        Args:
            path: the database file; its directory is made with mode 0700 if it is missing.
            durable: flush the disk at every commit. False survives the death of processes but
                may lose the last writes when the machine loses power.

        Raises:
            StorageError: the file cannot be opened, made or written, or is none of ours.
        """
        self._path = path
        self.durable = durable
        try:
            make_directories(path.parent)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StorageError(f"{path} cannot be opened for writing: {error.strerror}") from error
        try:
            with contextlib.ExitStack() as opened:
                writer = opened.enter_context(contextlib.closing(self._connect(_WRITE_BUSY_MS)))
                self._prepare(writer, durable)
                self._reader = opened.enter_context(
                    contextlib.closing(self._connect(_READ_BUSY_MS))
                )
                self._lister = opened.enter_context(
                    contextlib.closing(self._connect(_READ_BUSY_MS))
                )
                self._quick = None if durable else self._connect_quickly()
                opened.pop_all()  # all are open, so they stay
        except DATABASE_ERRORS as error:
            raise self.explain(error) from error
        self._listing = asyncio.Lock()
        self._quick_writes = 0
        self._writer = GroupCommit(writer, self.explain, None if durable else self._shorten_log)

    def _connect(self, busy_ms: int) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=busy_ms / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection

    def _prepare(self, connection: sqlite3.Connection, durable: bool) -> None:
        _switch_to_wal(connection)
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION_ID:
            raise StorageError(f"{self._path} is a database of another program")
        if tables and version != _SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} has tables of version {version}; this is {_SCHEMA_VERSION}"
            )
        if not tables:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def _connect_quickly(self) -> sqlite3.Connection:
        connection = self._connect(0)
        connection.execute("PRAGMA synchronous = NORMAL")
        # Moving the log into the database is the writing thread's, at one of its commits.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def _shorten_log(self, connection: sqlite3.Connection) -> None:
        """Move the log into the database while nobody writes; quick writes would never let it."""
        log = self._path.with_name(self._path.name + "-wal")
        if log.stat().st_size > _LONG_LOG_BYTES:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    async def write(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run an operation in a transaction; see :meth:`GroupCommit.write`.

        Raises:
            StorageError: the write failed; nothing of it is stored.
        """
        connection = self._quick
        if connection is not None and self._quick_writes < _QUICK_WRITES:
            self._quick_writes += 1
            try:
                return self._write_here(connection, operation)
            except DATABASE_ERRORS:
                # Another process is writing, or worse: the thread waits, or finds out.
                pass
        self._quick_writes = 0
        return await self._writer.write(operation)

    def _write_here(
        self, connection: sqlite3.Connection, operation: Callable[[sqlite3.Connection], _T]
    ) -> _T:
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = operation(connection)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                with contextlib.suppress(*DATABASE_ERRORS):
                    connection.execute("ROLLBACK")
        return result

    def insert_quickly(self, namespace: str, key: str, value: bytes) -> bool | None:
        """Write a short-lived value where there is none, by one statement on the calling thread.

        Returns:
            Whether there was none; None: not possible now, write in the usual way.
        """
        connection = self._quick
        if connection is None or self._quick_writes >= _QUICK_WRITES:
            return None
        self._quick_writes += 1
        try:
            return connection.execute(_INSERT_NEW, (namespace, key, value)).rowcount > 0
        except DATABASE_ERRORS:
            return None

    def explain(self, error: Exception) -> StorageError:
        """Say what an error of the database means for the administrator."""
        if isinstance(error, UnicodeDecodeError):
            return StorageError(f"{self._path}: the file is damaged")
        name = getattr(error, "sqlite_errorname", "")
        known = next((text for code, text in _EXPLANATIONS.items() if name.startswith(code)), "")
        return StorageError(f"{self._path}: {known or 'the database failed'} ({name}: {error})")

    def blob(self, value: object) -> bytes:
        """Return the value of a BLOB column, which a damaged file may hold as something else.

        Raises:
            StorageError: it is something else.
        """
        if not isinstance(value, bytes):
            raise StorageError(f"{self._path}: the file is damaged (a value is no BLOB)")
        return value

    def select(self, statement: str, *parameters: object) -> tuple[object, ...] | None:
        """Return one row, on the calling thread, which must always be the same.

        Raises:
            StorageError: the database failed.
        """
        try:
            row: tuple[object, ...] | None = self._reader.execute(statement, parameters).fetchone()
        except DATABASE_ERRORS as error:
            raise self.explain(error) from error
        return row

    async def select_all(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Return all rows as of one moment.

        Raises:
            StorageError: the database failed.
        """

        def select() -> list[tuple[object, ...]]:
            try:
                return self._lister.execute(statement, parameters).fetchall()
            except DATABASE_ERRORS as error:
                raise self.explain(error) from error

        async with self._listing:
            return await asyncio.to_thread(select)

    def close(self) -> None:
        """Finish the writes that wait and close. Blocks; call it in a thread."""
        self._writer.close()
        if self._quick is not None:
            self._quick.close()
        self._reader.close()
        self._lister.close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not wait by itself where other workers are starting as well."""
    deadline = time.monotonic() + _WRITE_BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


class SqliteStore:
    """One namespace of a database."""

    def __init__(self, database: SqliteDatabase, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def get(self, key: str) -> bytes | None:
        row = self._database.select(
            "SELECT value FROM entries WHERE namespace = ? AND key = ?",
            self._namespace,
            check_key(key),
        )
        return None if row is None else self._database.blob(row[0])

    async def version(self, key: str) -> object | None:
        row = self._database.select(
            "SELECT revision FROM entries WHERE namespace = ? AND key = ?",
            self._namespace,
            check_key(key),
        )
        return None if row is None else row[0]

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        check_key(key)
        if not overwrite:
            inserted = self._database.insert_quickly(self._namespace, key, value)
            if inserted is not None:
                return inserted

        def write(connection: sqlite3.Connection) -> bool:
            if overwrite:
                self._put(connection, key, value)
                return True
            return self._put_new(connection, key, value)

        return await self._database.write(write)

    async def replace(self, key: str, value: bytes, *, expected: bytes) -> bool:
        check_key(key)

        def write(connection: sqlite3.Connection) -> bool:
            if self._stored(connection, key) != expected:
                return False
            self._put(connection, key, value)
            return True

        return await self._database.write(write)

    async def delete(self, key: str) -> bool:
        check_key(key)

        def write(connection: sqlite3.Connection) -> bool:
            deleted = connection.execute(
                "DELETE FROM entries WHERE namespace = ? AND key = ?", (self._namespace, key)
            ).rowcount
            if deleted:
                self._next_revision(connection)
            return bool(deleted)

        return await self._database.write(write)

    async def delete_before(self, key: str) -> int:
        def write(connection: sqlite3.Connection) -> int:
            deleted = connection.execute(
                "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries"
                " WHERE namespace = ? AND key < ? LIMIT ?)",
                (self._namespace, key, _DELETED_AT_ONCE),
            ).rowcount
            if deleted:
                self._next_revision(connection)
            return deleted

        total = 0
        while True:
            deleted = await self._database.write(write)
            total += deleted
            if deleted < _DELETED_AT_ONCE:
                return total

    async def keys(self) -> list[str]:
        rows = await self._database.select_all(
            "SELECT key FROM entries WHERE namespace = ? ORDER BY key", self._namespace
        )
        return [str(key) for (key,) in rows]

    async def items(self) -> Mapping[str, bytes]:
        rows = await self._database.select_all(
            "SELECT key, value FROM entries WHERE namespace = ? ORDER BY key", self._namespace
        )
        return {str(key): self._database.blob(value) for key, value in rows}

    async def revision(self) -> object:
        row = self._database.select(
            "SELECT revision FROM namespaces WHERE namespace = ?", self._namespace
        )
        revision = 0 if row is None else row[0]
        if self._database.durable:
            return revision
        # A quick insert raises no counter, but its row is the newest; a delete raises it.
        newest = self._database.select("SELECT max(rowid) FROM entries")
        return revision, newest

    def _stored(self, connection: sqlite3.Connection, key: str) -> bytes | None:
        row = connection.execute(
            "SELECT value FROM entries WHERE namespace = ? AND key = ?", (self._namespace, key)
        ).fetchone()
        return None if row is None else self._database.blob(row[0])

    def _put(self, connection: sqlite3.Connection, key: str, value: bytes) -> None:
        connection.execute(
            "INSERT INTO entries (namespace, key, value, revision) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (namespace, key)"
            " DO UPDATE SET value = excluded.value, revision = excluded.revision",
            (self._namespace, key, value, self._next_revision(connection)),
        )

    def _put_new(self, connection: sqlite3.Connection, key: str, value: bytes) -> bool:
        inserted = connection.execute(_INSERT_NEW, (self._namespace, key, value)).rowcount
        if inserted:
            self._next_revision(connection)
        return bool(inserted)

    def _next_revision(self, connection: sqlite3.Connection) -> int:
        (revision,) = connection.execute(
            "INSERT INTO namespaces (namespace, revision) VALUES (?, 1)"
            " ON CONFLICT (namespace) DO UPDATE SET revision = revision + 1 RETURNING revision",
            (self._namespace,),
        ).fetchone()
        return int(revision)
