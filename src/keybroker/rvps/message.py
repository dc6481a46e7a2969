"""The message that reference values arrive in.

::

    {"version": "0.1.0", "type": "sample", "payload": "…"}

``type`` names the extractor that understands ``payload``; ``version`` may be left out.
"""

from typing import Any

import msgspec

from keybroker.model.errors import MalformedError, TooLargeError
from keybroker.model.strict_json import convert_struct, parse_json

#: The version of the message format.
MESSAGE_VERSION = "0.1.0"

#: Longest message; a hundred values of a thousand digests each fit.
MAX_MESSAGE_BYTES = 8 * 1024 * 1024


class Message(msgspec.Struct, frozen=True):
    """One message, still unread inside."""

    type: str
    payload: str
    version: str = MESSAGE_VERSION


def parse_message(raw: bytes) -> Message:
    """Read a message.

    Args:
        raw: JSON, either the message or, as some clients send it, a string that holds it.

    Raises:
        MalformedError: not a message, or of another version.
        TooLargeError: longer than :data:`MAX_MESSAGE_BYTES`.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise TooLargeError(f"the message is longer than {MAX_MESSAGE_BYTES} bytes")
    value: Any = parse_json(raw)
    if isinstance(value, str):
        value = parse_json(value.encode("utf-8", "surrogatepass"))
    message = convert_struct(value, Message)
    if message.version != MESSAGE_VERSION:
        raise MalformedError(
            f"reference value messages of version {message.version[:32]!r} are not understood;"
            f" this is {MESSAGE_VERSION}"
        )
    return message
