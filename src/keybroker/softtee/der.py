"""A writer of DER, as much of it as AMD-shaped certificates need.

Libraries that build certificates refuse the serial number 0 that AMD's carry, so they are put
together here.

Specification: ITU-T X.690 (02/2021), sections 8 and 10.
"""

from datetime import datetime


def element(tag: int, *contents: bytes) -> bytes:
    """Write one element: tag, length in its shortest form, contents one after the other."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*contents: bytes) -> bytes:
    """Write a SEQUENCE."""
    return element(0x30, *contents)


def set_of_one(content: bytes) -> bytes:
    """Write a SET of one element."""
    return element(0x31, content)


def context(number: int, *contents: bytes) -> bytes:
    """Write a constructed context-specific element."""
    return element(0xA0 | number, *contents)


def integer(value: int) -> bytes:
    """Write an INTEGER, not negative."""
    return element(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def boolean(value: bool) -> bytes:
    """Write a BOOLEAN."""
    return element(0x01, b"\xff" if value else b"\x00")


def null() -> bytes:
    """Write a NULL."""
    return element(0x05)


def octet_string(content: bytes) -> bytes:
    """Write an OCTET STRING."""
    return element(0x04, content)


def bit_string(content: bytes, unused_bits: int = 0) -> bytes:
    """Write a BIT STRING."""
    return element(0x03, bytes((unused_bits,)), content)


def utf8_string(text: str) -> bytes:
    """Write a UTF8String."""
    return element(0x0C, text.encode())


def printable_string(text: str) -> bytes:
    """Write a PrintableString."""
    return element(0x13, text.encode("ascii"))


def ia5_string(text: str) -> bytes:
    """Write an IA5String."""
    return element(0x16, text.encode("ascii"))


def oid(dotted: str) -> bytes:
    """Write an OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return element(0x06, bytes(content))


def time(moment: datetime) -> bytes:
    """Write a time as RFC 5280 section 4.1.2.5 wants it: UTCTime up to 2049, then GeneralizedTime.

    Args:
        moment: in UTC; fractions of a second are cut off.
    """
    if moment.year < 2050:
        return element(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return element(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())
