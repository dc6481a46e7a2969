"""Users: made, found, changed and deleted by administrators; names are unique.

A user's record is stored under its id. A second namespace maps the digest of each name to the id
of who has it, and of two that claim a name at once the storage lets one win.
"""

import hashlib
import re
import time
from typing import cast

import msgspec

from keybroker.key_transfer.errors import InUseError
from keybroker.key_transfer.passwords import Passwords, check_password
from keybroker.key_transfer.permissions import check_permissions
from keybroker.key_transfer.records import User, decode_user, encode, new_id, now
from keybroker.model.errors import MalformedError, NotFoundError, StorageError
from keybroker.storage.interface import ComparingStore, KeyValueStore

MAX_USERNAME_LENGTH = 255

_USERNAME = re.compile(r"[A-Za-z0-9._\-]+(@[A-Za-z0-9]([A-Za-z0-9.\-]*[A-Za-z0-9])?)?", re.ASCII)

#: A claim whose user was not written by then is of a process that died in between.
_CLAIM_SECONDS = 60.0

#: Attempts to write a record that others change at the same moment.
_WRITE_ATTEMPTS = 16


class _Claim(msgspec.Struct, frozen=True, array_like=True):
    user_id: str
    at: float


def check_username(username: str) -> str:
    """Return the name if a user may have it.

    Raises:
        MalformedError: not letters, digits and ``. _ -``, perhaps with a host behind an ``@``.
    """
    if len(username) > MAX_USERNAME_LENGTH or not _USERNAME.fullmatch(username):
        raise MalformedError("a username holds letters, digits, . _ - and perhaps @ and a host")
    return username


class UserStore:
    """All users.

    Args:
        records: users by id.
        names: claims by the digest of the name.
        passwords: hashes new passwords.
    """

    def __init__(self, records: KeyValueStore, names: KeyValueStore, passwords: Passwords) -> None:
        self._records = cast(ComparingStore, records)
        self._names = cast(ComparingStore, names)
        self._passwords = passwords

    async def create(self, username: str, password: str, permissions: list[str]) -> User:
        """Make a user.

        Raises:
            MalformedError: name, password or permissions may not be so.
            InUseError: another user has the name.
            LockedOutError: too many passwords wait to be hashed.
        """
        check_username(username)
        check_password(password)
        checked = check_permissions(permissions)
        user = User(
            id=new_id(),
            username=username,
            password_hash=await self._passwords.hash(password),
            permissions=checked,
            created_at=now(),
        )
        await self._claim(username, user.id)
        try:
            await self._records.set(user.id, encode(user))
        except BaseException:
            await self._release(username, user.id)
            raise
        return user

    async def get(self, user_id: str) -> User:
        """Return a user.

        Raises:
            NotFoundError: there is none of that id.
        """
        raw = await self._records.get(user_id)
        if raw is None:
            raise NotFoundError("no such user", detail="no such user")
        return decode_user(raw)

    async def find(self, username: str) -> User | None:
        """Return the user of a name, or None."""
        raw = await self._names.get(_name_key(username))
        if raw is None:
            return None
        stored = await self._records.get(_decode_claim(raw).user_id)
        if stored is None:
            return None
        user = decode_user(stored)
        return user if user.username == username else None

    async def all(self) -> list[User]:
        """Return all users, the oldest first."""
        users = [decode_user(raw) for raw in (await self._records.items()).values()]
        return sorted(users, key=lambda user: (user.created_at, user.id))

    async def update(
        self,
        user_id: str,
        *,
        username: str | None = None,
        password: str | None = None,
        permissions: list[str] | None = None,
    ) -> User:
        """Change what is given.

        Raises:
            NotFoundError: there is no such user.
            MalformedError, InUseError, LockedOutError: as :meth:`create`.
        """
        if username is not None:
            check_username(username)
        checked = None if permissions is None else check_permissions(permissions)
        password_hash = None
        if password is not None:
            check_password(password)
            await self.get(user_id)
            password_hash = await self._passwords.hash(password)
        for _ in range(_WRITE_ATTEMPTS):
            raw = await self._records.get(user_id)
            if raw is None:
                raise NotFoundError("no such user", detail="no such user")
            old = decode_user(raw)
            renamed = username is not None and username != old.username
            new = msgspec.structs.replace(
                old,
                username=old.username if username is None else username,
                permissions=old.permissions if checked is None else checked,
                password_hash=old.password_hash if password_hash is None else password_hash,
                credential=old.credential + (password_hash is not None),
                updated_at=now(),
            )
            if renamed:
                await self._claim(new.username, user_id)
            if await self._records.replace(user_id, encode(new), expected=raw):
                if renamed:
                    await self._release(old.username, user_id)
                return new
            if renamed:
                await self._release(new.username, user_id)
        raise StorageError("the user is changed by too many at once")

    async def delete(self, user_id: str) -> None:
        """Delete a user, whose tokens are worthless from then on.

        Raises:
            NotFoundError: there is no such user.
        """
        user = await self.get(user_id)
        if not await self._records.delete(user_id):
            raise NotFoundError("no such user", detail="no such user")
        await self._release(user.username, user_id)

    async def _claim(self, username: str, user_id: str) -> None:
        key = _name_key(username)
        claim = encode(_Claim(user_id, time.time()))
        if await self._names.set(key, claim, overwrite=False):
            return
        raw = await self._names.get(key)
        if (
            raw is not None
            and await self._is_abandoned(_decode_claim(raw), username)
            and await self._names.replace(key, claim, expected=raw)
        ):
            return
        raise InUseError("another user has this name")

    async def _is_abandoned(self, claim: _Claim, username: str) -> bool:
        if claim.at > time.time() - _CLAIM_SECONDS:
            return False
        stored = await self._records.get(claim.user_id)
        return stored is None or decode_user(stored).username != username

    async def _release(self, username: str, user_id: str) -> None:
        key = _name_key(username)
        raw = await self._names.get(key)
        if raw is not None and _decode_claim(raw).user_id == user_id:
            await self._names.delete(key)


def _name_key(username: str) -> str:
    return hashlib.sha256(username.encode("utf-8", "surrogatepass")).hexdigest()


def _decode_claim(raw: bytes) -> _Claim:
    try:
        return msgspec.json.decode(raw, type=_Claim)
    except msgspec.DecodeError:
        raise StorageError("the claim of a username cannot be read") from None
