"""Give a parsed file its types, and say everything that is wrong with it at once.

The loader reads bytes into plain values; this walks them along the structs of the configuration.
It knows what msgspec's own converter does not: other spellings of keys and variants, tables whose
keys stand in their parent, keys that no longer have an effect; and it goes on after a mistake.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from keybroker.config.section import Secret, Section

_T = TypeVar("_T", bound=msgspec.Struct)

#: Stands for a value that was wrong and has been reported.
_WRONG: Any = object()


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read.

    Attributes:
        value: the struct; None where there are problems.
        problems: what is wrong, each with the path of its key.
        notes: what is read but has no effect.
    """

    value: Any
    problems: Sequence[str]
    notes: Sequence[str]


@cache
def _type_info(type_: Any) -> inspect.Type:
    return inspect.type_info(type_)


def read_values(values: Any, type_: type[_T]) -> Reading:
    """Give the values of a whole file the type ``type_``."""
    reader = _Reader()
    value = reader.read(values, _type_info(type_), "")
    broken = bool(reader.problems)
    return Reading(None if broken else value, tuple(reader.problems), tuple(reader.notes))


def nearest(word: str, known: Sequence[str]) -> str:
    """Say which known word was probably meant, or which there are."""
    matches = difflib.get_close_matches(word.lower(), [name.lower() for name in known], n=1)
    if matches:
        meant = next(name for name in known if name.lower() == matches[0])
        return f"did you mean {meant!r}?"
    return f"known: {', '.join(sorted(known))}" if known else "there is none to be set here"


def _in_words(value: Any) -> str:
    if value is None:
        return "empty (null)"
    words = {bool: "a boolean", str: "a string", int: "an integer", float: "a number"}
    if type(value) in words:
        return words[type(value)]
    if isinstance(value, Mapping):
        return "a table"
    return "an array" if isinstance(value, list) else f"a {type(value).__name__}"


def _range_in_words(low: Any, above: Any, high: Any) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if high is not None:
        return (f" above {above}" if above is not None else "") + f" up to {high}"
    return f" of at least {low}" if low is not None else ""


def _section_attribute(cls: type, name: str) -> Any:
    return getattr(cls, name, getattr(Section, name))


