"""The layouts on disk: Trustee's where they are Trustee's, and nobody else's eyes."""

import base64
import json
import os
import stat
from pathlib import Path

import pytest
from storage_backends import FILE_BACKENDS, opened, opened_store

from keybroker.model.errors import MalformedError, StorageError
from keybroker.storage.provider import sessions_path


async def test_a_local_fs_directory_of_trustee_is_taken_over(tmp_path: Path) -> None:
    directory = tmp_path / "fs" / "repository"
    directory.mkdir(parents=True)
    (directory / "default\\x2Fkey\\x2F1").write_bytes(b"secret")
    (directory / "plain").write_bytes(b"x")
    store = await opened_store(opened("LocalFs", tmp_path))
    assert await store.keys() == ["default/key/1", "plain"]
    assert await store.get("default/key/1") == b"secret"
    await store.set("default/key/2", b"new")
    assert (directory / "default\\x2Fkey\\x2F2").read_bytes() == b"new"
    assert sorted(path.name for path in directory.iterdir()) == [
        "default\\x2Fkey\\x2F1",
        "default\\x2Fkey\\x2F2",
        "plain",
    ]


async def test_a_local_json_file_of_trustee_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    path = tmp_path / "json" / "repository"
    value = bytes(range(250, 256)) + b"~?"
    path.write_text(json.dumps({"default/key/1": base64.urlsafe_b64encode(value).decode()}))
    store = await opened_store(opened("LocalJson", tmp_path))
    assert await store.get("default/key/1") == value
    await store.set("b", b"\xff\xff")
    assert json.loads(path.read_text())["b"] == "__8="


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_nobody_else_can_read_what_is_stored(backend: str, tmp_path: Path) -> None:
    base = tmp_path / "deep" / "storage"
    before = os.umask(0o022)
    try:
        provider = opened(backend, base)
        await (await opened_store(provider)).set("k", b"v")
        await (await provider.namespace("kbs_protocol_session")).set("k", b"v")
    finally:
        os.umask(before)
    for path in [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    await provider.close()


async def test_sessions_are_in_a_file_of_their_own(tmp_path: Path) -> None:
    provider = opened("Sqlite", tmp_path)
    await (await opened_store(provider)).set("k", b"v")
    sessions = await provider.namespace("kbs_protocol_session")
    await sessions.set("s", b"v")
    path = tmp_path / "sqlite" / "keybroker.db"
    assert sessions_path(path) == tmp_path / "sqlite" / "keybroker-sessions.db"
    assert path.exists()
    assert sessions_path(path).exists()
    await provider.close()


async def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "outside"
    secret.write_bytes(b"not for you")
    directory = tmp_path / "fs" / "repository"
    directory.mkdir(parents=True)
    (directory / "link").symlink_to(secret)
    store = await opened_store(opened("LocalFs", tmp_path))
    with pytest.raises(StorageError):
        await store.get("link")
    assert await store.keys() == []
    await store.set("link", b"replaced")
    assert secret.read_bytes() == b"not for you"
    assert await store.get("link") == b"replaced"


async def test_a_namespace_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs" / "repository").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="symbolic link"):
        await opened_store(opened("LocalFs", tmp_path))


async def test_what_is_no_value_is_not_listed(tmp_path: Path) -> None:
    directory = tmp_path / "fs" / "repository"
    directory.mkdir(parents=True)
    (directory / ".tmp-0123").write_bytes(b"half")
    (directory / "with space").write_bytes(b"")
    (directory / "folder").mkdir()
    os.mkfifo(directory / "pipe")
    store = await opened_store(opened("LocalFs", tmp_path))
    assert await store.keys() == []
    with pytest.raises(StorageError):
        await store.get("pipe")
    with pytest.raises(StorageError):
        await store.get("folder")


async def test_what_a_crash_left_is_swept_after_an_hour(tmp_path: Path) -> None:
    directory = tmp_path / "fs" / "repository"
    directory.mkdir(parents=True)
    for name, age in (("old", 7200), ("young", 10)):
        (directory / f".tmp-{name}").write_bytes(b"half")
        stamp = directory.stat().st_mtime - age
        os.utime(directory / f".tmp-{name}", (stamp, stamp))
    await opened_store(opened("LocalFs", tmp_path))
    assert [path.name for path in directory.iterdir()] == [".tmp-young"]


async def test_a_key_whose_file_name_would_be_too_long_is_refused(tmp_path: Path) -> None:
    store = await opened_store(opened("LocalFs", tmp_path))
    longest = "/".join(["a"] * 52)  # 52 letters and 51 escaped slashes are 256 bytes
    with pytest.raises(MalformedError):
        await store.set(longest, b"v")
    assert await store.set(longest[2:], b"v")
    assert await store.keys() == [longest[2:]]


async def test_a_file_changed_in_place_is_noticed(tmp_path: Path) -> None:
    store = await opened_store(opened("LocalFs", tmp_path))
    await store.set("k", b"1")
    before, revision = await store.version("k"), await store.revision()
    (tmp_path / "fs" / "repository" / "k").write_bytes(b"2")
    assert await store.version("k") != before
    store._scanned_at = float("-inf")  # type: ignore[attr-defined] # as a second later
    assert await store.revision() != revision


async def test_storing_in_clear_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = opened("LocalFs", tmp_path)
    await provider.namespace("repository")
    await provider.namespace("kbs")
    assert [record.getMessage() for record in caplog.records] == [
        "values are stored in clear in LocalFs"
    ]
    encrypted = opened("LocalFs+", tmp_path)
    caplog.clear()
    await encrypted.namespace("repository")
    assert not caplog.records
