"""The same contract for every back end, with and without encryption."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_backends import BACKENDS, FILE_BACKENDS, opened, opened_store

from keybroker.model.errors import MalformedError, StorageError
from keybroker.storage.interface import MAX_KEY_LENGTH, ComparingStore, StorageProvider, is_key


@pytest.fixture(params=BACKENDS)
async def provider(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[StorageProvider]:
    provider = opened(request.param, tmp_path)
    yield provider
    await provider.close()


@pytest.fixture(params=["repository", "kbs_protocol_session"])
async def store(provider: StorageProvider, request: pytest.FixtureRequest) -> ComparingStore:
    """What must last and what is short-lived may be kept in different ways."""
    return await opened_store(provider, request.param)


async def test_what_is_set_is_got(store: ComparingStore) -> None:
    for value in (b"", b"x", bytes(range(256)), b"v" * 300_000):
        assert await store.set("default/key/1", value)
        assert await store.get("default/key/1") == value


async def test_a_missing_key_is_none_everywhere(store: ComparingStore) -> None:
    assert await store.get("default/key/1") is None
    assert await store.version("default/key/1") is None
    assert not await store.delete("default/key/1")
    assert not await store.replace("default/key/1", b"b", expected=b"a")
    assert await store.keys() == []
    assert await store.items() == {}


async def test_no_overwrite_keeps_the_first_value(store: ComparingStore) -> None:
    assert await store.set("k", b"first", overwrite=False)
    assert not await store.set("k", b"second", overwrite=False)
    assert await store.get("k") == b"first"


async def test_of_many_tasks_one_wins_without_overwrite(store: ComparingStore) -> None:
    wins = await asyncio.gather(*(store.set("k", b"%d" % n, overwrite=False) for n in range(40)))
    assert wins.count(True) == 1
    assert await store.get("k") == b"%d" % wins.index(True)


async def test_replace_happens_only_over_the_expected_value(store: ComparingStore) -> None:
    await store.set("k", b"a")
    assert not await store.replace("k", b"c", expected=b"b")
    assert await store.replace("k", b"b", expected=b"a")
    assert await store.get("k") == b"b"


async def test_deleting_says_whether_there_was_a_value(store: ComparingStore) -> None:
    await store.set("k", b"a")
    assert await store.delete("k")
    assert not await store.delete("k")
    assert await store.get("k") is None


async def test_everything_before_a_key_is_deleted_and_nothing_else(store: ComparingStore) -> None:
    for number in range(12):
        await store.set(f"{number:04d}-x", b"value")
    revision = await store.revision()
    assert await store.delete_before("0005-") == 5
    assert await store.revision() != revision
    assert await store.keys() == [f"{number:04d}-x" for number in range(5, 12)]
    assert await store.delete_before("0005-") == 0
    assert await store.get("0005-x") == b"value"


async def test_keys_are_sorted_and_items_are_whole(store: ComparingStore) -> None:
    for key in ("b/2", "a", "b/10", "B"):
        await store.set(key, key.encode())
    assert await store.keys() == ["B", "a", "b/10", "b/2"]
    assert dict(await store.items()) == {key: key.encode() for key in ("B", "a", "b/10", "b/2")}


async def test_a_version_changes_with_every_write(store: ComparingStore) -> None:
    seen = set()
    for n in range(50):
        await store.set("k", b"same size %d" % (n % 2))
        seen.add(await store.version("k"))
    assert len(seen) == 50


async def test_a_version_stays_while_nothing_is_written(store: ComparingStore) -> None:
    await store.set("k", b"a")
    assert await store.version("k") == await store.version("k")


async def test_a_value_made_anew_has_another_version(store: ComparingStore) -> None:
    await store.set("k", b"a")
    before = await store.version("k")
    await store.delete("k")
    await store.set("k", b"a")
    assert await store.version("k") != before


async def test_the_revision_changes_with_every_change(store: ComparingStore) -> None:
    seen = [await store.revision()]
    for change in (
        store.set("a", b"1"),
        store.set("a", b"2"),
        store.set("b", b"1", overwrite=False),
        store.replace("a", b"3", expected=b"2"),
        store.delete("b"),
        store.delete("a"),
    ):
        await change
        seen.append(await store.revision())
    assert len(set(seen)) == len(seen)


async def test_namespaces_do_not_see_each_other(provider: StorageProvider) -> None:
    one, other = await provider.namespace("kbs"), await provider.namespace("repository")
    await one.set("k", b"1")
    assert await other.get("k") is None
    assert await other.keys() == []


async def test_a_namespace_is_opened_once(provider: StorageProvider) -> None:
    opened = await asyncio.gather(*(provider.namespace("kbs") for _ in range(8)))
    assert len({id(store) for store in opened}) == 1


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.b", "é", "a\0"])
async def test_a_namespace_has_a_plain_name(provider: StorageProvider, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        await provider.namespace(name)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../b",
        "a/./b",
        ".hidden",
        "a\\x2Fb",
        "a%2fb",
        "a\0b",
        "a b",
        "a\n",
        "ключ",
        "a" * (MAX_KEY_LENGTH + 1),
    ],
)
async def test_no_operation_takes_a_key_that_is_none(store: ComparingStore, key: str) -> None:
    for operation in (
        store.get(key),
        store.version(key),
        store.set(key, b"v"),
        store.set(key, b"v", overwrite=False),
        store.replace(key, b"v", expected=b"w"),
        store.delete(key),
    ):
        with pytest.raises(MalformedError):
            await operation
    assert await store.keys() == []


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_values_are_there_after_reopening(backend: str, tmp_path: Path) -> None:
    provider = opened(backend, tmp_path)
    await (await opened_store(provider)).set("a/b/c", b"kept")
    await provider.close()
    again = opened(backend, tmp_path)
    assert await (await opened_store(again)).get("a/b/c") == b"kept"
    await again.close()


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_a_change_through_one_provider_shows_in_another(backend: str, tmp_path: Path) -> None:
    one, other = opened(backend, tmp_path), opened(backend, tmp_path)
    writer, reader = await opened_store(one), await opened_store(other)
    for n in range(20):
        before = await reader.version("k"), await reader.revision()
        await writer.set("k", b"%d" % n)
        assert await reader.version("k") != before[0]
        assert await reader.revision() != before[1]
        assert await reader.get("k") == b"%d" % n
    await one.close()
    await other.close()


@pytest.mark.parametrize("backend", BACKENDS)
@given(key=st.text(alphabet="ab./\\x2F%-_ \0é", max_size=30))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_a_key_is_taken_as_it_is_or_refused(
    backend: str, key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("keys")
    provider = opened(backend, directory / "storage")
    store = await opened_store(provider)
    try:
        if is_key(key):
            await store.set(key, b"v")
            assert await store.keys() == [key]
            assert await store.get(key) == b"v"
        else:
            with pytest.raises(MalformedError):
                await store.set(key, b"v")
    finally:
        await provider.close()
    assert {path.name for path in directory.iterdir()} <= {"storage"}


async def test_a_closed_database_takes_no_write(tmp_path: Path) -> None:
    provider = opened("Sqlite", tmp_path)
    store = await opened_store(provider)
    await provider.close()
    with pytest.raises(StorageError):
        await store.set("k", b"v")
    with pytest.raises(StorageError):
        await store.get("k")


async def test_the_log_of_short_lived_values_stays_short(tmp_path: Path) -> None:
    provider = opened("Sqlite", tmp_path)
    store = await opened_store(provider, "kbs_protocol_session")
    for number in range(3000):
        assert await store.set(f"{number:06d}", os.urandom(4000), overwrite=False)
    log = tmp_path / "sqlite" / "keybroker-sessions.db-wal"
    assert log.stat().st_size < 16 * 1024 * 1024
    assert len(await store.keys()) == 3000
    await provider.close()


async def test_short_lived_values_are_written_while_another_process_writes(tmp_path: Path) -> None:
    one, two = opened("Sqlite", tmp_path), opened("Sqlite", tmp_path)
    stores = [await opened_store(p, "kbs_protocol_session") for p in (one, two)]
    # Held open by another connection, so that no write can begin on the calling thread.
    blocker = sqlite3.connect(tmp_path / "sqlite" / "keybroker-sessions.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(stores[0].set("a", b"1", overwrite=False))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    blocker.execute("COMMIT")
    blocker.close()
    assert await waiting
    assert not await stores[1].set("a", b"2", overwrite=False)
    assert await stores[1].get("a") == b"1"
    for provider in (one, two):
        await provider.close()