@dataclass(slots=True)
class _Reader:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def _wrong(self, path: str, message: str) -> Any:
        self.problems.append(f"{path or 'the file'}: {message}")
        return _WRONG

    def _expected(self, path: str, expected: str, value: Any) -> Any:
        return self._wrong(path, f"must be {expected}, but is {_in_words(value)}")

    def read(self, value: Any, type_: inspect.Type, path: str) -> Any:
        """Return the value in its type, or report what is wrong and return ``_WRONG``."""
        match type_:
            case inspect.Metadata():
                return self.read(value, type_.type, path)
            case inspect.UnionType():
                return self._union(value, type_, path)
            case inspect.StructType():
                return self._struct(value, type_, path)
            case inspect.VarTupleType() | inspect.ListType():
                return self._array(value, type_, path)
            case inspect.DictType():
                return self._dict(value, type_, path)
            case inspect.EnumType():
                return self._enum(value, type_.cls, path)
            case inspect.CustomType() if type_.cls is Secret:
                if isinstance(value, str):
                    return Secret(value)
                return self._expected(path, "a string", value)
            case inspect.StrType():
                return value if isinstance(value, str) else self._expected(path, "a string", value)
            case inspect.BoolType():
                if isinstance(value, bool):
                    return value
                return self._expected(path, "true or false", value)
            case inspect.IntType() | inspect.FloatType():
                return self._number(value, type_, path)
            case inspect.AnyType():
                return value
            case inspect.NoneType():
                return None if value is None else self._expected(path, "empty", value)
            case _:
                raise TypeError(f"no rule to read {type_!r} at {path}")

    def _number(self, value: Any, type_: inspect.IntType | inspect.FloatType, path: str) -> Any:
        whole = isinstance(type_, inspect.IntType)
        limits = _range_in_words(type_.ge, type_.gt, type_.le)
        expected = f"{'an integer' if whole else 'a number'}{limits}"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return self._expected(path, expected, value)
        if (
            (type_.ge is not None and not value >= type_.ge)
            or (type_.gt is not None and not value > type_.gt)
            or (type_.le is not None and not value <= type_.le)
        ):
            return self._wrong(path, f"must be {expected}, but is {value}")
        return value if whole else float(value)

    def _enum(self, value: Any, cls: type[Enum], path: str) -> Any:
        known = [str(member.value) for member in cls]
        if not isinstance(value, str):
            quoted = " in quotes" if str(value) in known else ""
            return self._expected(path, f"one of {', '.join(known)}{quoted}", value)
        try:
            return cls(value)
        except ValueError:
            return self._wrong(path, f"{value[:64]!r} is not a value; {nearest(value, known)}")

    def _array(self, value: Any, type_: inspect.VarTupleType | inspect.ListType, path: str) -> Any:
        if not isinstance(value, list):
            return self._expected(path, "an array", value)
        items = [
            self.read(item, type_.item_type, f"{path}[{index}]") for index, item in enumerate(value)
        ]
        if any(item is _WRONG for item in items):
            return _WRONG
        return items if isinstance(type_, inspect.ListType) else tuple(items)

    def _dict(self, value: Any, type_: inspect.DictType, path: str) -> Any:
        if not isinstance(value, Mapping):
            return self._expected(path, "a table", value)
        items = {
            key: self.read(item, type_.value_type, f"{path}.{key}") for key, item in value.items()
        }
        return _WRONG if any(item is _WRONG for item in items.values()) else items

    def _union(self, value: Any, type_: inspect.UnionType, path: str) -> Any:
        variants = [variant for variant in type_.types if isinstance(variant, inspect.StructType)]
        others = [
            variant
            for variant in type_.types
            if not isinstance(variant, inspect.StructType | inspect.NoneType)
        ]
        if value is None and any(isinstance(variant, inspect.NoneType) for variant in type_.types):
            return None
        if len(variants) == 1 and not others:
            return self._struct(value, variants[0], path)
        if len(variants) > 1 and not others:
            return self._tagged(value, variants, path)
        if len(others) == 1:
            return self.read(value, others[0], path)
        raise TypeError(f"no rule to read {type_!r} at {path}")

    def _tagged(self, value: Any, variants: Sequence[inspect.StructType], path: str) -> Any:
        if not isinstance(value, Mapping):
            return self._expected(path, "a table", value)
        tag_field = variants[0].tag_field or "type"
        spelling = tag_field
        for older, key in _section_attribute(variants[0].cls, "key_aliases").items():
            if key == tag_field and tag_field not in value and older in value:
                spelling = older
        tag_path = f"{path}.{spelling}" if path else spelling
        if spelling in value:
            tag = value[spelling]
            if not isinstance(tag, str):
                return self._expected(tag_path, "a string", tag)
            for variant in variants:
                if tag == variant.tag or tag in _section_attribute(variant.cls, "tag_aliases"):
                    return self._struct(value, variant, path, spelling)
            known = [str(variant.tag) for variant in variants]
            return self._wrong(tag_path, f"{tag[:64]!r} is not a value; {nearest(tag, known)}")
        for variant in variants:
            if _section_attribute(variant.cls, "default_variant"):
                return self._struct(value, variant, path, spelling)
        choice = ", ".join(str(variant.tag) for variant in variants)
        return self._wrong(path, f"{tag_field!r} is missing; it is one of {choice}")

    def _struct(self, value: Any, type_: inspect.StructType, path: str, tag: str = "") -> Any:
        if not isinstance(value, Mapping):
            return self._expected(path, "a table", value)
        cls = type_.cls
        flattened = _section_attribute(cls, "flattened")
        own = {item.encode_name: item for item in type_.fields if item.name != flattened}
        aliases = _section_attribute(cls, "key_aliases")
        ignored = _section_attribute(cls, "without_effect")
        arguments: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        unknown: list[str] = []
        failed = False
        for key, item in value.items():
            at = f"{path}.{key}" if path else str(key)
            name = aliases.get(key, key) if key not in own else key
            if key in (tag, type_.tag_field):
                continue
            if name in own or name == type_.tag_field:
                if name != key and (name in value or name == type_.tag_field):
                    self._wrong(at, f"is another spelling of {name!r}, which is set as well")
                    failed = True
                    continue
                read = self.read(item, own[name].type, at)
                failed |= read is _WRONG
                arguments[own[name].name] = read
            elif key in ignored:
                self.notes.append(f"{at}: has no effect")
            elif flattened is not None:
                rest[name] = item
            else:
                self._wrong(at, f"unknown key; {nearest(str(key), list(own))}")
                unknown.append(str(key))
        failed |= bool(unknown)
        if flattened is not None:
            item_type = next(item for item in type_.fields if item.name == flattened).type
            arguments[flattened] = self.read(rest, item_type, path)
            failed |= arguments[flattened] is _WRONG
        for name, item in own.items():
            if item.required and item.name not in arguments:
                failed = True
                # A key that was mistyped has been reported as an unknown one.
                if not difflib.get_close_matches(name, unknown, n=1, cutoff=0.8):
                    self._wrong(f"{path}.{name}" if path else name, "is missing")
        return _WRONG if failed else self._make(cls, arguments, path)

    def _make(self, cls: type[msgspec.Struct], arguments: dict[str, Any], path: str) -> Any:
        try:
            return cls(**arguments)
        except ValueError as error:  # what a table as a whole must satisfy
            return self._wrong(path, str(error))
