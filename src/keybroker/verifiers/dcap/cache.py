"""Collateral, kept: in memory, in the broker's storage, and renewed before it expires.

    get(key) ──▶ memory ──▶ storage ──▶ source (PCS, PCCS), once however many wait
                   ▲           ▲                  │ verified, then kept
                   └───────────┴──────────────────┘

Workers and replicas share what is in storage. Which of them asks the source is settled by a lease
in storage; the others take what it brings. What is held is renewed in the background a day after it
was fetched, or at half of the time it had left, whichever is sooner: an outage of the source is
noticed by nobody but the log until the last of it has expired. A file or folder as source is read
when it is needed and never copied.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec

from keybroker import workbench
from keybroker.config.dcap import TcbUpdateType
from keybroker.model.errors import EvidenceError, StorageError
from keybroker.model.tee import Tee
from keybroker.storage.interface import KeyValueStore, StorageProvider
from keybroker.verifiers.dcap.collateral import (
    CollateralKey,
    CollateralParts,
    VerifiedCollateral,
    verify_collateral,
)
from keybroker.verifiers.dcap.source import CollateralSource, SourceError
from keybroker.verifiers.snp_vcek import Backoff
from keybroker.verifiers.x509 import Certificate

_log = logging.getLogger(__name__)

#: Namespace of the broker's storage.
NAMESPACE: Final = "dcap_collateral"

#: Intel renews collateral within a day of what it publishes; so do we.
RENEW_AFTER_SECONDS: Final = 24 * 3600.0

#: How often storage is looked at for what others have fetched or imported, and for what is due.
REVISIT_SECONDS: Final = 60.0

#: How long a file's expired collateral is held before the file is looked at again.
EXPIRED_HOLD_SECONDS: Final = 60.0

#: Platforms that are held ready, some 100 KiB each. Only genuine PCK certificates come this far.
MAX_READY: Final = 256

#: A lease outlives the slowest fetch that is allowed, and not by much the worker that died.
_LEASE_SECONDS: Final = 30.0

#: How often a worker that waits for another's fetch looks whether it is there.
_LEASE_POLL_SECONDS: Final = 0.05


#: A worker that waited longer than this for another's failed fetch does not try again itself:
#: its guests have waited for one time-out already.
_PATIENCE_SECONDS: Final = 1.0


class StoredCollateral(msgspec.Struct, frozen=True):
    """What storage keeps: collateral and when it was fetched, in seconds since 1970."""

    fetched_at: float
    parts: CollateralParts


@dataclass(frozen=True, slots=True)
class _Held:
    """Collateral in memory.

    Attributes:
        usable_until, renew_at: seconds since 1970.
        version: of the value in storage; None: not from there.
    """

    collateral: VerifiedCollateral
    usable_until: float
    renew_at: float
    version: object | None


def storage_key(key: CollateralKey, update_type: TcbUpdateType) -> str:
    """Return the key in storage."""
    return f"{key.tee.value}/{update_type.value}/{key.fmspc.hex().upper()}/{key.ca}.json"


class CollateralCache:
    """Lends out verified collateral. Belongs to one event loop."""

    def __init__(
        self,
        source: CollateralSource,
        storage: StorageProvider,
        roots: Sequence[Certificate],
        update_type: TcbUpdateType,
        *,
        clock: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        """Take the source; nothing is fetched yet.

        Args:
            source: where collateral comes from.
            storage: where it is kept.
            roots: that are trusted.
            update_type: which TCB evaluation.
            clock: seconds since 1970.
            backoff: remembers failures of the source.
        """
        self._source = source
        self._storage = storage
        self._roots = tuple(roots)
        self._update_type = update_type
        self._clock = clock
        self._backoff = Backoff() if backoff is None else backoff
        self._held: OrderedDict[CollateralKey, _Held] = OrderedDict()
        self._under_way: dict[CollateralKey, asyncio.Task[VerifiedCollateral]] = {}
        self._missing: dict[CollateralKey, str] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def get(self, key: CollateralKey) -> VerifiedCollateral:
        """Return collateral for a platform that has a genuine PCK certificate.

        Raises:
            EvidenceError: nothing valid is held and the source has nothing; the diagnostics say
                what it answered.
        """
        if self._keeper is None and self._source.is_remote:
            self._keeper = asyncio.create_task(self._keep())
        held = self._held.get(key)
        if held is not None and self._clock() < held.usable_until:
            self._held.move_to_end(key)
            return held.collateral
        return await self._obtain_once(key)

    def status(self) -> Mapping[str, str]:
        """Say for which platforms that asked nothing valid is held, and why; empty: all is well."""
        return MappingProxyType({str(key): reason for key, reason in self._missing.items()})

    async def close(self) -> None:
        """Stop what is under way and release connections."""
        tasks: list[asyncio.Task[object]] = [*self._under_way.values()]
        if self._keeper is not None:
            tasks.append(self._keeper)
            self._keeper = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._source.close()

    async def _obtain_once(self, key: CollateralKey, *, renew: bool = False) -> VerifiedCollateral:
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._obtain(key, renew=renew))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # one guest that hangs up must not take the collateral from the others that wait
        return await asyncio.shield(task)

    async def _obtain(self, key: CollateralKey, *, renew: bool) -> VerifiedCollateral:
        try:
            if not self._source.is_remote:
                held = await self._from_files(key)
            else:
                store = await self._storage.namespace(NAMESPACE)
                kept = await self._from_storage(store, key)
                if kept is not None and not (renew and self._clock() >= kept.renew_at):
                    held = kept
                else:
                    held = await self._from_source(store, key, kept)
        except SourceError as error:
            reason = f"{self._source.name}: {error}"
            if not renew:
                self._missing[key] = reason
                if len(self._missing) > MAX_READY:
                    self._missing.pop(next(iter(self._missing)))
                _log.error("no valid collateral for %s: %s", key, reason)
            raise EvidenceError(
                f"no valid collateral for {key} is held, and none comes from {reason};"
                " see 'keybroker collateral'"
            ) from None
        self._missing.pop(key, None)
        self._held[key] = held
        self._held.move_to_end(key)
        if len(self._held) > MAX_READY:
            self._held.popitem(last=False)
        return held.collateral

    async def _from_files(self, key: CollateralKey) -> _Held:
        """Take what a file has, expired or not: whoever put it there wants it used."""
        collateral = await self._verified(await self._source.fetch(key), key)
        now = self._clock()
        expires = collateral.earliest_expiration.timestamp()
        # a file may be replaced at any time, so it is looked at again soon
        until = min(expires, now + REVISIT_SECONDS) if now < expires else now + EXPIRED_HOLD_SECONDS
        return _Held(collateral, until, until, None)

    async def _from_storage(self, store: KeyValueStore, key: CollateralKey) -> _Held | None:
        name = storage_key(key, self._update_type)
        try:
            version = await store.version(name)
            held = self._held.get(key)
            if held is not None and held.version is not None and held.version == version:
                return held if self._clock() < held.usable_until else None
            raw = await store.get(name)
        except StorageError as error:
            _log.warning("kept collateral cannot be read: %s", error.diagnostics())
            return None
        if raw is None:
            return None
        try:
            stored = msgspec.json.decode(raw, type=StoredCollateral)
            held = self._hold(await self._verified(stored.parts, key), stored.fetched_at, version)
        except (msgspec.MsgspecError, SourceError) as error:
            # kept under a root that is no longer trusted, or by another release
            _log.info("kept collateral for %s is not used: %s", key, error)
            return None
        return held if self._clock() < held.usable_until else None

    async def _from_source(
        self, store: KeyValueStore, key: CollateralKey, kept: _Held | None
    ) -> _Held:
        reason = self._reason_to_wait(key)
        if reason is not None:
            raise SourceError(reason)
        lease = f"{storage_key(key, self._update_type)}.lease"
        owner = secrets.token_hex(8).encode()
        taken = await self._take_lease(store, lease, owner)
        if not taken:
            other = await self._wait_for_other(store, key, lease, kept)
            if other is not None:
                return other
        try:
            return await self._fetch(store, key)
        finally:
            if taken:
                await self._drop_lease(store, lease, owner)

    def _reason_to_wait(self, key: CollateralKey) -> str | None:
        """Say why the source is left alone, as a whole or for one platform."""
        return self._backoff.reason_to_wait(None) or self._backoff.reason_to_wait(key)

    async def _fetch(self, store: KeyValueStore, key: CollateralKey) -> _Held:
        try:
            parts = await self._source.fetch(key)
            collateral = await self._verified(parts, key)
        except SourceError as error:
            self._backoff.failed(None if error.unavailable else key, str(error))
            _log.warning("no collateral for %s from %s: %s", key, self._source.name, error)
            raise
        self._backoff.succeeded(None)
        self._backoff.succeeded(key)
        now = self._clock()
        held = self._hold(collateral, now, None)
        if now >= held.usable_until:
            # a PCCS without internet serves what it has; the claims will say that it expired
            _log.warning("the collateral for %s from %s expired", key, self._source.name)
            until = now + EXPIRED_HOLD_SECONDS
            return _Held(collateral, until, until, None)
        name = storage_key(key, self._update_type)
        try:
            await store.set(name, encode_stored(parts, now))
            return self._hold(collateral, now, await store.version(name))
        except StorageError as error:
            _log.warning("collateral cannot be kept: %s", error.diagnostics())
            return held

    def _hold(
        self, collateral: VerifiedCollateral, fetched_at: float, version: object | None
    ) -> _Held:
        expires = collateral.earliest_expiration.timestamp()
        fresh = min(RENEW_AFTER_SECONDS, max(0.0, expires - fetched_at) / 2)
        return _Held(collateral, expires, fetched_at + fresh, version)

    async def _verified(self, parts: CollateralParts, key: CollateralKey) -> VerifiedCollateral:
        try:
            collateral = await workbench.run(verify_collateral, parts, key.tee, self._roots)
        except EvidenceError as error:
            raise SourceError(f"not the collateral asked for: {error.diagnostics()}") from None
        if collateral.key != key:
            raise SourceError(f"the collateral is for {collateral.key}")
        return collateral

    async def _take_lease(self, store: KeyValueStore, lease: str, owner: bytes) -> bool:
        """Say whether this worker is the one to ask the source; storage that fails says yes."""
        until = f"{self._clock() + _LEASE_SECONDS:.0f}:".encode() + owner
        try:
            if await store.set(lease, until, overwrite=False):
                return True
            held = await store.get(lease)
            if held is None or _lease_end(held) < self._clock():
                # whoever had it died; should two get here at once, both fetch, which is no harm
                await store.set(lease, until)
                return True
        except StorageError:
            return True
        return False

    async def _drop_lease(self, store: KeyValueStore, lease: str, owner: bytes) -> None:
        try:
            held = await store.get(lease)
            if held is not None and held.endswith(owner):
                await store.delete(lease)
        except StorageError as error:
            _log.warning("a lease cannot be released: %s", error.diagnostics())

    async def _wait_for_other(
        self, store: KeyValueStore, key: CollateralKey, lease: str, kept: _Held | None
    ) -> _Held | None:
        """Wait until another worker has fetched or given up; return what it brought.

        Returns:
            None where it died, brought nothing that can be kept, or storage failed.

        Raises:
            SourceError: it waited for the source in vain, so there is no point in doing so again.
        """
        began = time.monotonic()
        held: bytes | None = b""
        while held is not None and (not held or _lease_end(held) >= self._clock()):
            await asyncio.sleep(_LEASE_POLL_SECONDS)
            try:
                held = await store.get(lease)
            except StorageError:
                return None
        found = await self._from_storage(store, key)
        if found is not None and (kept is None or found.renew_at > kept.renew_at):
            return found
        if held is None and time.monotonic() - began > _PATIENCE_SECONDS:
            reason = "another worker has just waited for it in vain"
            self._backoff.failed(key, reason)
            raise SourceError(reason)
        return None

    async def _keep(self) -> None:
        """Renew what is due, and take what others have put into storage."""
        while True:
            try:
                await self.renew_due()
            except StorageError as error:
                _log.warning("kept collateral cannot be listed: %s", error.diagnostics())
            except Exception:
                _log.exception("collateral was not renewed")
            await asyncio.sleep(REVISIT_SECONDS)

    async def renew_due(self) -> None:
        """Look at everything in storage once: load what is new, fetch anew what is due.

        Raises:
            StorageError: the back end failed.
        """
        store = await self._storage.namespace(NAMESPACE)
        for name in await store.keys():
            key = parse_storage_key(name, self._update_type)
            if key is None:
                continue
            found = await self._from_storage(store, key)
            if found is None:
                continue
            if self._clock() < found.renew_at:
                if key not in self._under_way and key in self._held:
                    self._held[key] = found
                self._missing.pop(key, None)
                continue
            if self._reason_to_wait(key) is not None:
                continue
            try:
                await self._obtain_once(key, renew=True)
            except EvidenceError as error:
                _log.warning("collateral is not renewed: %s", error.diagnostics())


def encode_stored(parts: CollateralParts, fetched_at: float) -> bytes:
    """Return the value that storage keeps.

    Args:
        parts: verified before.
        fetched_at: seconds since 1970.
    """
    return msgspec.json.encode(StoredCollateral(fetched_at, parts))


def parse_storage_key(name: str, update_type: TcbUpdateType) -> CollateralKey | None:
    """Read a key of the namespace; None where it is a lease or of another TCB evaluation."""
    parts = name.removesuffix(".json").split("/")
    if not name.endswith(".json") or len(parts) != 4 or parts[1] != update_type.value:
        return None
    try:
        return CollateralKey(Tee(parts[0]), bytes.fromhex(parts[2]), parts[3])
    except ValueError:
        return None


def _lease_end(lease: bytes) -> float:
    try:
        return float(lease.partition(b":")[0])
    except ValueError:
        return 0.0
