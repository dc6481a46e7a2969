"""A strict reader of DER, as much of it as certificates need.

A :class:`DerReader` walks one level of a structure from its first byte to its last. Whatever is not
canonical is refused: indefinite and non-minimal lengths, tag numbers above 30, padded integers,
trailing bytes. Foreign bytes can make it raise :class:`DerError` and nothing else.

Specification: ITU-T X.690 (02/2021), sections 8 and 10.
"""

from datetime import UTC, datetime
from typing import Final

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

#: Longest object identifier in bytes; those of certificates have at most about a dozen.
_MAX_OID_BYTES = 64


class DerError(ValueError):
    """The bytes are not the DER that was expected. The message says what is wrong."""


def context(number: int, *, constructed: bool = True) -> int:
    """Return the tag byte of a context-specific tag ``[number]``."""
    return (0xA0 if constructed else 0x80) | number


class DerReader:
    """Reads the elements of one level, in order."""

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._end = len(data)

    def at_end(self) -> bool:
        """Tell whether every byte has been read."""
        return self._position == self._end

    def finish(self) -> None:
        """Check that every byte has been read.

        Raises:
            DerError: there are more.
        """
        if self._position != self._end:
            raise DerError(f"{self._end - self._position} bytes after the last element")

    def next_is(self, tag: int) -> bool:
        """Tell whether there is a next element and it has this tag."""
        return self._position < self._end and self._data[self._position] == tag

    def rest(self) -> bytes:
        """Read all that is left."""
        before, self._position = self._position, self._end
        return self._data[before:]

    def _header(self) -> tuple[int, int, int]:
        """Return tag, start and end of the next element's content."""
        data, position = self._data, self._position
        if self._end - position < 2:
            raise DerError("an element is cut short")
        tag = data[position]
        if tag & 0x1F == 0x1F:
            raise DerError("a tag number is above 30")
        length = data[position + 1]
        position += 2
        if length >= 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4 or position + count > self._end:
                raise DerError("a length is indefinite, too long or cut short")
            length = int.from_bytes(data[position : position + count], "big")
            if length < 0x80 or length < 1 << (8 * (count - 1)):
                raise DerError("a length is not in its shortest form")
            position += count
        if length > self._end - position:
            raise DerError("an element is longer than what holds it")
        return tag, position, position + length

    def any(self) -> tuple[int, bytes]:
        """Read the next element of any tag; return tag and content."""
        tag, start, end = self._header()
        self._position = end
        return tag, self._data[start:end]

    def read(self, tag: int) -> bytes:
        """Read the next element, which must have this tag; return its content.

        Raises:
            DerError: there is none, or another tag.
        """
        found, start, end = self._header()
        if found != tag:
            raise DerError(f"found tag 0x{found:02x} in place of 0x{tag:02x}")
        self._position = end
        return self._data[start:end]

    def element(self, tag: int) -> bytes:
        """Read the next element, which must have this tag; return it whole, header included."""
        before = self._position
        self.read(tag)
        return self._data[before : self._position]

    def enter(self, tag: int = SEQUENCE) -> "DerReader":
        """Read the next element and return a reader of its content."""
        return DerReader(self.read(tag))

    def integer(self, *, tag: int = INTEGER) -> int:
        """Read an INTEGER (of any size)."""
        return decode_integer(self.read(tag))

    def oid(self) -> str:
        """Read an OBJECT IDENTIFIER; return it dotted."""
        return decode_oid(self.read(OBJECT_IDENTIFIER))

    def boolean(self) -> bool:
        """Read a BOOLEAN."""
        content = self.read(BOOLEAN)
        if content not in (b"\x00", b"\xff"):
            raise DerError("a BOOLEAN is neither 00 nor ff")
        return content == b"\xff"

    def bit_string(self) -> bytes:
        """Read a BIT STRING of whole bytes."""
        content = self.read(BIT_STRING)
        if not content or content[0] != 0:
            raise DerError("a BIT STRING is not made of whole bytes")
        return content[1:]

    def time(self) -> datetime:
        """Read a UTCTime or GeneralizedTime in the form of RFC 5280 section 4.1.2.5."""
        tag, content = self.any()
        if tag == UTC_TIME and len(content) == 13:
            # RFC 5280 section 4.1.2.5.1: two-digit years up to 49 are of this century
            century = b"20" if content[:2] < b"50" else b"19"
            content = century + content
        elif tag != GENERALIZED_TIME or len(content) != 15:
            raise DerError("a time is not UTCTime or GeneralizedTime in whole seconds")
        if content[14:] != b"Z" or not content[:14].isdigit():
            raise DerError("a time is not in the form YYYYMMDDHHMMSSZ")
        numbers = (int(content[0:4]), *(int(content[i : i + 2]) for i in range(4, 14, 2)))
        try:
            year, month, day, hour, minute, second = numbers
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError as error:
            raise DerError(f"a time does not exist: {error}") from None


def decode_integer(content: bytes) -> int:
    """Decode the content of an INTEGER.

    Raises:
        DerError: empty or padded.
    """
    if not content:
        raise DerError("an INTEGER is empty")
    if len(content) > 1 and (
        (content[0] == 0 and content[1] < 0x80) or (content[0] == 0xFF and content[1] >= 0x80)
    ):
        raise DerError("an INTEGER is padded")
    return int.from_bytes(content, "big", signed=True)


def decode_oid(content: bytes) -> str:
    """Decode the content of an OBJECT IDENTIFIER to its dotted form.

    Raises:
        DerError: empty, padded, cut short, or longer than any that certificates hold.
    """
    if not content or len(content) > _MAX_OID_BYTES or content[-1] & 0x80:
        raise DerError("an OBJECT IDENTIFIER is empty, too long or cut short")
    arcs: list[int] = []
    value = 0
    for byte in content:
        if value == 0 and byte == 0x80:
            raise DerError("an OBJECT IDENTIFIER is padded")
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
