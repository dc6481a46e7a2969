"""A namespace in a dictionary, so that policies are tested apart from the storage back ends."""

from collections.abc import Mapping

import pytest

from keybroker.storage.interface import KeyValueStore


class PlainStore:
    """The storage interface over a dict; two of what uses a store can share it."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.writes = 0
        self.reads = 0
        self._versions: dict[str, int] = {}

    async def get(self, key: str) -> bytes | None:
        self.reads += 1
        return self.values.get(key)

    async def version(self, key: str) -> object | None:
        return self._versions.get(key)

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        if not overwrite and key in self.values:
            return False
        self.writes += 1
        self.values[key] = value
        self._versions[key] = self.writes
        return True

    async def delete(self, key: str) -> bool:
        self._versions.pop(key, None)
        self.writes += 1
        return self.values.pop(key, None) is not None

    async def keys(self) -> list[str]:
        return sorted(self.values)

    async def items(self) -> Mapping[str, bytes]:
        return dict(self.values)

    async def revision(self) -> object:
        return self.writes


def _is_a_store(store: PlainStore) -> KeyValueStore:
    return store


@pytest.fixture
def plain_store() -> PlainStore:
    return PlainStore()


@pytest.fixture
def verdicts() -> PlainStore:
    return PlainStore()
