import pytest

from keybroker.storage.memory import MemoryStore


@pytest.fixture
def policy_namespace() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def verdicts() -> MemoryStore:
    return MemoryStore()
