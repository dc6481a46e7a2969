"""Full disks, read-only directories, damaged and foreign files: a clear error, nothing lost."""

import asyncio
import contextlib
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storage_backends import FILE_BACKENDS, configured, opened, opened_store

from keybroker.config.storage import StorageBackendConfig, StorageType
from keybroker.model.errors import ConfigError, StorageError
from keybroker.storage.provider import open_storage

_BIG = os.urandom(3_000_000)


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs; needs the right to mount."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / f"mount{len(mounted)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        mounted.append(point)
        return point

    yield mount
    for point in mounted:
        subprocess.run(["umount", "-l", str(point)], check=True)


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_a_full_disk_refuses_the_write_and_keeps_the_rest(
    backend: str, mount_tmpfs: Callable[[str], Path]
) -> None:
    directory = mount_tmpfs("size=2m")
    provider = opened(backend, directory)
    store = await opened_store(provider)
    await store.set("small", b"kept")
    with pytest.raises(StorageError) as refusal:
        await store.set("big", _BIG)
    assert "full" in refusal.value.diagnostics() or "space" in refusal.value.diagnostics()
    assert str(directory) not in refusal.value.detail
    assert await store.get("small") == b"kept"
    assert await store.get("big") is None
    assert await store.keys() == ["small"]
    # It goes on as soon as there is room again.
    await store.set("small", b"changed")
    await provider.close()
    again = opened(backend, directory)
    assert await (await opened_store(again)).get("small") == b"changed"
    await again.close()


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_a_failed_write_does_not_fail_its_neighbours(
    backend: str, mount_tmpfs: Callable[[str], Path]
) -> None:
    provider = opened(backend, mount_tmpfs("size=2m"))
    store = await opened_store(provider)
    results = await asyncio.gather(
        *(store.set(f"k/{n}", _BIG if n == 5 else b"small") for n in range(10)),
        return_exceptions=True,
    )
    assert [isinstance(result, StorageError) for result in results] == [n == 5 for n in range(10)]
    assert await store.keys() == [f"k/{n}" for n in range(10) if n != 5]
    await provider.close()


@pytest.mark.parametrize("backend", FILE_BACKENDS)
def test_a_limit_on_file_size_refuses_the_write(backend: str, tmp_path: Path) -> None:
    async def write() -> None:
        provider = opened(backend, tmp_path)
        store = await opened_store(provider)
        await store.set("small", b"kept")
        with pytest.raises(StorageError):
            await store.set("big", _BIG)
        assert await store.keys() == ["small"]
        await provider.close()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        asyncio.run(write())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_a_read_only_directory_is_named_to_the_administrator(
    backend: str, mount_tmpfs: Callable[[str], Path]
) -> None:
    directory = mount_tmpfs("size=2m,ro")
    with pytest.raises(StorageError) as refusal:
        await opened_store(opened(backend, directory))
    assert "read-only" in refusal.value.diagnostics().lower()
    assert str(directory) in refusal.value.diagnostics()
    assert str(directory) not in refusal.value.detail


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_a_directory_that_cannot_be_made_is_an_error(backend: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as refusal:
        await opened_store(opened(backend, tmp_path / "file"))
    assert "file" in refusal.value.diagnostics()


@pytest.mark.parametrize(
    "content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 4000]
)
async def test_a_file_that_is_no_database_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "sqlite").mkdir()
    (tmp_path / "sqlite" / "keybroker.db").write_bytes(content)
    with pytest.raises(StorageError):
        await opened_store(opened("Sqlite", tmp_path))


async def test_a_damaged_database_gives_values_or_an_error_and_nothing_else(tmp_path: Path) -> None:
    provider = opened("Sqlite", tmp_path)
    store = await opened_store(provider)
    for n in range(200):
        await store.set(f"key/{n}", b"%d" % n * 20)
    await provider.close()
    path = tmp_path / "sqlite" / "keybroker.db"
    whole = path.read_bytes()
    dice = random.Random(7)
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 200)):
            damaged[dice.randrange(100, len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        for leftover in path.parent.glob("keybroker.db-*"):
            leftover.unlink()
        provider = opened("Sqlite", tmp_path)
        with contextlib.suppress(StorageError):
            store = await opened_store(provider)
            for operation in (
                store.get("key/7"), store.version("key/8"), store.set("key/9", b"v"),
                store.delete("key/10"), store.keys(), store.items(), store.revision(),
                store.replace("key/11", b"v", expected=b"w"),
            ):  # fmt: skip
                with contextlib.suppress(StorageError):
                    await operation
        await provider.close()


async def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "sqlite").mkdir()
    path = tmp_path / "sqlite" / "keybroker.db"
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE entries (x)")
    foreign.close()
    with pytest.raises(StorageError, match="another program"):
        await opened_store(opened("Sqlite", tmp_path))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"a": 1}', b'{"a": "YQ==", "a": "Yg=="}', b"\xff", b"[" * 100_000],
)
async def test_a_json_file_of_another_shape_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "repository").write_bytes(content)
    with pytest.raises(StorageError):
        await opened_store(opened("LocalJson", tmp_path))
    assert (tmp_path / "json" / "repository").read_bytes() == content


async def test_one_value_that_is_not_base64_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "repository").write_text('{"bad": "!", "good": "aGk="}')
    store = await opened_store(opened("LocalJson", tmp_path))
    assert await store.get("good") == b"hi"
    with pytest.raises(StorageError):
        await store.get("bad")


@pytest.mark.parametrize("kind", ["Postgres", "Redis"])
def test_a_back_end_that_is_not_here_is_named(kind: str) -> None:
    with pytest.raises(ConfigError, match=kind):
        open_storage(StorageBackendConfig(storage_type=StorageType(kind)))


@pytest.mark.parametrize("kind", ["LocalFs", "LocalJson", "Sqlite"])
def test_a_back_end_without_its_table_is_named(kind: str) -> None:
    config = StorageBackendConfig(storage_type=StorageType(kind))
    with pytest.raises(ConfigError, match=r"storage_backend\.backends\."):
        open_storage(config)


async def test_another_type_for_one_namespace_is_checked_too(tmp_path: Path) -> None:
    provider = open_storage(StorageBackendConfig())
    with pytest.raises(ConfigError):
        await provider.namespace("kbs_protocol_session", "Sqlite")
    both = open_storage(configured("LocalFs", tmp_path))
    await (await both.namespace("kbs_protocol_session", "Memory")).set("k", b"v")
    assert not (tmp_path / "fs" / "kbs_protocol_session").exists()
    await both.close()
