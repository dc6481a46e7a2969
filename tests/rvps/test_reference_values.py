import base64
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.model.errors import MalformedError, StorageError, TooLargeError
from keybroker.rvps.extractors.sample import extract_sample
from keybroker.rvps.message import MAX_MESSAGE_BYTES, parse_message
from keybroker.rvps.reference_value import a_year_after, parse_stored
from keybroker.rvps.service import MAX_VALUES, ReferenceValueService
from keybroker.storage.memory import MemoryStore


def message(values: Any, **changed: Any) -> bytes:
    payload = base64.b64encode(json.dumps(values).encode()).decode()
    return json.dumps(
        {"version": "0.1.0", "type": "sample", "payload": payload, **changed}
    ).encode()


class Clock:
    def __init__(self) -> None:
        self.moment = datetime(2026, 2, 3, 4, 5, 6, 700_000, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(store: MemoryStore, clock: Clock) -> ReferenceValueService:
    return ReferenceValueService(store, now=clock)


VALUES = {"snp_launch_measurement": ["ab" * 48], "svn": 3, "debug": False, "nested": {"a": [None]}}


async def test_registered_values_are_given_out(service: ReferenceValueService) -> None:
    await service.register(message(VALUES))
    for name, value in VALUES.items():
        assert await service.query(name) == value
    assert await service.query("other") is None
    assert (await service.snapshot()).values == VALUES


async def test_a_value_is_replaced_whole(service: ReferenceValueService) -> None:
    await service.register(message({"svn": [1, 2]}))
    await service.register(message({"svn": [3]}))
    assert await service.query("svn") == [3]


async def test_what_is_stored_is_trustees_form(
    service: ReferenceValueService, store: MemoryStore
) -> None:
    await service.register(message({"svn": [1]}))
    assert json.loads(await store.get("svn") or b"") == {
        "version": "0.1.0",
        "name": "svn",
        "expiration": "2027-02-03T04:05:06Z",
        "value": [1],
    }


async def test_trustees_storage_can_be_taken_over(
    service: ReferenceValueService, store: MemoryStore
) -> None:
    stored = {"name": "svn", "expiration": "2026-12-31T00:00:00Z", "value": ["1"]}
    await store.set("svn", json.dumps(stored).encode())
    assert await service.query("svn") == ["1"]


async def test_an_expired_value_is_as_if_absent_and_said_once(
    service: ReferenceValueService, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await service.register(message({"svn": 1}))
    clock.moment += timedelta(days=100)
    await service.register(message({"later": 2}))
    first = await service.snapshot()
    clock.moment += timedelta(days=266)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await service.query("svn") is None
            assert await service.query("later") == 2
    assert (await service.snapshot()).revision != first.revision
    assert [record.args[0] for record in caplog.records if record.args] == ["svn"]
    assert [value.name for value in await service.all()] == ["later", "svn"]


async def test_a_snapshot_is_kept_until_something_changes(service: ReferenceValueService) -> None:
    await service.register(message({"svn": 1}))
    first = await service.snapshot()
    assert (await service.snapshot()).values is first.values
    await service.register(message({"svn": 1}))
    assert (await service.snapshot()).revision != first.revision


async def test_a_value_registered_through_another_service_is_seen(
    service: ReferenceValueService, store: MemoryStore
) -> None:
    assert await service.query("svn") is None
    await ReferenceValueService(store).register(message({"svn": 7}))
    assert await service.query("svn") == 7


async def test_a_deleted_value_is_gone(service: ReferenceValueService) -> None:
    await service.register(message({"svn": 1}))
    assert await service.delete("svn")
    assert not await service.delete("svn")
    assert await service.query("svn") is None


async def test_a_damaged_value_fails_closed(
    service: ReferenceValueService, store: MemoryStore
) -> None:
    await service.register(message({"svn": 1}))
    await store.set("refused", b"{")
    with pytest.raises(StorageError) as failed:
        await service.query("svn")
    assert "refused" in failed.value.diagnostics()
    assert "refused" not in failed.value.detail


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"{"',
        b"\xff",
        message({"a": 1}, version="0.2.0"),
        message({"a": 1}, type="rim"),
        message({"a": 1}, payload="not base64!"),
        message({"a": 1}, payload=17),
        message([1]),
        message({"../a": 1}),
        message({"": 1}),
        message({"a" * 300: 1}),
        b'{"type":"sample","type":"sample","payload":""}',
    ],
)
async def test_what_is_not_a_message_is_refused_and_nothing_written(
    service: ReferenceValueService, store: MemoryStore, raw: bytes
) -> None:
    with pytest.raises(MalformedError) as refused:
        await service.register(raw)
    assert refused.value.detail
    assert await store.keys() == []


async def test_one_bad_name_keeps_all_values_out(
    service: ReferenceValueService, store: MemoryStore
) -> None:
    with pytest.raises(MalformedError):
        await service.register(message({"good": 1, "bad name": 2}))
    assert await store.keys() == []


async def test_too_much_is_refused(service: ReferenceValueService, store: MemoryStore) -> None:
    for raw in (
        b" " * (MAX_MESSAGE_BYTES + 1),
        message({f"n{index}": 0 for index in range(MAX_VALUES + 1)}),
        message({"long": "x" * (1024 * 1024)}),
    ):
        with pytest.raises(TooLargeError):
            await service.register(raw)
    assert await store.keys() == []


async def test_a_message_in_a_string_is_taken(service: ReferenceValueService) -> None:
    await service.register(json.dumps(message({"svn": 1}).decode()).encode())
    assert await service.query("svn") == 1


def test_a_year_after_a_leap_day_is_the_last_of_february() -> None:
    leap = datetime(2028, 2, 29, 12, tzinfo=UTC)
    assert a_year_after(leap) == datetime(2029, 2, 28, 12, tzinfo=UTC)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]":,typeaoldsm0.1\\', max_size=60).map(str.encode)
)
def test_bytes_are_a_message_or_malformed(raw: bytes) -> None:
    for parse in (parse_message, parse_stored):
        try:
            parse(raw)
        except MalformedError as error:
            assert error.detail


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode())
)
def test_text_is_a_sample_payload_or_malformed(payload: str) -> None:
    try:
        assert isinstance(extract_sample(payload), dict)
    except MalformedError as error:
        assert error.detail
