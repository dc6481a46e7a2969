"""Envelope encryption: what it hides, what it refuses, how keys are changed."""

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_backends import KEYRING, configured, opened, opened_store

from keybroker.config.storage import EncryptionConfig, KeySource
from keybroker.model.errors import ConfigError, StorageError
from keybroker.storage.encryption import (
    EncryptedStore,
    Keyring,
    MasterKey,
    decrypt,
    encrypt,
    load_keyring,
    make_key_file,
    rewrapped,
)
from keybroker.storage.memory import MemoryStore
from keybroker.storage.provider import open_storage

OTHER = MasterKey(b"\x77" * 32)


@given(value=st.binary(max_size=300), key=st.sampled_from(["a", "a/b", "a/b/c"]))
@settings(max_examples=50, deadline=None)
def test_a_value_comes_back_from_its_place(value: bytes, key: str) -> None:
    stored = encrypt(KEYRING, "repository", key, value)
    assert decrypt(KEYRING, "repository", key, stored) == value
    assert len(stored) == len(value) + 88


def test_two_encryptions_of_one_value_have_nothing_in_common() -> None:
    one, other = (encrypt(KEYRING, "n", "k", b"v" * 64) for _ in range(2))
    assert one[12:] != other[12:]
    assert one[72:] != other[72:]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_byte_is_refused(data: st.DataObject) -> None:
    stored = bytearray(encrypt(KEYRING, "n", "k", b"value"))
    position = data.draw(st.integers(0, len(stored) - 1))
    stored[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StorageError):
        decrypt(KEYRING, "n", "k", bytes(stored))


def test_every_truncation_is_refused() -> None:
    stored = encrypt(KEYRING, "n", "k", b"value")
    for length in range(len(stored)):
        with pytest.raises(StorageError):
            decrypt(KEYRING, "n", "k", stored[:length])


