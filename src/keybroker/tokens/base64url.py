"""Base64url without padding, read strictly: one octet string has exactly one spelling."""

import base64
import binascii

from keybroker.model.errors import MalformedError

#: ``-`` and ``_`` become what binascii knows; what only the other alphabet knows becomes ``!``,
#: which strict decoding refuses.
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/!!!")
_TO_URL = bytes.maketrans(b"+/", b"-_")

_PADDING = (b"", b"", b"==", b"=")


def encode(raw: bytes | memoryview) -> bytes:
    """Encode octets; the result is ASCII.

    Specification: RFC 7515, section 2.
    """
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=")


def encode_text(raw: bytes) -> str:
    """Encode octets to a string."""
    return encode(raw).decode("ascii")


def decode(text: str | bytes) -> bytes:
    """Decode base64url.

    Raises:
        MalformedError: a character of another alphabet, padding, a length that no octet string
            has, or bits that are set behind the last octet.

    Specification: RFC 7515, section 2; RFC 4648, section 3.5 (canonical encoding).
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
        standard = raw.translate(_TO_STANDARD) + _PADDING[len(raw) % 4]
        octets = binascii.a2b_base64(standard, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise MalformedError("not base64url without padding") from None
    tail = len(octets) % 3
    # Only the last group can hold stray bits.
    if tail and base64.b64encode(octets[-tail:]) != standard[-4:]:
        raise MalformedError("base64url is not canonical")
    return octets
