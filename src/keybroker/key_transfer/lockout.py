"""Lock-out: who gives too many wrong passwords may not try again for a while.

Failures of users that exist are kept in the storage, so that all workers count together. Those of
names that nobody has are counted as well, so that names cannot be told apart by it, but in memory
and for a bounded number of names: what a stranger invents must not fill the storage.
"""

import hashlib
import time
from collections import OrderedDict
from typing import cast

import msgspec

from keybroker.config.key_transfer import LockoutConfig
from keybroker.key_transfer.errors import LockedOutError
from keybroker.model.errors import StorageError
from keybroker.storage.interface import ComparingStore, KeyValueStore

#: Names of nobody that are remembered.
MAX_UNKNOWN_NAMES = 4096

#: Attempts to write a count that other workers change at the same moment.
_WRITE_ATTEMPTS = 16


class _Failures(msgspec.Struct, frozen=True, array_like=True):
    """Wrong passwords: how many, when the last one was, and until when no more are looked at."""

    count: int
    last_at: float
    locked_until: float = 0.0


_NONE = _Failures(0, 0.0)


class Lockout:
    """Counts wrong passwords.

    Args:
        store: keeps the counts of users that exist, by their id.
        config: how many, within what time, and for how long.
    """

    def __init__(self, store: KeyValueStore, config: LockoutConfig) -> None:
        self._store = cast(ComparingStore, store)
        self._config = config
        self._unknown: OrderedDict[bytes, _Failures] = OrderedDict()

    async def check(self, user_id: str | None, username: str) -> None:
        """Return if the user may try a password now.

        Raises:
            LockedOutError: the user is locked out.
        """
        failures, _ = await self._read(user_id, username)
        if failures.locked_until > time.time():
            raise LockedOutError(f"the user {username[:64]!r} is locked out")

    async def failed(self, user_id: str | None, username: str) -> None:
        """Count a wrong password."""
        for _ in range(_WRITE_ATTEMPTS):
            failures, raw = await self._read(user_id, username)
            counted = self._count(failures)
            if user_id is None:
                self._remember(username, counted)
                return
            value = msgspec.json.encode(counted)
            if raw is None:
                if await self._store.set(user_id, value, overwrite=False):
                    return
            elif await self._store.replace(user_id, value, expected=raw):
                return
        raise StorageError("failed logins could not be counted")

    async def succeeded(self, user_id: str) -> None:
        """Forget the wrong passwords of a user who gave the right one."""
        if await self._store.get(user_id) is not None:
            await self._store.delete(user_id)

    def _count(self, failures: _Failures) -> _Failures:
        config = self._config
        now = time.time()
        if failures.locked_until > now:
            return failures  # an attempt that began before another one locked the user out
        recent = now - failures.last_at < config.interval_minutes * 60
        # The count begins anew behind a lock-out that is over.
        count = failures.count + 1 if recent and not failures.locked_until else 1
        if count < config.max_attempts:
            return _Failures(count, now)
        return _Failures(count, now, now + config.lockout_minutes * 60)

    async def _read(self, user_id: str | None, username: str) -> tuple[_Failures, bytes | None]:
        if user_id is None:
            return self._unknown.get(_name_digest(username), _NONE), None
        raw = await self._store.get(user_id)
        if raw is None:
            return _NONE, None
        try:
            return msgspec.json.decode(raw, type=_Failures), raw
        except msgspec.DecodeError:
            raise StorageError("a count of failed logins cannot be read") from None

    def _remember(self, username: str, failures: _Failures) -> None:
        digest = _name_digest(username)
        self._unknown[digest] = failures
        self._unknown.move_to_end(digest)
        if len(self._unknown) > MAX_UNKNOWN_NAMES:
            self._unknown.popitem(last=False)


def _name_digest(username: str) -> bytes:
    return hashlib.sha256(username.encode("utf-8", "surrogatepass")).digest()
