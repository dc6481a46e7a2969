"""Sessions of registered workloads: sealed in their cookies until they have attested.

As in the handshake of ``/kbs/v0``, nothing is stored for a client that has proved nothing. The
cookie carries, sealed, which workload it is for, as it was registered at that moment, and for SEV
the transport keys of the launch. The challenge is a digest of the cookie itself: it is as
unpredictable as the cookie's random nonce, and belongs to that cookie alone.

Guests keep the cookie in a buffer of 100 characters, zero byte included, hence the binary form::

    TEE 1 | expiry 4, Unix time, big-endian | workload 16 | revision 16
    and for SEV: TEK 16 | TIK 16 | policy 4 | firmware build 3

After attestation one record is kept under the session's id: that it attested, and what the release
needs of it (the measurement, or the key to encrypt to). It is written once: who comes second with a
cookie, whoever that is, attests nothing.
"""

import hashlib
import struct
import time
from dataclasses import dataclass, field
from typing import Final

import msgspec

from keybroker.kbs.sessions import CLOCK_SKEW_SECONDS, CookieSeal, SessionError, SessionKeys
from keybroker.model.errors import StorageError
from keybroker.storage.interface import KeyValueStore
from keybroker.workloads.registration import WorkloadTee
from keybroker.workloads.sev_launch import KEY_BYTES as TRANSPORT_KEY_BYTES
from keybroker.workloads.sev_launch import Build, TransportKeys
from keybroker.workloads.sev_policy import SevPolicy, decode_policy
from keybroker.workloads.store import KEY_BYTES, REVISION_BYTES

#: Name of the session cookie.
SESSION_COOKIE: Final = "session_id"

#: Namespace of the records of attested sessions.
SESSION_NAMESPACE: Final = "workload_session"

#: Longest cookie of an SNP session: guests hold it in 100 characters with the zero byte.
MAX_SNP_COOKIE_CHARS: Final = 99

_PURPOSE = b"keybroker workload cookie v1"
_CHALLENGE = b"keybroker workload challenge v1"

#: Size of a session's id, of which the challenge is the hexadecimal form: as long as clients of the
#: API know it, for some of them have fixed buffers.
_ID_BYTES = 16

_COMMON = struct.Struct(f">BI{KEY_BYTES}s{REVISION_BYTES}s")
_LAUNCH = struct.Struct(f">{TRANSPORT_KEY_BYTES}s{TRANSPORT_KEY_BYTES}s4s3s")
_TEES = {WorkloadTee.SEV: 1, WorkloadTee.SNP: 2}


@dataclass(frozen=True, slots=True)
class SevLaunch:
    """What the broker must remember of an SEV launch between its beginning and its measurement."""

    keys: TransportKeys = field(repr=False)
    policy: SevPolicy
    build: Build


@dataclass(frozen=True, slots=True)
class WorkloadSession:
    """What a cookie says.

    Attributes:
        id: 16 bytes, derived from the cookie.
        expires_at: Unix time in seconds.
        workload: :func:`keybroker.workloads.store.workload_key`.
        revision: of the workload when the session began.
        launch: for SEV alone.
    """

    id: bytes
    tee: WorkloadTee
    expires_at: int
    workload: bytes
    revision: bytes
    launch: SevLaunch | None

    @property
    def nonce(self) -> str:
        """The challenge as it travels: 32 hexadecimal digits."""
        return self.id.hex()

    @property
    def record_key(self) -> str:
        """Key of the stored record. The expiry leads, so that cleaning up needs no reading."""
        return f"{self.expires_at:010d}-{self.id.hex()}"


class Attested(msgspec.Struct, frozen=True, array_like=True):
    """Record of an attested session.

    Attributes:
        measure: SEV: the measurement that verified, which the secret's MAC covers.
        modulus, exponent: SNP: the guest's RSA key, big-endian.
        alg: SNP: the padding that the guest asked for.
    """

    measure: bytes = b""
    modulus: bytes = b""
    exponent: bytes = b""
    alg: str = ""


class WorkloadSessions:
    """Makes, opens and remembers sessions.

    Args:
        keys: where sealing keys come from.
        records: the namespace :data:`SESSION_NAMESPACE`.
        lifetime: seconds from the challenge to the session's end.
    """

    def __init__(self, keys: SessionKeys, records: KeyValueStore, *, lifetime: int) -> None:
        self._seal = CookieSeal(keys, _PURPOSE, lifetime)
        self._records = records
        self._lifetime = lifetime

    async def issue(
        self, tee: WorkloadTee, workload: bytes, revision: bytes, launch: SevLaunch | None = None
    ) -> tuple[WorkloadSession, str]:
        """Start a session; return it with its sealed cookie value."""
        expires_at = int(time.time()) + self._lifetime
        payload = _COMMON.pack(_TEES[tee], expires_at, workload, revision)
        if launch is not None:
            payload += _LAUNCH.pack(
                launch.keys.tek, launch.keys.tik, launch.policy.encode(), launch.build.encode()
            )
        cookie = await self._seal.seal(payload)
        session = WorkloadSession(
            _session_id(cookie.raw), tee, expires_at, workload, revision, launch
        )
        return session, cookie.value

    async def open(self, cookie: str | None) -> WorkloadSession:
        """Open a cookie.

        Raises:
            SessionError: absent, tampered with, expired, or of another broker or protocol.
        """
        opened = await self._seal.open(cookie)
        try:
            session = _parse_payload(opened.payload, _session_id(opened.raw))
        except (struct.error, KeyError):
            raise SessionError("the session cookie was sealed by another release") from None
        if session.expires_at < int(time.time()):
            raise SessionError("the session has expired")
        return session

    async def attested(self, session: WorkloadSession) -> Attested | None:
        """Return the record of a session that has attested, or None."""
        stored = await self._records.get(session.record_key)
        if stored is None:
            return None
        try:
            return msgspec.msgpack.decode(stored, type=Attested)
        except msgspec.DecodeError:
            raise StorageError("a stored workload session cannot be read") from None

    async def attest(self, session: WorkloadSession, record: Attested) -> None:
        """Keep that a session has attested; exactly once.

        Raises:
            SessionError: it had before.
        """
        value = msgspec.msgpack.encode(record)
        if not await self._records.set(session.record_key, value, overwrite=False):
            raise used_session()

    async def forget_expired(self) -> int:
        """Delete the records of sessions that have ended; return how many there were."""
        limit = f"{int(time.time()) - CLOCK_SKEW_SECONDS:010d}-"
        return await self._records.delete_before(limit)


def used_session() -> SessionError:
    """Make the error of a session that has attested and is asked to do so again."""
    return SessionError(
        "the session has attested already",
        detail="this session has attested already: start with POST auth",
    )


def _session_id(raw_cookie: bytes) -> bytes:
    return hashlib.sha256(_CHALLENGE + raw_cookie).digest()[:_ID_BYTES]


def _parse_payload(payload: bytes, session_id: bytes) -> WorkloadSession:
    number, expires_at, workload, revision = _COMMON.unpack(payload[: _COMMON.size])
    tee = {value: key for key, value in _TEES.items()}[number]
    launch = None
    if tee is WorkloadTee.SEV:
        tek, tik, policy, build = _LAUNCH.unpack(payload[_COMMON.size :])
        launch = SevLaunch(TransportKeys(tek, tik), decode_policy(policy), Build(*build))
    return WorkloadSession(session_id, tee, expires_at, workload, revision, launch)
