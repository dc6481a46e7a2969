"""What is stored: users and keys. Values are JSON, one record a key of the storage."""

import re
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec

from keybroker.model.errors import MalformedError, StorageError

#: Stands for "no policy" where the wire wants an id, and for "never" where it wants a time.
NIL_ID = "00000000-0000-0000-0000-000000000000"
NEVER = "0001-01-01T00:00:00Z"

#: In either case; which version it is says nothing here.
_UUID = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}", re.ASCII
)


def new_id() -> str:
    """Make an id: a random UUID (RFC 9562, version 4)."""
    return str(uuid4())


def parse_id(text: str) -> str:
    """Read an id; records are found by its lower-case form.

    Raises:
        MalformedError: not a UUID.
    """
    if not _UUID.fullmatch(text):
        raise MalformedError("an id must be a UUID")
    return text.lower()


def now() -> str:
    """Return the time as records and answers hold it: RFC 3339 in UTC, with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A user of the administrators' API.

    Attributes:
        password_hash: encoded Argon2id.
        credential: raised with every change of the password, which ends tokens issued before.
    """

    id: str
    username: str
    password_hash: str
    permissions: tuple[str, ...]
    created_at: str
    updated_at: str = NEVER
    credential: int = 0

    def __repr__(self) -> str:
        return f"User({self.username!r}, {self.id})"


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the broker knows of a key; the key itself is with the key manager.

    Attributes:
        algorithm: ``AES``, ``RSA`` or ``EC``.
        key_length: in bits; None for EC.
        curve_type: as the client named it.
        kmip_key_id: the key's id on the KMIP server.
        transfer_policy_id: :data:`NIL_ID` where there is none.
    """

    id: str
    algorithm: str
    key_length: int | None = None
    curve_type: str | None = None
    kmip_key_id: str | None = None
    transfer_policy_id: str = NIL_ID
    created_at: str

    @property
    def transfer_link(self) -> str:
        """Where the key is transferred."""
        return f"/kbs/v1/keys/{self.id}/transfer"


def encode(record: Any) -> bytes:
    """Write a record."""
    return msgspec.json.encode(record)


def decode_user(raw: bytes) -> User:
    """Read a stored user.

    Raises:
        StorageError: it is not one.
    """
    try:
        return msgspec.json.decode(raw, type=User)
    except msgspec.DecodeError:
        raise StorageError("a stored user cannot be read") from None


def decode_key(raw: bytes) -> KeyRecord:
    """Read a stored key record.

    Raises:
        StorageError: it is not one.
    """
    try:
        return msgspec.json.decode(raw, type=KeyRecord)
    except msgspec.DecodeError:
        raise StorageError("a stored key record cannot be read") from None
