"""The transfer policies: made, listed and deleted, but never changed and never deleted in use.

A policy that a key names must not vanish. Deleting and naming are two steps each, in an order in
which one of two that come together always sees the other:

* deleting marks the policy, then looks for keys that name it, and only then deletes it;
* a key is written first, then it is looked whether its policy is there and not marked; if it is
  marked the key is taken back.

A mark says that no further key may name the policy. Until the policy is deleted it stays in force
for keys that name it.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec

from keybroker.key_transfer.errors import InUseError
from keybroker.key_transfer.records import NIL_ID, new_id, now
from keybroker.key_transfer.transfer_policy import (
    TransferPolicy,
    parse_policy,
    parse_stored_policy,
)
from keybroker.model.errors import MalformedError, NotFoundError, StorageError
from keybroker.storage.interface import ComparingStore, KeyValueStore

#: A mark older than this is of a process that died over it.
MARK_SECONDS = 60.0

#: Parsed policies held in memory by each worker.
_REMEMBERED = 1024


class _Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A policy in the storage; ``marked_at`` while it is being deleted."""

    document: dict[str, Any]
    marked_at: float = 0.0

    @property
    def marked(self) -> bool:
        return self.marked_at > time.time() - MARK_SECONDS


class PolicyStore:
    """All transfer policies."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = cast(ComparingStore, store)
        self._parsed: dict[str, tuple[object, TransferPolicy]] = {}

    async def create(self, request: Any) -> TransferPolicy:
        """Make a policy.

        Raises:
            MalformedError: it is not one, or would match everything.
        """
        policy = parse_policy(request, policy_id=new_id(), created_at=now())
        await self.add(policy, overwrite=True)
        return policy

    async def add(self, policy: TransferPolicy, *, overwrite: bool) -> bool:
        """Store a policy under its own id; return False where there was one to be kept."""
        value = _encode(_Stored(dict(policy.document)))
        return await self._store.set(policy.id, value, overwrite=overwrite)

    async def get(self, policy_id: str) -> TransferPolicy:
        """Return a policy that is in force.

        Raises:
            NotFoundError: there is none of that id.
        """
        version = await self._store.version(policy_id)
        known = self._parsed.get(policy_id)
        if version is not None and known is not None and known[0] == version:
            return known[1]
        raw = await self._store.get(policy_id)
        if raw is None:
            self._parsed.pop(policy_id, None)
            raise NotFoundError("no such key transfer policy", detail="no such key transfer policy")
        policy = _parse(raw)
        while len(self._parsed) >= _REMEMBERED:
            del self._parsed[next(iter(self._parsed))]
        # A policy is never changed, so a version that is newer than the value does no harm.
        self._parsed[policy_id] = (version, policy)
        return policy

    async def all(self) -> list[TransferPolicy]:
        """Return all policies, the oldest first."""
        policies = [_parse(raw) for raw in (await self._store.items()).values()]
        return sorted(policies, key=lambda policy: (str(policy.document["created_at"]), policy.id))

    async def require_nameable(self, policy_id: str) -> None:
        """Return if a key may name the policy; NIL, which names none, always may be.

        Raises:
            MalformedError: it does not exist, or is being deleted.
        """
        if policy_id == NIL_ID:
            return
        raw = await self._store.get(policy_id)
        if raw is None or _decode(raw).marked:
            raise MalformedError("no such key transfer policy")

    async def delete(self, policy_id: str, in_use: Callable[[], Awaitable[bool]]) -> None:
        """Delete a policy.

        Args:
            in_use: says whether any key names it; asked while no further key can.

        Raises:
            NotFoundError: there is no such policy.
            InUseError: a key names it, or somebody else is deleting it.
        """
        raw = await self._store.get(policy_id)
        if raw is None:
            raise NotFoundError("no such key transfer policy", detail="no such key transfer policy")
        stored = _decode(raw)
        mark = _encode(_Stored(stored.document, time.time()))
        if stored.marked or not await self._store.replace(policy_id, mark, expected=raw):
            raise InUseError("the key transfer policy is being deleted")
        try:
            used = await in_use()
        except BaseException:
            await self._store.replace(policy_id, _encode(_Stored(stored.document)), expected=mark)
            raise
        if used:
            await self._store.replace(policy_id, _encode(_Stored(stored.document)), expected=mark)
            raise InUseError("the key transfer policy is in use by a key")
        await self._store.delete(policy_id)


def _encode(stored: _Stored) -> bytes:
    return msgspec.json.encode(stored)


def _decode(raw: bytes) -> _Stored:
    try:
        return msgspec.json.decode(raw, type=_Stored)
    except msgspec.DecodeError:
        raise StorageError("a stored key transfer policy cannot be read") from None


def _parse(raw: bytes) -> TransferPolicy:
    try:
        return parse_stored_policy(_decode(raw).document)
    except MalformedError as error:
        raise StorageError(f"a stored key transfer policy: {error.diagnostics()}") from None
