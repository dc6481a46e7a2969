"""Passwords: Argon2id, computed by a thread of its own and never by more at once.

One hash takes some 50 ms and 19 MiB. Were it computed on the workbench, anybody who sends login
after login could keep evidence from being verified; here logins only wait for each other, and
when too many wait the next is told to come back.

Specification: RFC 9106; parameters of the OWASP Password Storage Cheat Sheet, which are its
recommendation for servers that answer logins.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from keybroker.key_transfer.errors import LockedOutError
from keybroker.model.errors import MalformedError

#: In characters.
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 72

#: Hashes that may wait; at 50 ms each the last of them waits under two seconds.
MAX_WAITING = 32

_MEMORY_KIB = 19 * 1024
_ITERATIONS = 2
_LANES = 1
_SALT_BYTES = 16
_HASH_BYTES = 32

_T = TypeVar("_T")


def check_password(password: str) -> str:
    """Return the password if it may be set.

    Raises:
        MalformedError: shorter than 8 or longer than 72 characters, or with control characters.
    """
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise MalformedError(
            f"a password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters"
        )
    if not password.isprintable():
        raise MalformedError("a password holds printable characters only")
    return password


class Passwords:
    """Hashes and verifies, one at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._waiting = 0
        # Verified in place of the hash of a user that does not exist, at the same cost.
        self._nobody = _derive(os.urandom(_HASH_BYTES).hex())

    async def hash(self, password: str) -> str:
        """Return the encoded hash (``$argon2id$…``) of a password.

        Raises:
            LockedOutError: too many wait.
        """
        return await self._run(lambda: _derive(password))

    async def verify(self, password: str, encoded: str | None) -> bool:
        """Say whether the password is the one that was hashed.

        Args:
            encoded: the hash; None: of a user that does not exist. It costs the same.

        Raises:
            LockedOutError: too many wait.
        """
        return await self._run(lambda: self._check(password, encoded))

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check(self, password: str, encoded: str | None) -> bool:
        matches = _matches(password, self._nobody if encoded is None else encoded)
        return matches and encoded is not None

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= MAX_WAITING:
            raise LockedOutError("too many logins at once")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1


def _derive(password: str) -> str:
    kdf = Argon2id(
        salt=os.urandom(_SALT_BYTES),
        length=_HASH_BYTES,
        iterations=_ITERATIONS,
        lanes=_LANES,
        memory_cost=_MEMORY_KIB,
    )
    return kdf.derive_phc_encoded(password.encode("utf-8"))


def _matches(password: str, encoded: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode("utf-8", "surrogatepass"), encoded)
    except InvalidKey:
        return False
    return True
