"""Values in the memory of one process; gone with it, and unseen by other workers."""

import itertools
from collections.abc import Mapping

from keybroker.storage.interface import check_key


class MemoryStore:
    """One namespace in a dictionary. Nothing awaits, so every method is one step."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[bytes, int]] = {}
        self._counter = itertools.count(1)
        self._revision = 0

    async def get(self, key: str) -> bytes | None:
        entry = self._entries.get(check_key(key))
        return None if entry is None else entry[0]

    async def version(self, key: str) -> object | None:
        entry = self._entries.get(check_key(key))
        return None if entry is None else entry[1]

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        if not overwrite and check_key(key) in self._entries:
            return False
        self._revision = next(self._counter)
        self._entries[check_key(key)] = (bytes(value), self._revision)
        return True

    async def replace(self, key: str, value: bytes, *, expected: bytes) -> bool:
        entry = self._entries.get(check_key(key))
        if entry is None or entry[0] != expected:
            return False
        return await self.set(key, value)

    async def delete(self, key: str) -> bool:
        if self._entries.pop(check_key(key), None) is None:
            return False
        self._revision = next(self._counter)
        return True

    async def delete_before(self, key: str) -> int:
        before = [name for name in self._entries if name < key]
        for name in before:
            del self._entries[name]
        if before:
            self._revision = next(self._counter)
        return len(before)

    async def keys(self) -> list[str]:
        return sorted(self._entries)

    async def items(self) -> Mapping[str, bytes]:
        return {key: value for key, (value, _) in sorted(self._entries.items())}

    async def revision(self) -> object:
        return self._revision
