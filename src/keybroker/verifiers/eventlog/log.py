"""Confidential computing event logs: the TCG "crypto agile" format.

A log is a header event of the old format that names the digest algorithms with their sizes, then
events::

    u32 register, u32 type, u32 count, count × (u16 algorithm, digest), u32 size, data

all little-endian. The log lies in a memory area of fixed size; eight bytes of 0xFF (a CCEL table)
or of zero mark where it ends, and nothing after them is looked at. Events of the attestation agent
(AAEL) are ``EV_EVENT_TAG`` events of the same log.

Specification: TCG PC Client Platform Firmware Profile 1.06, sections 10.2.2 and 10.4.5.1; UEFI
2.11, section 38.4 (registers of Intel TDX).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from keybroker.model.errors import EvidenceError
from keybroker.verifiers.eventlog import tcg
from keybroker.verifiers.eventlog.details import parse_details

#: Most events taken. A full boot has about a hundred; an agent adds one for each container image
#: it pulls. More would make claims that no policy reads and no token carries.
MAX_EVENTS = 10_000

#: Most digests of one event. Each is of another algorithm, of which seven exist.
_MAX_DIGESTS = 8

#: How much of a base64 text is decoded at first. Real logs are below it; a megabyte of padding
#: behind the last event is never decoded at all.
_FIRST_CHUNK = 64 * 1024

_U16 = Struct("<H")
_U32 = Struct("<I")
_EVENT_HEAD = Struct("<III")
_END_MARKS = (b"\xff" * 8, b"\0" * 8)

#: Bytes of the header event before its size: register, type, 20 bytes of a digest that is zero.
_HEADER_EVENT_BYTES = 28

#: Bytes of TCG_EfiSpecIDEvent before the number of algorithms.
_SPEC_ID_HEAD_BYTES = 24


class _TruncatedError(Exception):
    """The log goes on behind what is there."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        register: index of the measurement register it was extended into.
        event_type: number of the type.
        digests: algorithm → digest, in the order of the log.
        data: what was logged; measured only as far as the digest covers it.
    """

    register: int
    event_type: int
    digests: Mapping[int, bytes]
    data: bytes = field(repr=False)

    def is_measured(self) -> bool:
        """Tell whether events of this type are extended into a register; EV_NO_ACTION is not."""
        return self.event_type != tcg.EV_NO_ACTION

    def digest_matches_event(self) -> bool:
        """Tell whether every digest is the hash of ``data``; false where there is no digest."""
        if not self.digests:
            return False
        for algorithm, digest in self.digests.items():
            known = tcg.HASHES.get(algorithm)
            if known is None:
                return False
            try:
                computed = hashlib.new(known[0], self.data, usedforsecurity=False).digest()
            except ValueError:
                # the platform's OpenSSL lacks SM3
                return False
            if not hmac.compare_digest(computed, digest):
                return False
        return True

    def claims(self) -> dict[str, Any]:
        """Return the claims about this event, by the names of ``uefi_event_logs``."""
        return {
            "index": self.register,
            "type_name": tcg.event_type_name(self.event_type),
            "digest_matches_event": self.digest_matches_event(),
            "digests": [
                {"alg": tcg.algorithm_name(algorithm), "digest": digest.hex()}
                for algorithm, digest in self.digests.items()
            ],
            "event": base64.b64encode(self.data).decode("ascii"),
            "details": parse_details(self.event_type, self.data),
        }


@dataclass(frozen=True, slots=True)
class EventLog:
    """A parsed log. What it says is worth nothing before :meth:`verify_replay`."""

    events: tuple[Event, ...]

    def claims(self) -> list[dict[str, Any]]:
        """Return the claims about all events, in order."""
        return [event.claims() for event in self.events]

    def replay(self, register: int, algorithm: int = tcg.SHA384) -> bytes:
        """Extend a register that starts as zeros by the digests of its events.

        Args:
            register: index of the register.
            algorithm: a hash of :data:`keybroker.verifiers.eventlog.tcg.HASHES`.
        """
        name, size = tcg.HASHES[algorithm]
        value = bytes(size)
        for event in self.events:
            if event.register == register and event.is_measured() and algorithm in event.digests:
                value = hashlib.new(
                    name, value + event.digests[algorithm], usedforsecurity=False
                ).digest()
        return value

    def verify_replay(
        self, registers: Mapping[int, bytes], algorithm: int = tcg.SHA384
    ) -> "EventLog":
        """Check that the log explains the registers of a verified quote, and says nothing else.

        An event that none of the registers covers could be made up, and a policy that looks for
        it by its digest would be deceived; so such events are refused too.

        Args:
            registers: index → value, of every register that counts.
            algorithm: the hash of these registers.

        Raises:
            EvidenceError: a register has another value, or an event is not measured.
        """
        for number, event in enumerate(self.events):
            if not event.is_measured():
                # section 10.4.1: such an event carries no digest but zeros
                if any(map(any, event.digests.values())):
                    raise EvidenceError(
                        f"event {number} of the event log, EV_NO_ACTION, has a digest"
                    )
            elif event.register not in registers or algorithm not in event.digests:
                raise EvidenceError(
                    f"event {number} of the event log ({tcg.event_type_name(event.event_type)},"
                    f" register {event.register}) is not measured into a register of the quote"
                )
        for register, expected in registers.items():
            replayed = self.replay(register, algorithm)
            if not hmac.compare_digest(replayed, expected):
                raise EvidenceError(
                    f"the event log does not give measurement register {register}: its events"
                    f" give {replayed.hex()}, the quote holds {expected.hex()}"
                )
        return self


def parse_event_log(raw: bytes) -> EventLog:
    """Parse a log up to its end mark, or to the last byte where it has none.

    Raises:
        EvidenceError: a length lies, an algorithm is not announced in the header, or there are
            more than :data:`MAX_EVENTS` events.
    """
    try:
        return _parse(raw)
    except _TruncatedError:
        raise EvidenceError("the event log is cut off within an event") from None


def parse_event_log_base64(text: str) -> EventLog:
    """Parse a log from standard base64, decoding no more of it than its events take.

    Raises:
        EvidenceError: as :func:`parse_event_log`, or not base64.
    """
    size = _FIRST_CHUNK
    while True:
        chunk = text[:size]
        whole = len(chunk) == len(text)
        try:
            raw = base64.b64decode(chunk, validate=True)
        except (binascii.Error, ValueError):
            raise EvidenceError("the event log is not base64") from None
        try:
            return _parse(raw, whole=whole)
        except _TruncatedError:
            if whole:
                raise EvidenceError("the event log is cut off within an event") from None
            size *= 4


def _take(raw: bytes, position: int, size: int) -> bytes:
    end = position + size
    if end > len(raw):
        raise _TruncatedError
    return raw[position:end]


def _u32(raw: bytes, position: int) -> int:
    return int(_U32.unpack(_take(raw, position, 4))[0])


def _parse(raw: bytes, *, whole: bool = True) -> EventLog:
    position, sizes = _parse_header(raw)
    events: list[Event] = []
    while position < len(raw) or not whole:
        if _take(raw, position, 8) in _END_MARKS:
            break
        if len(events) == MAX_EVENTS:
            raise EvidenceError(f"the event log has more than {MAX_EVENTS} events")
        event, position = _parse_event(raw, position, sizes)
        events.append(event)
    return EventLog(tuple(events))


def _parse_header(raw: bytes) -> tuple[int, dict[int, int]]:
    """Read the first event; return the position after it and the digest sizes it names."""
    if _u32(raw, 4) != tcg.EV_NO_ACTION:
        raise EvidenceError("the event log does not begin with a specification identifier event")
    size = _u32(raw, _HEADER_EVENT_BYTES)
    start = _HEADER_EVENT_BYTES + 4
    # A header event names seven algorithms at most; a size beyond that is a lie, and must not
    # make the whole text be decoded.
    if size > _SPEC_ID_HEAD_BYTES + 4 + 4 * _MAX_DIGESTS + 256:
        raise EvidenceError("the header of the event log is too large")
    header = _take(raw, start, size)
    try:
        count = _u32(header, _SPEC_ID_HEAD_BYTES)
        if count > _MAX_DIGESTS:
            raise EvidenceError("the header of the event log names too many algorithms")
        position = _SPEC_ID_HEAD_BYTES + 4
        sizes: dict[int, int] = {}
        for _ in range(count):
            algorithm, digest_size = (
                int(_U16.unpack(_take(header, position, 2))[0]),
                int(_U16.unpack(_take(header, position + 2, 2))[0]),
            )
            position += 4
            known = tcg.HASHES.get(algorithm)
            if algorithm in sizes or (known is not None and known[1] != digest_size):
                raise EvidenceError(
                    f"the header of the event log gives {tcg.algorithm_name(algorithm)}"
                    f" {digest_size} bytes, or names it twice"
                )
            sizes[algorithm] = digest_size
        vendor_size = _take(header, position, 1)[0]
    except _TruncatedError:
        raise EvidenceError("the header of the event log is cut off") from None
    if position + 1 + vendor_size != size:
        raise EvidenceError("the header of the event log has another size than it says")
    return start + size, sizes


def _parse_event(raw: bytes, position: int, sizes: Mapping[int, int]) -> tuple[Event, int]:
    register, event_type, count = _EVENT_HEAD.unpack(_take(raw, position, _EVENT_HEAD.size))
    position += _EVENT_HEAD.size
    if count > _MAX_DIGESTS:
        raise EvidenceError("an event of the event log has too many digests")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = int(_U16.unpack(_take(raw, position, 2))[0])
        position += 2
        size = sizes.get(algorithm)
        if size is None or algorithm in digests:
            raise EvidenceError(
                f"an event of the event log has a digest of {tcg.algorithm_name(algorithm)}, which"
                " its header does not name, or two of it"
            )
        digests[algorithm] = _take(raw, position, size)
        position += size
    size = _u32(raw, position)
    position += 4
    data = _take(raw, position, size)
    return Event(register, event_type, digests, data), position + size