@given(stored=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_foreign_bytes_are_refused(stored: bytes) -> None:
    for content in (stored, b"KBE\x01" + stored, b"KBE\x01" + KEYRING.primary.id + stored):
        with pytest.raises(StorageError):
            decrypt(KEYRING, "n", "k", content)


@pytest.mark.parametrize(("namespace", "key"), [("n", "b"), ("m", "a"), ("na", ""), ("n", "a/")])
def test_a_value_moved_to_another_place_is_refused(namespace: str, key: str) -> None:
    stored = encrypt(KEYRING, "n", "a", b"value")
    with pytest.raises(StorageError):
        decrypt(KEYRING, namespace, key, stored)
    with pytest.raises(StorageError):
        rewrapped(KEYRING, namespace, key, stored)


def test_the_wrapped_key_of_one_value_does_not_open_another() -> None:
    one, other = (encrypt(KEYRING, "n", "k", value) for value in (b"one", b"two"))
    with pytest.raises(StorageError):
        decrypt(KEYRING, "n", "k", one[:72] + other[72:])


@pytest.mark.parametrize("backend", ["Sqlite+", "LocalFs+", "LocalJson+"])
async def test_nothing_on_disk_holds_the_value(backend: str, tmp_path: Path) -> None:
    provider = opened(backend, tmp_path)
    secret = b"a secret that must not be found"
    await (await opened_store(provider)).set("k", secret)
    forms = (secret, base64.urlsafe_b64encode(secret).rstrip(b"="))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not any(form in path.read_bytes() for form in forms)
    await provider.close()


async def test_local_fs_is_encrypted_only_when_told_to(tmp_path: Path) -> None:
    provider = open_storage(configured("LocalFs", tmp_path), KEYRING)
    await (await opened_store(provider)).set("k", b"v")
    assert (tmp_path / "fs" / "repository" / "k").read_bytes() == b"v"


async def test_a_value_in_clear_is_refused_unless_accepted() -> None:
    memory = MemoryStore()
    await memory.set("k", b"planted")
    with pytest.raises(StorageError, match="accept_plaintext"):
        await EncryptedStore(memory, KEYRING, "n").get("k")
    with pytest.raises(StorageError):
        await EncryptedStore(memory, KEYRING, "n").items()
    migrating = EncryptedStore(memory, KEYRING, "n", accept_plaintext=True)
    assert await migrating.get("k") == b"planted"


async def test_a_new_master_key_reads_the_old_values_and_rewraps_them() -> None:
    memory = MemoryStore()
    old = EncryptedStore(memory, KEYRING, "n")
    for n in range(5):
        await old.set(f"k/{n}", b"%d" % n)
    both = EncryptedStore(memory, Keyring((OTHER, *KEYRING.keys)), "n")
    await both.set("k/0", b"new")
    assert await both.get("k/4") == b"4"
    assert await both.rewrap() == 4
    assert await both.rewrap() == 0
    new = EncryptedStore(memory, Keyring((OTHER,)), "n")
    assert dict(await new.items()) == {
        "k/0": b"new", "k/1": b"1", "k/2": b"2", "k/3": b"3", "k/4": b"4"
    }  # fmt: skip
    with pytest.raises(StorageError, match="not given"):
        await old.get("k/1")


async def test_values_in_clear_are_encrypted_by_rewrapping() -> None:
    memory = MemoryStore()
    await memory.set("k", b"clear")
    assert await EncryptedStore(memory, KEYRING, "n", accept_plaintext=True).rewrap() == 1
    assert await EncryptedStore(memory, KEYRING, "n").get("k") == b"clear"


async def test_rewrapping_leaves_a_value_alone_that_is_written_meanwhile() -> None:
    class Interfering(MemoryStore):
        async def replace(self, key: str, value: bytes, *, expected: bytes) -> bool:
            await self.set(key, encrypt(Keyring((OTHER,)), "n", key, b"newer"))
            return await super().replace(key, value, expected=expected)

    store = Interfering()
    await EncryptedStore(store, KEYRING, "n").set("k", b"older")
    both = EncryptedStore(store, Keyring((OTHER, *KEYRING.keys)), "n")
    assert await both.rewrap() == 0
    assert await both.get("k") == b"newer"


def test_a_key_shows_nowhere() -> None:
    key = MasterKey(b"\x41" * 32)
    shown = repr(key) + repr(Keyring((key,))) + str(key)
    assert "AAAA" not in shown
    assert "\\x41" not in shown
    assert key.encode() not in shown


def test_a_key_file_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    key = make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_keyring(EncryptionConfig(path=str(path))).keys == (key,)
    with pytest.raises(ConfigError):
        make_key_file(path)


def test_a_key_file_may_hold_several_keys_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    keys = [MasterKey.generate() for _ in range(2)]
    path.touch(0o600)
    path.write_text(f"# new\n{keys[0].encode()}\n\n  {keys[1].encode()}\n")
    ring = load_keyring(EncryptionConfig(path=str(path)))
    assert ring.keys == tuple(keys)
    assert ring.primary == keys[0]


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [MasterKey.generate() for _ in range(2)]
    monkeypatch.setenv("MY_KEYS", ",".join(key.encode() for key in keys))
    assert load_keyring(EncryptionConfig(source=KeySource.ENV, variable="MY_KEYS")).keys == tuple(
        keys
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "short", "QUFB", "!" * 44, "Q" * 44, "é"])
def test_a_key_that_is_none_is_refused_without_showing_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_keyring(EncryptionConfig(path=str(path)))
    assert not text or text.startswith("#") or text not in refusal.value.diagnostics()


def test_a_key_file_that_anybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    make_key_file(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_keyring(EncryptionConfig(path=str(path)))


def test_a_missing_key_is_said_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        load_keyring(EncryptionConfig(source=KeySource.ENV, variable="NO_SUCH_KEY"))
    with pytest.raises(ConfigError, match="absent"):
        load_keyring(EncryptionConfig(path=str(tmp_path / "absent")))
