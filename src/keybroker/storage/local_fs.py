r"""Values in one file each, in the layout of Trustee, whose directory can be taken over.

The value of ``default/key/1`` in namespace ``repository`` is the content of
``<dir_path>/repository/default\x2Fkey\x2F1``: each slash is written as the four characters
``\x2F``, which no key can hold.

Small files are read on the calling thread (some 15 µs where the page cache has them), large ones
in a thread. Writes, which wait for the disk, run in a thread.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from keybroker.model.errors import MalformedError, StorageError
from keybroker.storage.durable_file import (
    delete_file,
    locked,
    open_directory,
    open_file,
    read_open_file,
    stamp,
    storage_error,
    write_file,
)
from keybroker.storage.interface import check_key, is_key

_T = TypeVar("_T")

_SLASH = "\\x2F"

#: Longest file name that Linux file systems take, in bytes.
_MAX_FILE_NAME = 255

#: Files up to this size are read on the calling thread.
_INLINE_BYTES = 64 * 1024

#: Files that were changed in place, by an editor, are noticed after this time.
_SCAN_SECONDS = 1.0


def file_name(key: str) -> str:
    """Return the file name of a key.

    Raises:
        MalformedError: not a key, or one with so many slashes that its file name is too long.
    """
    name = check_key(key).replace("/", _SLASH)
    if len(name) > _MAX_FILE_NAME:
        raise MalformedError("a name must not have that many segments")
    return name


def key_of(name: str) -> str | None:
    """Return the key of a file name; None: the file is none of ours."""
    key = name.replace(_SLASH, "/")
    return key if is_key(key) else None


class LocalFsStore:
    """One namespace in a directory of its own."""

    def __init__(self, base: Path, namespace: str) -> None:
        """Open the namespace, made if it is new. Blocks; call it in a thread.

        Raises:
            StorageError: the directory cannot be made or read.
        """
        self._directory = base / namespace
        if self._directory.is_symlink():
            raise StorageError(f"{self._directory} is a symbolic link")
        open_directory(self._directory)
        self._writing = asyncio.Lock()
        self._scanned_at = float("-inf")
        self._scan: int = 0

    async def _write(self, action: Callable[[int], _T]) -> _T:
        def write() -> _T:
            with locked(self._directory) as directory:
                return action(directory)

        async with self._writing:
            return await asyncio.to_thread(write)

    async def get(self, key: str) -> bytes | None:
        path = self._directory / file_name(key)
        descriptor = open_file(path)
        if descriptor is None:
            return None
        if os.fstat(descriptor).st_size <= _INLINE_BYTES:
            return read_open_file(descriptor, path)[0]
        return (await asyncio.to_thread(read_open_file, descriptor, path))[0]

    async def version(self, key: str) -> object | None:
        return stamp(self._directory / file_name(key))

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        name = file_name(key)
        return await self._write(
            lambda directory: write_file(directory, name, value, overwrite=overwrite)
        )

    async def replace(self, key: str, value: bytes, *, expected: bytes) -> bool:
        name = file_name(key)

        def replace(directory: int) -> bool:
            descriptor = open_file(self._directory / name)
            if descriptor is None:
                return False
            stored, _ = read_open_file(descriptor, self._directory / name)
            return stored == expected and write_file(directory, name, value, overwrite=True)

        return await self._write(replace)

    async def delete(self, key: str) -> bool:
        name = file_name(key)
        return await self._write(lambda directory: delete_file(directory, name))

    async def delete_before(self, key: str) -> int:
        def delete(directory: int) -> int:
            return sum(
                delete_file(directory, file_name(name)) for name in self._list() if name < key
            )

        return await self._write(delete)

    async def keys(self) -> list[str]:
        return sorted(await asyncio.to_thread(self._list))

    async def items(self) -> Mapping[str, bytes]:
        def read() -> dict[str, bytes]:
            values = {}
            for key in sorted(self._list()):
                path = self._directory / file_name(key)
                descriptor = open_file(path)
                if descriptor is not None:  # else deleted since it was listed
                    values[key] = read_open_file(descriptor, path)[0]
            return values

        return await asyncio.to_thread(read)

    async def revision(self) -> object:
        now = time.monotonic()
        if now - self._scanned_at > _SCAN_SECONDS:
            self._scan = await asyncio.to_thread(self._scan_stamps)
            self._scanned_at = now
        # Every write of ours changes the directory, so it shows at once.
        return stamp(self._directory), self._scan

    def _list(self) -> list[str]:
        try:
            with os.scandir(self._directory) as entries:
                keys = [
                    key_of(entry.name) for entry in entries if entry.is_file(follow_symlinks=False)
                ]
        except OSError as error:
            raise storage_error(self._directory, error) from error
        return [key for key in keys if key is not None]

    def _scan_stamps(self) -> int:
        return hash(
            frozenset((key, stamp(self._directory / file_name(key))) for key in self._list())
        )
