"""What an event says, in words: the ``details`` of an event's claims.

Firmware is not always careful with the data it logs. Where an event's data is not in the form of
its type, the details are empty: nothing is claimed about it. The digest counts all the same.

Specification: TCG PC Client Platform Firmware Profile 1.06, sections 10.2 and 10.4.
"""

import base64
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.verifiers.eventlog import tcg
from keybroker.verifiers.eventlog.device_path import UnreadablePathError, format_device_path

Details = dict[str, Any]

#: ``taggedEventID`` of events that the attestation agent logs: "LEAA", read as a number.
AAEL_TAG = 0x4141454C

_TAG_HEAD = Struct("<II")
_VARIABLE_HEAD = Struct("<16sQQ")
_IMAGE_HEAD = Struct("<QQQQ")

#: The end-of-path node that closes a device path.
_END_NODE_BYTES = 4

#: How UEFI firmware of Google Compute Engine begins an IPL event: "." in UTF-16.
_UTF16_MARK = b"\x2e\x00"


class _UnreadableError(Exception):
    """The data is not in the form of its event type."""


def parse_details(event_type: int, data: bytes) -> Details:
    """Explain the data of an event; return an empty mapping where there is nothing to say."""
    parser = _PARSERS.get(event_type)
    if parser is None:
        return {}
    try:
        return parser(data)
    except (_UnreadableError, UnreadablePathError, UnicodeDecodeError):
        return {}


def _text(data: bytes) -> Details:
    return {"string": data.decode("utf-8")}


def _printable_text(data: bytes) -> Details:
    # EV_PLATFORM_CONFIG_FLAGS: often a table in binary, which is no text at all; td-shim separates
    # the parts of a command line by the control character 0x10
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return {"string": ""}
    text = text.replace("\x10", " ")
    return {"string": "".join(c for c in text if not _is_control(c))}


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"


def _description(data: bytes) -> Details:
    # the size counts the description alone, yet its last character is left out, as the claims of
    # other verifiers have it: firmware ends it with ")" or with a zero
    if not data or len(data) < data[0]:
        raise _UnreadableError
    return {"string": data[1 : data[0]].decode("utf-8")}


def _ipl(data: bytes) -> Details:
    if len(data) < 2:
        raise _UnreadableError
    if data.startswith(_UTF16_MARK):
        words = data[2:-2]
        if (not words and len(data) < 4) or len(data) % 2:
            raise _UnreadableError
        return {"string": words.decode("utf-16-le", "replace")}
    text, _, _ = data.partition(b"\0")
    try:
        return {"string": text.decode("utf-8")}
    except UnicodeDecodeError:
        return {"string": data.hex()}


def _tagged(data: bytes) -> Details:
    if len(data) < _TAG_HEAD.size:
        raise _UnreadableError
    tag, size = _TAG_HEAD.unpack_from(data)
    text = data[_TAG_HEAD.size : _TAG_HEAD.size + size]
    if len(text) != size:
        raise _UnreadableError
    details: Details = {"string": text.decode("utf-8", "replace").replace("\0", "")}
    if tag == AAEL_TAG:
        details["unicode_name"] = "AAEL"
        details["data"] = _agent_entry(text.decode("utf-8"))
    return details


def _agent_entry(entry: str) -> dict[str, Any]:
    """Split an entry of the attestation agent: domain, operation, content (JSON or text)."""
    parts = entry.split(" ", 2)
    if len(parts) != 3:
        raise _UnreadableError
    domain, operation, text = parts
    try:
        content = parse_json(text.encode("utf-8"))
    except MalformedError:
        content = text
    return {"domain": domain, "operation": operation, "content": content}


def _variable(data: bytes) -> Details:
    """Read UEFI_VARIABLE_DATA, section 10.2.6."""
    if len(data) < _VARIABLE_HEAD.size:
        raise _UnreadableError
    guid, name_length, data_length = _VARIABLE_HEAD.unpack_from(data)
    name_end = _VARIABLE_HEAD.size + 2 * name_length
    if name_end + data_length > len(data):
        raise _UnreadableError
    hexadecimal = guid.hex()
    return {
        "unicode_name": data[_VARIABLE_HEAD.size : name_end].decode("utf-16-le"),
        "unicode_name_length": name_length,
        "variable_data": base64.b64encode(data[name_end : name_end + data_length]).decode("ascii"),
        "variable_data_length": data_length,
        # the bytes as they lie, not as a UEFI GUID is usually printed
        "variable_name": "-".join(
            (
                hexadecimal[:8],
                hexadecimal[8:12],
                hexadecimal[12:16],
                hexadecimal[16:20],
                hexadecimal[20:],
            )
        ),
    }


def _image(data: bytes) -> Details:
    """Read UEFI_IMAGE_LOAD_EVENT, section 10.2.3."""
    if len(data) < _IMAGE_HEAD.size:
        raise _UnreadableError
    _, _, _, length = _IMAGE_HEAD.unpack_from(data)
    if length == 0:
        return {}
    if length < 2 * _END_NODE_BYTES:
        raise _UnreadableError
    path = data[_IMAGE_HEAD.size : _IMAGE_HEAD.size + length]
    if len(path) < length - _END_NODE_BYTES:
        raise _UnreadableError
    return {"device_paths": format_device_path(path[: length - _END_NODE_BYTES])}


_PARSERS: Mapping[int, Callable[[bytes], Details]] = {
    0x00000001: _text,
    0x00000005: _text,
    tcg.EV_EVENT_TAG: _tagged,
    0x0000000A: _printable_text,
    0x0000000C: _text,
    0x0000000D: _ipl,
    0x00000012: _text,
    0x80000001: _variable,
    0x80000002: _variable,
    0x80000003: _image,
    0x80000007: _text,
    0x8000000A: _description,
    0x8000000B: _description,
    0x8000000C: _variable,
    0x800000E0: _variable,
}
