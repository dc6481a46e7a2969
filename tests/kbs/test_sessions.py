"""The cookie that is the session."""

import asyncio
import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybroker.kbs.sessions import (
    MAX_COOKIE_LENGTH,
    SessionError,
    SessionKeys,
    Sessions,
    read_session_secret,
)
from keybroker.model.errors import ConfigError
from keybroker.storage.memory import MemoryStore


def sessions(keys: MemoryStore | None = None, **options: object) -> Sessions:
    lifetime = int(str(options.pop("lifetime", 300)))
    records = options.pop("records", None)
    return Sessions(
        SessionKeys(keys or MemoryStore(), **options),  # type: ignore[arg-type]
        records if isinstance(records, MemoryStore) else MemoryStore(),
        lifetime=lifetime,
    )


async def test_a_cookie_gives_back_its_session() -> None:
    broker = sessions()
    session, cookie = await broker.issue("snp", "bm9uY2U=", "sha384")
    assert await broker.open(cookie) == session
    assert session.nonce not in cookie
    assert "=" not in cookie


async def test_every_changed_byte_of_a_cookie_is_noticed() -> None:
    broker = sessions()
    _, cookie = await broker.issue("snp", "bm9uY2U=", "sha384")
    raw = bytearray(base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4)))
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1
        with pytest.raises(SessionError):
            await broker.open(base64.urlsafe_b64encode(changed).decode().rstrip("="))


async def test_a_cookie_of_another_broker_is_refused() -> None:
    _, cookie = await sessions().issue("snp", "n", "sha384")
    other = sessions()
    await other.issue("snp", "n", "sha384")
    with pytest.raises(SessionError):
        await other.open(cookie)


async def test_workers_that_share_the_keys_open_each_others_cookies() -> None:
    keys = MemoryStore()
    one, two = sessions(keys), sessions(keys)
    issued = await asyncio.gather(*(w.issue("snp", "n", "sha384") for w in (one, two) * 10))
    for session, cookie in issued:
        assert await one.open(cookie) == session
        assert await two.open(cookie) == session


async def test_replicas_that_share_a_secret_need_no_common_storage() -> None:
    secret = os.urandom(32)
    session, cookie = await sessions(secret=secret).issue("snp", "n", "sha384")
    assert await sessions(secret=secret).open(cookie) == session


async def test_rotation_does_not_break_sessions_in_flight() -> None:
    broker = sessions(epoch_seconds=1, lifetime=10)
    session, cookie = await broker.issue("snp", "n", "sha384")
    epochs = set()
    deadline = asyncio.get_running_loop().time() + 10
    while len(epochs) < 3 and asyncio.get_running_loop().time() < deadline:
        _, later = await broker.issue("snp", "n", "sha384")
        epochs.add(base64.urlsafe_b64decode(later + "==")[1:5])
        await asyncio.sleep(0.05)
    assert len(epochs) == 3
    assert await broker.open(cookie) == session


async def test_an_expired_cookie_is_refused() -> None:
    broker = sessions(lifetime=-1)
    _, cookie = await broker.issue("snp", "n", "sha384")
    with pytest.raises(SessionError, match="expired"):
        await broker.open(cookie)


async def test_sealing_keys_that_nobody_needs_are_deleted() -> None:
    keys = MemoryStore()
    for epoch in range(3):
        await keys.set(f"session-{epoch:08d}", os.urandom(32))
    await sessions(keys).issue("snp", "n", "sha384")
    assert len(await keys.keys()) == 1


async def test_the_first_of_two_tokens_stays() -> None:
    records = MemoryStore()
    one, two = sessions(records=records), sessions(records=records)
    session, _ = await one.issue("snp", "n", "sha384")
    assert await one.token(session) is None
    assert await one.attested(session, "first") == "first"
    assert await two.attested(session, "second") == "first"
    assert await two.token(session) == "first"


async def test_records_of_ended_sessions_are_deleted() -> None:
    records = MemoryStore()
    ended = sessions(records=records, lifetime=-60)
    running = sessions(records=records)
    old, _ = await ended.issue("snp", "n", "sha384")
    new, _ = await running.issue("snp", "n", "sha384")
    await ended.attested(old, "old")
    await running.attested(new, "new")
    assert await running.forget_expired() == 1
    assert await running.token(new) == "new"
    assert await ended.forget_expired() == 0
    assert await ended.token(old) is None


async def test_nothing_is_stored_for_a_client_that_has_not_attested() -> None:
    keys, records = MemoryStore(), MemoryStore()
    broker = sessions(keys, records=records)
    for _ in range(50):
        await broker.issue("snp", "n", "sha384")
    assert await records.keys() == []
    assert len(await keys.keys()) == 1


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_any_other_text_is_no_session(text: str) -> None:
    with pytest.raises(SessionError):
        asyncio.run(sessions().open(text))


async def test_an_absurdly_long_cookie_is_not_decoded() -> None:
    with pytest.raises(SessionError, match="absurd"):
        await sessions().open("A" * (MAX_COOKIE_LENGTH + 1))


def test_a_session_secret_must_be_long_and_base64(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(base64.b64encode(b"x" * 32) + b"\n")
    assert read_session_secret(str(good)) == b"x" * 32
    for name, content in (("short", base64.b64encode(b"x" * 31)), ("text", b"not base64!")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            read_session_secret(str(tmp_path / name))
    with pytest.raises(ConfigError, match="missing"):
        read_session_secret(str(tmp_path / "missing"))


def test_a_session_key_does_not_show(tmp_path: Path) -> None:
    assert "secret" not in repr(SessionKeys(MemoryStore(), b"secret" * 8))
