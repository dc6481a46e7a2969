"""Nonces of background mode: issued without being stored, used once.

A nonce is three octet strings, as Trust Authority issues them: a random value, the time of issue,
and a signature. Ours are signed with HMAC-SHA-384 over the key's id, value and time, so nothing is
stored for a client that has not proved anything. Only when evidence that binds a nonce verified is
the nonce remembered, until it would have expired, and refused from then on.
"""

import base64
import binascii
import hashlib
import hmac
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from keybroker.model.errors import EvidenceError, MalformedError
from keybroker.storage.interface import KeyValueStore

#: Clocks of replicas may differ by this much.
CLOCK_SKEW_SECONDS = 5

#: How long a nonce of another issuer is remembered once it was used; theirs live for minutes.
FOREIGN_NONCE_SECONDS = 3600

#: Longest member of a nonce; Trust Authority's signatures have 384 bytes.
MAX_MEMBER_BYTES = 2048

#: The original's parser passes over these, and tools that wrap lines rely on it.
LINE_BREAKS = str.maketrans("", "", "\r\n")

_VALUE_BYTES = 64
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f +0000 UTC"
_DOMAIN = b"keybroker key transfer nonce v1\0"


class ReplayedNonceError(EvidenceError):
    """The nonce was used before."""

    default_detail = "the nonce was used already"


@dataclass(frozen=True, slots=True)
class Nonce:
    """A nonce as it travels.

    Attributes:
        val: random octets.
        iat: time of issue, text in ASCII.
        signature: the issuer's, over both.
    """

    val: bytes
    iat: bytes
    signature: bytes = field(repr=False)

    @property
    def bound(self) -> bytes:
        """What evidence binds, before the user data: value, then time."""
        return self.val + self.iat

    def to_json(self) -> dict[str, str]:
        """Give it the form of the wire: base64 with padding."""
        return {
            "val": base64.b64encode(self.val).decode("ascii"),
            "iat": base64.b64encode(self.iat).decode("ascii"),
            "signature": base64.b64encode(self.signature).decode("ascii"),
        }


def parse_nonce(value: Any) -> Nonce:
    """Read a nonce of the wire.

    Raises:
        MalformedError: not an object of exactly the three members in base64.
    """
    if not isinstance(value, dict) or set(value) != {"val", "iat", "signature"}:
        raise MalformedError("nonce must have val, iat and signature")
    return Nonce(*(parse_octets(value[name], name) for name in ("val", "iat", "signature")))


def parse_octets(value: Any, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
    """Read octets of the wire: base64 with padding; line breaks in it are passed over.

    Raises:
        MalformedError: not a string, not base64, or longer than the limit in bytes.
    """
    if not isinstance(value, str) or len(value) > limit * 4 // 3 + 4:
        raise MalformedError(f"{name} must be base64 of at most {limit} bytes")
    try:
        return base64.b64decode(value.translate(LINE_BREAKS), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{name} is not base64") from None


class Nonces:
    """Issues and checks the broker's own nonces, and remembers every nonce that was used.

    Args:
        key: 32 bytes that all workers and replicas share.
        used: where used nonces are remembered.
        lifetime: seconds for which a nonce is valid.
    """

    def __init__(self, key: bytes, used: KeyValueStore, *, lifetime: int) -> None:
        self._key = key
        self._used = used
        self._lifetime = lifetime

    def issue(self, key_id: str) -> Nonce:
        """Issue a nonce for the transfer of one key."""
        val = os.urandom(_VALUE_BYTES)
        iat = datetime.now(UTC).strftime(_TIME_FORMAT).encode("ascii")
        return Nonce(val, iat, self._sign(key_id, val, iat))

    def verify(self, nonce: Nonce, key_id: str) -> None:
        """Return if this broker issued the nonce for the key, not too long ago.

        Raises:
            EvidenceError: it did not.
        """
        if not hmac.compare_digest(self._sign(key_id, nonce.val, nonce.iat), nonce.signature):
            raise EvidenceError("the nonce is not of this broker, or was issued for another key")
        # Signed by us, so it is in the form in which we write it.
        issued = datetime.strptime(nonce.iat.decode("ascii"), _TIME_FORMAT).replace(tzinfo=UTC)
        age = time.time() - issued.timestamp()
        if not -CLOCK_SKEW_SECONDS <= age <= self._lifetime:
            raise EvidenceError(f"the nonce has expired: it is {age:.0f} seconds old")

    async def use(self, nonce: Nonce, *, own: bool) -> None:
        """Use up a nonce whose evidence verified.

        Raises:
            ReplayedNonceError: it was used before; of two at once, one.
        """
        kept_for = self._lifetime + CLOCK_SKEW_SECONDS if own else FOREIGN_NONCE_SECONDS
        forget_at = int(time.time()) + kept_for + 1
        name = hashlib.sha256(nonce.val).hexdigest()
        if not await self._used.set(name, str(forget_at).encode("ascii"), overwrite=False):
            raise ReplayedNonceError("the nonce was used already")

    async def forget_expired(self) -> int:
        """Delete what is remembered of nonces that have expired; return how many there were."""
        now = time.time()
        expired = [name for name, at in (await self._used.items()).items() if int(at) < now]
        for name in expired:
            await self._used.delete(name)
        return len(expired)

    def _sign(self, key_id: str, val: bytes, iat: bytes) -> bytes:
        message = hashlib.sha384(val).digest() + hashlib.sha384(iat).digest()
        return hmac.digest(self._key, _DOMAIN + key_id.encode("ascii") + message, "sha384")
