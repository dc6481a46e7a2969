"""What the broker asks of a place that keeps bytes.

A *namespace* is one flat map from key to value. Keys are made of ``a-z A-Z 0-9 - _ . /``, never
start with ``.`` or ``/``, and are at most :data:`MAX_KEY_LENGTH` characters (Trustee's key format).
Values are bytes of any length.

Every write is atomic and durable: a process killed at any instant leaves the old value or the new.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from keybroker.model.errors import MalformedError

#: Longest key; with a file back end the escaped name must fit the 255 bytes of a file name.
MAX_KEY_LENGTH = 200

_KEY = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_\-./]*")
_NAMESPACE = re.compile(r"[A-Za-z0-9_\-]+")


@lru_cache(maxsize=4096)
def check_key(key: str) -> str:
    """Return the key if it may be used.

    Raises:
        MalformedError: empty, too long, a character that is not allowed, or a segment that is
            empty, ``.`` or ``..``.
    """
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise MalformedError("a name may hold only a-z A-Z 0-9 - _ . and / and must not be long")
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise MalformedError("a name must not hold an empty, . or .. segment")
    return key


def is_key(text: str) -> bool:
    """Whether the text may be used as a key."""
    try:
        check_key(text)
    except MalformedError:
        return False
    return True


class KeyValueStore(Protocol):
    """One namespace."""

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None where there is none.

        Raises:
            StorageError: the back end failed, or the stored value cannot be decrypted.
        """
        ...

    async def version(self, key: str) -> object | None:
        """Return something that differs whenever the value under the key may have changed.

        Cheap enough to ask before every use of a value that was parsed or compiled once: this is
        how a change made through one worker is in force in all. None: there is no value.
        """
        ...

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        """Write the value; return False where one was there and ``overwrite`` is false.

        Of two concurrent writers with ``overwrite=False`` exactly one gets True.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Delete the value; return whether there was one."""
        ...

    async def delete_before(self, key: str) -> int:
        """Delete all values whose keys sort before a key, and return how many there were.

        For what ends by itself, kept under keys that begin with the time of its end.
        """
        ...

    async def keys(self) -> list[str]:
        """Return all keys, sorted."""
        ...

    async def items(self) -> Mapping[str, bytes]:
        """Return all keys with their values, read at one moment where the back end can."""
        ...

    async def revision(self) -> object:
        """Return something that differs whenever anything in the namespace may have changed."""
        ...


class ComparingStore(KeyValueStore, Protocol):
    """A namespace that can also compare and set in one step; all back ends here can."""

    async def replace(self, key: str, value: bytes, *, expected: bytes) -> bool:
        """Write the value where exactly ``expected`` is stored; return whether it was.

        So that a value can be read, changed and written back without undoing what another writer
        did in between.
        """
        ...


class StorageProvider(Protocol):
    """Hands out namespaces."""

    async def namespace(self, name: str, storage_type: str | None = None) -> KeyValueStore:
        """Return the namespace, made if it is new; the same object for the same arguments.

        Args:
            name: ``kbs``, ``repository``, ``kbs_protocol_session``,
                ``attestation_service_policy``, ``reference_value``, or one of our own.
            storage_type: another back end than the configured one (``session_storage_type``).
        """
        ...

    async def close(self) -> None:
        """Release files and connections."""
        ...


def check_namespace(name: str) -> str:
    """Return the namespace name if it may be used.

    Raises:
        ValueError: a character other than letters, digits, ``-`` and ``_``.
    """
    if not _NAMESPACE.fullmatch(name):
        raise ValueError(f"namespace {name!r} is not a plain name")
    return name
