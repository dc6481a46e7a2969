"""The challenge cookie is the session.

Until a guest has attested, everything the broker must remember of it (which TEE, which nonce, until
when) travels sealed in the guest's own cookie. Nothing is stored for a client that has not proved
anything: it can fill neither memory nor a database, and any worker or replica that shares the key
can answer its next request. Only after attestation is a record kept: the token under the session's
id, so that attesting again with the same cookie gives the same token.

The cookie is AES-256-GCM under the key of an epoch, by default a day (:class:`SessionKeys`)::

    base64url(version 1 | epoch, 4 bytes big-endian | nonce 12 | ciphertext | tag 16)
"""

import base64
import binascii
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keybroker.model.errors import ConfigError, StorageError, UnauthenticatedError
from keybroker.storage.interface import KeyValueStore
from keybroker.tokens.remembered import Remembered

logger = logging.getLogger(__name__)

#: How long one key seals, where the configuration says nothing else. With random 96-bit nonces a
#: day keeps a broker that issues ten thousand challenges a second below the 2**32 messages of
#: NIST SP 800-38D, section 8.3.
KEY_SECONDS = 24 * 60 * 60

#: Longest cookie that is looked at; ours are some 200 characters.
MAX_COOKIE_LENGTH = 1024

#: Attested sessions remembered in memory by each worker; the storage holds all of them.
REMEMBERED_SESSIONS = 4096

#: Characters of their tokens: some 2,500 each for SNP, 25,000 for TDX with its event log.
REMEMBERED_TOKEN_CHARS = 8 * 1024 * 1024

#: Sealing keys held in memory: the current one, and those that open cookies still in flight.
REMEMBERED_KEYS = 32

#: Clocks of replicas may differ by this much.
CLOCK_SKEW_SECONDS = 5

_VERSION = b"\x01"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_ID_BYTES = 16
_AAD = b"keybroker session cookie v1"
_HEADER_BYTES = 1 + 4

#: What sealing adds to a payload.
SEAL_OVERHEAD_BYTES = _HEADER_BYTES + _NONCE_BYTES + 16


class SessionError(UnauthenticatedError):
    """The cookie is absent, tampered with, expired or of another broker."""

    default_detail = "no valid session: start with POST /kbs/v0/auth"


class Session(msgspec.Struct, frozen=True, array_like=True):
    """What a challenge cookie says.

    Attributes:
        id: 16 random bytes.
        tee: the kind that the guest announced.
        nonce: the challenge, base64 as it was sent.
        expires_at: Unix time in seconds.
        hash_algorithm: what was selected for the report data.
    """

    id: bytes
    tee: str
    nonce: str
    expires_at: int
    hash_algorithm: str

    @property
    def record_key(self) -> str:
        """Key of the stored record. The expiry leads, so that cleaning up needs no reading."""
        return f"{self.expires_at:010d}-{self.id.hex()}"


@dataclass(slots=True)
class SessionKeys:
    """The sealing keys, one an epoch, shared through storage or derived from a configured secret.

    Each epoch's key is made by whichever worker needs it first (the store lets exactly one win),
    so that rotation needs no coordination and breaks no session in flight: the key before still
    opens its cookies until these expire.

    Attributes:
        store: where made keys are kept.
        secret: at least 32 bytes that replicas share; keys are then derived, none is stored.
        epoch_seconds: how long one key seals.
    """

    store: KeyValueStore
    secret: bytes | None = field(default=None, repr=False)
    epoch_seconds: int = KEY_SECONDS
    _keys: dict[int, AESGCM] = field(default_factory=dict, repr=False)

    async def key(self, epoch: int, *, make: bool) -> AESGCM | None:
        """Return the key of an epoch; make it if it is new and ``make`` is true."""
        known = self._keys.get(epoch)
        if known is not None:
            return known
        if self.secret is not None:
            raw: bytes | None = HKDF(
                hashes.SHA256(), _KEY_BYTES, salt=None, info=_AAD + epoch.to_bytes(4, "big")
            ).derive(self.secret)
        else:
            raw = await self._stored(epoch, make=make)
        if raw is None:
            return None
        if len(raw) != _KEY_BYTES:
            raise StorageError("a stored session key does not have 32 bytes")
        cipher = AESGCM(raw)
        self._keys[epoch] = cipher
        while len(self._keys) > REMEMBERED_KEYS:
            del self._keys[min(self._keys)]
        return cipher

    async def _stored(self, epoch: int, *, make: bool) -> bytes | None:
        name = f"session-{epoch:08d}"
        raw = await self.store.get(name)
        if raw is None and make:
            await self.store.set(name, os.urandom(_KEY_BYTES), overwrite=False)
            raw = await self.store.get(name)  # another worker may have been first
            await self._forget_before(epoch - REMEMBERED_KEYS)
        return raw

    async def _forget_before(self, epoch: int) -> None:
        for name in await self.store.keys():
            if name.startswith("session-") and name < f"session-{max(epoch, 0):08d}":
                await self.store.delete(name)


@dataclass(frozen=True, slots=True)
class SealedCookie:
    """A cookie and what it says.

    Attributes:
        raw: the sealed bytes; unique to this cookie and unpredictable.
        payload: what was sealed.
    """

    raw: bytes = field(repr=False)
    payload: bytes = field(repr=False)

    @property
    def value(self) -> str:
        """The cookie as it travels: base64url without padding."""
        return base64.urlsafe_b64encode(self.raw).rstrip(b"=").decode("ascii")


