"""Keys: a record in the broker's storage and the key itself with a key manager, both or neither.

Two places cannot be written in one transaction. So an *intent* is written first, which says that a
key is being made or deleted, and is deleted when both places agree. Where that does not come
about, because the process died or the key manager's answer was lost, :meth:`KeyStore.settle` finds
the intent and brings both places to agree: a key without a record is destroyed, a record without
a key is deleted.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from keybroker.key_transfer.errors import KeyGoneError, KeyManagerError
from keybroker.key_transfer.managers.interface import KeyManager
from keybroker.key_transfer.material import CURVES, KeySpec, parse_key_data
from keybroker.key_transfer.policy_store import PolicyStore
from keybroker.key_transfer.records import NIL_ID, KeyRecord, decode_key, encode, new_id, now
from keybroker.model.errors import KeybrokerError, MalformedError, NotFoundError, StorageError
from keybroker.storage.interface import ComparingStore, KeyValueStore
from keybroker.workbench import run

logger = logging.getLogger(__name__)

#: An intent is left alone while its operation may still be under way: longer than a key manager
#: may take to answer all requests of one operation.
INTENT_SECONDS = 600.0

#: Attempts to write a record that others change at the same moment.
_WRITE_ATTEMPTS = 16

_MAKE = "make"
_DELETE = "delete"


class _Intent(msgspec.Struct, frozen=True, array_like=True):
    what: str
    at: float


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What a client wants: a new key, one of its own (``key_data``), or one of the KMIP server."""

    spec: KeySpec
    transfer_policy_id: str = NIL_ID
    key_data: str | None = None
    kmip_key_id: str | None = None

    def __repr__(self) -> str:
        return f"KeyRequest({self.spec}, {self.transfer_policy_id})"


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """What a search narrows down; None: anything."""

    algorithm: str | None = None
    key_length: int | None = None
    curve_type: str | None = None
    transfer_policy_id: str | None = None

    def matches(self, record: KeyRecord) -> bool:
        """Say whether a key is searched for."""
        return (
            self.algorithm in (None, record.algorithm)
            and self.key_length in (None, record.key_length)
            and self.transfer_policy_id in (None, record.transfer_policy_id)
            and (
                self.curve_type is None
                or (
                    record.curve_type is not None
                    and CURVES[self.curve_type].name == CURVES[record.curve_type].name
                )
            )
        )


