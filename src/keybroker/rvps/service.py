"""The reference value provider service: takes reference values in and gives them out."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from keybroker.model.errors import MalformedError, StorageError, TooLargeError
from keybroker.rvps.extractors import extract
from keybroker.rvps.message import parse_message
from keybroker.rvps.reference_value import (
    ReferenceValue,
    a_year_after,
    parse_stored,
    serialize,
)
from keybroker.storage.interface import KeyValueStore, check_key

logger = logging.getLogger(__name__)

#: Values in one message. All values are compiled into the attestation policies, so their number
#: is what a revision costs.
MAX_VALUES = 1000

#: Longest value as JSON: some ten thousand digests.
MAX_VALUE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """All values that are given out at one moment.

    Attributes:
        values: by name; the same object as long as nothing changed.
        revision: differs whenever the values may have changed.
    """

    values: Mapping[str, Any]
    revision: object


@dataclass(frozen=True, slots=True)
class _Snapshot:
    given_out: ReferenceValues
    revision: object
    valid_until: datetime | None = field(default=None)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ReferenceValueService:
    """Keeps reference values in a storage namespace (``reference_value``).

    Args:
        store: the namespace; a value is kept under its name.
        now: tells the time, UTC.
    """

    def __init__(self, store: KeyValueStore, *, now: Callable[[], datetime] = _utc_now) -> None:
        self._store = store
        self._now = now
        self._snapshot: _Snapshot | None = None
        self._reading = asyncio.Lock()
        self._said_expired: set[tuple[str, datetime]] = set()

    async def register(self, message: bytes) -> None:
        """Take in the values of a message; each is given out for twelve months.

        A value of the same name is replaced. Nothing is written unless all of it can be.

        Raises:
            MalformedError: the message, a name or a value is not one.
            TooLargeError: too many values, or one too long.
            StorageError: a value could not be written; those before it were.
        """
        parsed = parse_message(message)
        values = extract(parsed.type, parsed.payload)
        if len(values) > MAX_VALUES:
            raise TooLargeError(f"more than {MAX_VALUES} reference values in one message")
        expiration = a_year_after(self._now())
        stored = []
        for name, value in values.items():
            check_key(name)
            raw = serialize(ReferenceValue(name, _checked(name, value), expiration))
            if len(raw) > MAX_VALUE_BYTES:
                raise TooLargeError(f"reference value {name!r} is longer than {MAX_VALUE_BYTES}")
            stored.append((name, raw))
        for name, raw in stored:
            await self._store.set(name, raw)

    async def query(self, reference_value_id: str) -> Any | None:
        """Return a value, or None where there is none or it has expired.

        Raises:
            StorageError: the values cannot be read.
        """
        return (await self.snapshot()).values.get(reference_value_id)

    async def snapshot(self) -> ReferenceValues:
        """Return all values that have not expired.

        Cheap where nothing changed: the store is asked for its revision, and nothing is read.

        Raises:
            StorageError: the values cannot be read. One that is not readable fails them all: a
                policy must not take a damaged list of what is refused for an empty one.
        """
        revision = await self._store.revision()
        snapshot = self._snapshot
        if snapshot is None or not self._current(snapshot, revision):
            async with self._reading:
                snapshot = self._snapshot
                if snapshot is None or not self._current(snapshot, revision):
                    snapshot = await self._read(revision)
                    self._snapshot = snapshot
        return snapshot.given_out

    async def all(self) -> list[ReferenceValue]:
        """Return every stored value for an administrator, by name, the expired among them.

        Raises:
            StorageError: the values cannot be read.
        """
        items = await self._store.items()
        return [_parse(name, items[name]) for name in sorted(items)]

    async def delete(self, reference_value_id: str) -> bool:
        """Delete a value; return whether there was one.

        Raises:
            MalformedError: the name cannot be one.
        """
        return await self._store.delete(check_key(reference_value_id))

    def _current(self, snapshot: _Snapshot, revision: object) -> bool:
        if snapshot.revision != revision:
            return False
        return snapshot.valid_until is None or self._now() <= snapshot.valid_until

    async def _read(self, revision: object) -> _Snapshot:
        # The revision was read first: a write in between shows in the next one.
        now = self._now()
        values: dict[str, Any] = {}
        ends: list[datetime] = []
        for reference_value in await self.all():
            if reference_value.expired(now):
                self._say_expired(reference_value)
            else:
                values[reference_value.name] = reference_value.value
                ends.append(reference_value.expiration)
        valid_until = min(ends, default=None)
        return _Snapshot(ReferenceValues(values, (revision, valid_until)), revision, valid_until)

    def _say_expired(self, reference_value: ReferenceValue) -> None:
        said = (reference_value.name, reference_value.expiration)
        if said not in self._said_expired:
            self._said_expired.add(said)
            logger.warning(
                "reference value %s expired at %s and is not given out",
                reference_value.name,
                reference_value.expiration.isoformat(),
            )


def _parse(name: str, raw: bytes) -> ReferenceValue:
    try:
        stored = parse_stored(raw)
    except MalformedError as error:
        raise StorageError(
            f"the stored reference value {name!r} cannot be read: {error.diagnostics()}"
        ) from None
    # The key is what a value is found under, whatever a copied file says inside.
    return ReferenceValue(name, stored.value, stored.expiration)


def _checked(name: str, value: Any) -> Any:
    try:
        json.dumps(value).encode()
    except (ValueError, RecursionError):
        raise MalformedError(f"reference value {name!r} cannot be kept as JSON") from None
    return value
