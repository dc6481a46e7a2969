"""Values in one JSON file a namespace, in the format of Trustee, whose files can be taken over.

``<file_dir_path>/<namespace>`` holds one object: key → value in base64url with padding. The parsed
file is kept in memory until its stamp changes; each write writes the whole file anew, so this is
for few and small values.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from keybroker.model.errors import MalformedError, StorageError
from keybroker.model.strict_json import parse_json
from keybroker.storage.durable_file import (
    Stamp,
    locked,
    open_directory,
    open_file,
    read_open_file,
    stamp,
    write_file,
)
from keybroker.storage.interface import check_key, is_key

#: Changes the entries, and says whether it did.
_Change = Callable[[dict[str, str]], bool]


class LocalJsonStore:
    """One namespace in one file."""

    def __init__(self, base: Path, namespace: str) -> None:
        """Open the namespace, made if it is new. Blocks; call it in a thread.

        Raises:
            StorageError: the file cannot be made or read, or is not of the format.
        """
        self._base = base
        self._namespace = namespace
        self._path = base / namespace
        self._stamp: Stamp | None = None
        self._entries: dict[str, str] = {}
        self._writing = asyncio.Lock()
        open_directory(base)
        if stamp(self._path) is None:
            with locked(base) as directory:
                write_file(directory, namespace, b"{}", overwrite=False)
        self._stamp, self._entries = self._read()

    def _read(self) -> tuple[Stamp, dict[str, str]]:
        descriptor = open_file(self._path)
        if descriptor is None:
            raise StorageError(f"{self._path} was removed")
        content, read_stamp = read_open_file(descriptor, self._path)
        try:
            entries = parse_json(content)
        except MalformedError as error:
            raise StorageError(f"{self._path}: {error.diagnostics()}") from None
        if not isinstance(entries, dict) or not all(
            isinstance(value, str) for value in entries.values()
        ):
            raise StorageError(f"{self._path} is not an object of strings")
        return read_stamp, entries

    async def _current(self) -> dict[str, str]:
        if stamp(self._path) != self._stamp:
            self._stamp, self._entries = await asyncio.to_thread(self._read)
        return self._entries

    def _decode(self, encoded: str) -> bytes:
        try:
            return base64.b64decode(encoded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise StorageError(f"{self._path} holds a value that is not base64url") from None

    async def _write(self, change: _Change) -> bool:
        def write() -> bool:
            with locked(self._base) as directory:
                _, entries = self._read()
                if not change(entries):
                    return False
                content = json.dumps(entries, separators=(",", ":")).encode()
                return write_file(directory, self._namespace, content, overwrite=True)

        async with self._writing:
            return await asyncio.to_thread(write)

    async def get(self, key: str) -> bytes | None:
        encoded = (await self._current()).get(check_key(key))
        return None if encoded is None else self._decode(encoded)

    async def version(self, key: str) -> object | None:
        return self._stamp if check_key(key) in await self._current() else None

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        check_key(key)
        encoded = base64.urlsafe_b64encode(value).decode("ascii")

        def put(entries: dict[str, str]) -> bool:
            if not overwrite and key in entries:
                return False
            entries[key] = encoded
            return True

        return await self._write(put)

    async def replace(self, key: str, value: bytes, *, expected: bytes) -> bool:
        check_key(key)
        encoded = base64.urlsafe_b64encode(value).decode("ascii")

        def put(entries: dict[str, str]) -> bool:
            if key not in entries or self._decode(entries[key]) != expected:
                return False
            entries[key] = encoded
            return True

        return await self._write(put)

    async def delete(self, key: str) -> bool:
        check_key(key)
        return await self._write(lambda entries: entries.pop(key, None) is not None)

    async def delete_before(self, key: str) -> int:
        before: list[str] = []

        def delete(entries: dict[str, str]) -> bool:
            before[:] = [name for name in entries if is_key(name) and name < key]
            for name in before:
                del entries[name]
            return bool(before)

        await self._write(delete)
        return len(before)

    async def keys(self) -> list[str]:
        return sorted(key for key in await self._current() if is_key(key))

    async def items(self) -> Mapping[str, bytes]:
        entries = await self._current()
        return {key: self._decode(entries[key]) for key in await self.keys()}

    async def revision(self) -> object:
        return stamp(self._path)