class KeyStore:
    """All keys.

    Args:
        records: what is known of each key, by its id.
        intents: keys that are being made or deleted.
        manager: keeps the keys themselves.
        policies: which policies keys may name.
        intent_seconds: how old an intent must be to be settled.
    """

    def __init__(
        self,
        records: KeyValueStore,
        intents: KeyValueStore,
        manager: KeyManager,
        policies: PolicyStore,
        *,
        intent_seconds: float = INTENT_SECONDS,
    ) -> None:
        self._records = cast(ComparingStore, records)
        self._intents = intents
        self._manager = manager
        self._policies = policies
        self._intent_seconds = intent_seconds

    async def create(self, request: KeyRequest) -> KeyRecord:
        """Make or register a key.

        Raises:
            MalformedError: there is no such policy, or what is registered is not such a key.
            KeyManagerError: the key manager failed; nothing is left behind.
        """
        await self._policies.require_nameable(request.transfer_policy_id)
        material = None
        if request.key_data is not None:
            material = await run(parse_key_data, request.key_data, request.spec)
        elif request.kmip_key_id is not None:
            await self._manager.adopt(request.spec, request.kmip_key_id)
        key_id, created_at = new_id(), now()
        await self._intents.set(key_id, encode(_Intent(_MAKE, time.time())))
        try:
            spec = request.spec
            kmip_key_id = request.kmip_key_id
            if material is not None:
                kmip_key_id = await self._manager.register(key_id, spec, material, created_at)
            elif kmip_key_id is None:
                kmip_key_id = await self._manager.create(key_id, spec, created_at)
            record = KeyRecord(
                id=key_id,
                algorithm=spec.algorithm,
                key_length=spec.length,
                curve_type=spec.curve,
                kmip_key_id=kmip_key_id,
                transfer_policy_id=request.transfer_policy_id,
                created_at=created_at,
            )
            await self._records.set(key_id, encode(record))
            # Written first, looked at second: see policy_store for why.
            await self._policies.require_nameable(request.transfer_policy_id)
        except BaseException as error:
            await self._take_back(key_id, error, adopted=request.kmip_key_id is not None)
            raise
        await self._intents.delete(key_id)
        return record

    async def get(self, key_id: str) -> KeyRecord:
        """Return the record of a key.

        Raises:
            NotFoundError: there is none.
        """
        raw = await self._records.get(key_id)
        if raw is None:
            raise NotFoundError("no such key", detail="no such key")
        return decode_key(raw)

    async def search(self, wanted: KeyFilter) -> list[KeyRecord]:
        """Return the records of keys that match, the oldest first."""
        records = [decode_key(raw) for raw in (await self._records.items()).values()]
        found = [record for record in records if wanted.matches(record)]
        return sorted(found, key=lambda record: (record.created_at, record.id))

    async def names_policy(self, policy_id: str) -> bool:
        """Say whether any key names a policy."""
        return bool(await self.search(KeyFilter(transfer_policy_id=policy_id)))

    async def set_policy(self, key_id: str, policy_id: str) -> KeyRecord:
        """Put a key under another policy.

        Raises:
            NotFoundError: there is no such key.
            MalformedError: there is no such policy.
        """
        await self._policies.require_nameable(policy_id)
        for _ in range(_WRITE_ATTEMPTS):
            raw = await self._records.get(key_id)
            if raw is None:
                raise NotFoundError("no such key", detail="no such key")
            new = msgspec.structs.replace(decode_key(raw), transfer_policy_id=policy_id)
            value = encode(new)
            if not await self._records.replace(key_id, value, expected=raw):
                continue
            try:
                await self._policies.require_nameable(policy_id)
            except MalformedError:
                await self._records.replace(key_id, raw, expected=value)
                raise
            return new
        raise StorageError("the key is changed by too many at once")

    async def fetch(self, record: KeyRecord) -> bytes:
        """Return the key itself.

        Raises:
            NotFoundError: the key manager has it no longer.
            KeyManagerError: the key manager failed.
        """
        try:
            return await self._manager.fetch(record)
        except KeyGoneError:
            logger.warning("the key manager has no key %s, though there is a record", record.id)
            raise NotFoundError("the key manager has no such key", detail="no such key") from None

    async def delete(self, key_id: str) -> None:
        """Delete a key, with the key manager and here.

        Raises:
            NotFoundError: there is no such key.
            KeyManagerError: the key manager failed; whether it deleted the key is looked at later.
        """
        record = await self.get(key_id)
        await self._intents.set(key_id, encode(_Intent(_DELETE, time.time())))
        if not await self._is_shared(record):
            await self._manager.delete(record)
        if not await self._records.delete(key_id):
            raise NotFoundError("no such key", detail="no such key")
        await self._intents.delete(key_id)

    async def settle(self) -> int:
        """Bring to an end what was interrupted; return how many keys it was about.

        Raises:
            StorageError: intents cannot be read.
        """
        settled = 0
        limit = time.time() - self._intent_seconds
        for key_id, raw in (await self._intents.items()).items():
            intent = msgspec.json.decode(raw, type=_Intent)
            if intent.at > limit:
                continue
            try:
                await self._settle(key_id, intent)
                await self._intents.delete(key_id)
                settled += 1
            except KeybrokerError as error:
                logger.warning("key %s is not settled yet: %s", key_id, error.diagnostics())
        return settled

    async def problem(self) -> str | None:
        """Say why no key can be had now, or None where all is well."""
        return await self._manager.problem()

    async def _settle(self, key_id: str, intent: _Intent) -> None:
        raw = await self._records.get(key_id)
        if raw is None:
            await self._manager.discard(key_id)
            return
        if intent.what == _DELETE:
            try:
                await self._manager.fetch(decode_key(raw))
            except KeyGoneError:
                await self._records.delete(key_id)

    async def _take_back(self, key_id: str, cause: BaseException, *, adopted: bool) -> None:
        try:
            await self._records.delete(key_id)
            if not adopted:
                await self._manager.discard(key_id)
            # A key manager that did not answer may still make the key when this is over, so the
            # intent stays and the key is discarded once more when it is settled.
            if adopted or not isinstance(cause, KeyManagerError | asyncio.CancelledError):
                await self._intents.delete(key_id)
        except KeybrokerError as error:
            logger.warning("key %s is taken back later: %s", key_id, error.diagnostics())

    async def _is_shared(self, record: KeyRecord) -> bool:
        if record.kmip_key_id is None:
            return False
        records: Any = (decode_key(raw) for raw in (await self._records.items()).values())
        return any(
            other.kmip_key_id == record.kmip_key_id and other.id != record.id for other in records
        )
