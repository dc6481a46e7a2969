"""A strict reader for foreign JSON, and canonical JSON (RFC 8785) for what is hashed.

The protocol's parsers differ in what they forgive; what one system forgives another may read
otherwise, so nothing is forgiven here: UTF-8 only, no duplicate member names, no ``NaN``, at most
:data:`MAX_DEPTH` levels.
"""

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from keybroker.model.errors import MalformedError

#: Nesting that no payload of the protocols comes near; deeper ones are refused before parsing.
MAX_DEPTH = 32

_T = TypeVar("_T")

#: A string (so that brackets inside it do not count) or one bracket.
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedError(f"JSON holds {name}, which is not a JSON value")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise MalformedError(f"JSON holds the member {name[:64]!r} twice")
            seen.add(name)
    return members


def _check_depth(raw: bytes) -> None:
    # Counting brackets is far cheaper than walking them, and settles nearly every payload.
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRUCTURE.finditer(raw):
        first = raw[match.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedError(f"JSON is nested deeper than {MAX_DEPTH} levels")
        elif first in b"]}":
            depth -= 1


def parse_json(raw: bytes) -> Any:
    """Parse foreign JSON bytes.

    Args:
        raw: UTF-8, no byte order mark.

    Returns:
        The value, made of ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` and ``None``.

    Raises:
        MalformedError: not UTF-8, not JSON, a member name twice, or nested deeper than
            :data:`MAX_DEPTH`.
    """
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass  # the slow way says better what is wrong
    else:
        if _is_plain(raw, value):
            return value
    return _parse_slowly(raw)


def _is_plain(raw: bytes, value: Any) -> bool:
    """Tell whether a decoded text has neither duplicate members nor too many levels.

    A fast decoder hides duplicates: of two members one is left. But each member has its colon and
    each container its bracket in the text; where there are no more of them than the value shows,
    nothing was hidden. Colons and brackets inside strings make this say no, never yes.
    """
    members = containers = 0
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                containers += 1
                members += len(item)
                below.extend(item.values())
            elif type(item) is list:
                containers += 1
                # The bytes of reports and certificates are long lists of numbers. A container
                # behind a number is not found here, and then its bracket is one too many.
                if item and type(item[0]) is not int:
                    below.extend(item)
        if not below:
            break
        level = below
    return members == raw.count(b":") and containers == raw.count(b"[") + raw.count(b"{")


def _parse_slowly(raw: bytes) -> Any:
    _check_depth(raw)
    try:
        text = raw.decode("utf-8")
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise MalformedError("JSON is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedError(
            f"not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (ValueError, RecursionError):
        # int() refuses digit strings of absurd length
        raise MalformedError("not JSON: a value is out of range") from None


def parse_struct(raw: bytes, type_: type[_T]) -> _T:
    """Parse foreign JSON bytes into a typed payload.

    Raises:
        MalformedError: as :func:`parse_json`, or the value does not have the type's shape.
    """
    return convert_struct(parse_json(raw), type_)


def convert_struct(value: Any, type_: type[_T]) -> _T:
    """Give a parsed JSON value its type.

    Raises:
        MalformedError: the value does not have the type's shape.
    """
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise MalformedError(str(error)) from None


def canonical_json(value: Any) -> bytes:
    """Serialise to the JSON Canonicalization Scheme.

    Members are sorted by UTF-16 code units; no white space; shortest escapes. Floats are not
    taken: no payload that is hashed holds any, and their canonical form is the scheme's one
    hard part.

    Raises:
        MalformedError: the value holds a float, an integer beyond 2**53, or a lone surrogate.

    Specification: RFC 8785, section 3.2.
    """
    out: list[str] = []
    if _is_ascii_text(value):
        # With ASCII names the encoder's order and escapes are those of the scheme.
        out.append(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    else:
        _canonical(value, out)
    try:
        return "".join(out).encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedError("a string holds a lone surrogate") from None


def _is_ascii_text(value: Any) -> bool:
    """Whether a value is made of strings alone, in objects with ASCII names."""
    if isinstance(value, dict):
        return all(
            isinstance(name, str) and name.isascii() and _is_ascii_text(item)
            for name, item in value.items()
        )
    return isinstance(value, str)


_MAX_SAFE_INTEGER = 2**53 - 1


def _utf16_key(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def _canonical(value: Any, out: list[str]) -> None:
    if isinstance(value, str):
        # json's escapes with ensure_ascii=False are those of RFC 8785 section 3.2.2.2
        out.append(json.dumps(value, ensure_ascii=False))
    elif value is None or isinstance(value, bool):
        out.append("null" if value is None else "true" if value else "false")
    elif isinstance(value, int):
        if abs(value) > _MAX_SAFE_INTEGER:
            raise MalformedError("an integer is out of the range of canonical JSON")
        out.append(str(value))
    elif isinstance(value, dict):
        out.append("{")
        for index, name in enumerate(sorted(value, key=_utf16_key)):
            if index:
                out.append(",")
            out.append(json.dumps(name, ensure_ascii=False))
            out.append(":")
            _canonical(value[name], out)
        out.append("}")
    elif isinstance(value, list):
        out.append("[")
        for index, item in enumerate(value):
            if index:
                out.append(",")
            _canonical(item, out)
        out.append("]")
    else:
        raise MalformedError(f"{type(value).__name__} has no canonical JSON form here")
