"""Opens one namespace in any back end; also run as a child process by the crash tests."""

import asyncio
import sys
from pathlib import Path

from keybroker.config.storage import (
    LocalFsConfig,
    LocalJsonConfig,
    SqliteConfig,
    StorageBackendConfig,
    StorageBackendsConfig,
    StorageType,
)
from keybroker.storage.encryption import Keyring, MasterKey
from keybroker.storage.interface import ComparingStore, StorageProvider
from keybroker.storage.provider import open_storage

KEYRING = Keyring((MasterKey(bytes(range(32))),))

#: Back ends with the name of the case; "+" marks encryption.
BACKENDS = ["Memory", "Sqlite", "Sqlite+", "LocalFs", "LocalFs+", "LocalJson", "LocalJson+"]
FILE_BACKENDS = [name for name in BACKENDS if name != "Memory"]


def configured(backend: str, directory: Path) -> StorageBackendConfig:
    return StorageBackendConfig(
        storage_type=StorageType(backend.rstrip("+")),
        backends=StorageBackendsConfig(
            local_fs=LocalFsConfig(dir_path=str(directory / "fs")),
            local_json=LocalJsonConfig(file_dir_path=str(directory / "json")),
            sqlite=SqliteConfig(path=str(directory / "sqlite" / "keybroker.db")),
        ),
    )


def opened(backend: str, directory: Path) -> StorageProvider:
    keyring = KEYRING if backend.endswith("+") else None
    return open_storage(configured(backend, directory), keyring, encrypt_local_fs=True)


async def opened_store(provider: StorageProvider, namespace: str = "repository") -> ComparingStore:
    return await provider.namespace(namespace)  # type: ignore[return-value]


async def _write_forever(backend: str, directory: Path, worker: str) -> None:
    """Write numbered values and say which one is acknowledged, until killed."""
    store = await opened_store(opened(backend, directory))
    number = 0
    while True:
        group = range(number, number + 4)
        await asyncio.gather(
            *(store.set(f"{worker}/{n % 16}", f"{n}:".encode() + b"v" * 5000) for n in group)
        )
        for n in group:
            sys.stdout.write(f"{n}\n")
        sys.stdout.flush()
        number += 4


async def _claim(backend: str, directory: Path, worker: str, count: int) -> None:
    """Try to be the first writer of each of many keys; print those that were won."""
    store = await opened_store(opened(backend, directory))
    sys.stdin.readline()
    for n in range(count):
        if await store.set(f"claim/{n}", worker.encode(), overwrite=False):
            sys.stdout.write(f"{n}\n")


async def _increment(backend: str, directory: Path, count: int) -> None:
    """Raise a shared counter by comparing and setting."""
    store = await opened_store(opened(backend, directory))
    sys.stdin.readline()
    for _ in range(count):
        while True:
            stored = await store.get("counter")
            assert stored is not None
            if await store.replace("counter", b"%d" % (int(stored) + 1), expected=stored):
                break


if __name__ == "__main__":
    action, backend, directory, *rest = sys.argv[1:]
    if action == "write":
        asyncio.run(_write_forever(backend, Path(directory), rest[0]))
    elif action == "claim":
        asyncio.run(_claim(backend, Path(directory), rest[0], int(rest[1])))
    else:
        asyncio.run(_increment(backend, Path(directory), int(rest[0])))