@dataclass(frozen=True, slots=True)
class CookieSeal:
    """Seals the cookies of one protocol and opens them again.

    Attributes:
        keys: where sealing keys come from.
        purpose: tells protocols that share the keys apart: one's cookie does not open as another's.
        lifetime: seconds after which no cookie is worth opening any more.
    """

    keys: SessionKeys
    purpose: bytes
    lifetime: int

    async def seal(self, payload: bytes) -> SealedCookie:
        """Seal a payload; the cookie is :data:`SEAL_OVERHEAD_BYTES` longer before its base64."""
        epoch = int(time.time()) // self.keys.epoch_seconds
        cipher = await self.keys.key(epoch, make=True)
        if cipher is None:
            raise StorageError("the session key could not be made")
        header = _VERSION + epoch.to_bytes(4, "big")
        nonce = os.urandom(_NONCE_BYTES)
        sealed = cipher.encrypt(nonce, payload, self.purpose + header)
        return SealedCookie(header + nonce + sealed, payload)

    async def open(self, cookie: str | None) -> SealedCookie:
        """Open a cookie.

        Raises:
            SessionError: absent, tampered with, out of use, or sealed by another broker or for
                another protocol.
        """
        if not cookie or len(cookie) > MAX_COOKIE_LENGTH:
            raise SessionError("no session cookie, or one of absurd length")
        try:
            raw = base64.b64decode(
                cookie.encode("ascii") + b"=" * (-len(cookie) % 4), altchars=b"-_", validate=True
            )
        except (binascii.Error, ValueError):
            raise SessionError("the session cookie is not base64url") from None
        start = _HEADER_BYTES + _NONCE_BYTES
        if len(raw) < start or raw[:1] != _VERSION:
            raise SessionError("the session cookie is not of this broker")
        now = int(time.time())
        epoch = int.from_bytes(raw[1:_HEADER_BYTES], "big")
        current = now // self.keys.epoch_seconds
        oldest = (now - self.lifetime - CLOCK_SKEW_SECONDS) // self.keys.epoch_seconds
        if not oldest <= epoch <= current + 1:
            raise SessionError("the session cookie was sealed with a key that is out of use")
        cipher = await self.keys.key(epoch, make=False)
        if cipher is None:
            raise SessionError("the session cookie was sealed by another broker")
        try:
            payload = cipher.decrypt(
                raw[_HEADER_BYTES:start], raw[start:], self.purpose + raw[:_HEADER_BYTES]
            )
        except InvalidTag:
            raise SessionError("the session cookie was tampered with") from None
        return SealedCookie(raw, payload)


class Sessions:
    """Makes, opens and remembers sessions.

    Args:
        keys: where sealing keys come from.
        records: the namespace ``kbs_protocol_session``.
        lifetime: seconds from the challenge to the session's end.
    """

    def __init__(self, keys: SessionKeys, records: KeyValueStore, *, lifetime: int) -> None:
        self._seal = CookieSeal(keys, _AAD, lifetime)
        self._records = records
        self.lifetime = lifetime
        self._tokens: Remembered[str, str] = Remembered(REMEMBERED_SESSIONS, REMEMBERED_TOKEN_CHARS)

    async def issue(self, tee: str, nonce: str, hash_algorithm: str) -> tuple[Session, str]:
        """Start a session; return it with its sealed cookie value."""
        expires_at = int(time.time()) + self.lifetime
        session = Session(os.urandom(_ID_BYTES), tee, nonce, expires_at, hash_algorithm)
        cookie = await self._seal.seal(msgspec.msgpack.encode(session))
        return session, cookie.value

    async def open(self, cookie: str | None) -> Session:
        """Open a cookie.

        Raises:
            SessionError: absent, tampered with, expired, or sealed by another broker.
        """
        opened = await self._seal.open(cookie)
        try:
            session = msgspec.msgpack.decode(opened.payload, type=Session)
        except msgspec.DecodeError:
            raise SessionError("the session cookie was sealed by another release") from None
        if session.expires_at < int(time.time()):
            raise SessionError("the session has expired")
        return session

    async def token(self, session: Session) -> str | None:
        """Return the token of a session that has attested, or None."""
        key = session.record_key
        known = self._tokens.get(key, time.time())
        if known is not None:
            return known
        raw = await self._records.get(key)
        if raw is None:
            return None
        return self._remember(session, raw.decode("utf-8"))

    async def attested(self, session: Session, token: str) -> str:
        """Keep the token of a session; return the one that is kept.

        Where two requests with one cookie attest at the same moment, the first to arrive here
        wins and both get its token.
        """
        key = session.record_key
        if not await self._records.set(key, token.encode("utf-8"), overwrite=False):
            first = await self._records.get(key)
            if first is not None:
                token = first.decode("utf-8")
        return self._remember(session, token)

    def _remember(self, session: Session, token: str) -> str:
        self._tokens.put(
            session.record_key, token, expires_at=session.expires_at, weight=len(token)
        )
        return token

    async def forget_expired(self) -> int:
        """Delete the records of sessions that have ended; return how many there were."""
        limit = f"{int(time.time()) - CLOCK_SKEW_SECONDS:010d}-"
        return await self._records.delete_before(limit)


def challenge_nonce(raw: bytes) -> str:
    """Encode a nonce as the protocol sends it: standard base64 with padding."""
    return base64.b64encode(raw).decode("ascii")


def read_session_secret(path: str) -> bytes:
    """Read the secret that replicas share: a file of at least 32 bytes in base64.

    Raises:
        ConfigError: the file cannot be read, or does not hold that.
    """
    try:
        raw = base64.b64decode(Path(path).read_bytes().strip(), validate=True)
    except (OSError, binascii.Error) as error:
        raise ConfigError(f"session.key_file {path}: {error}") from None
    if len(raw) < _KEY_BYTES:
        raise ConfigError(f"session.key_file {path}: fewer than {_KEY_BYTES} bytes")
    return raw
