"""Read a configuration file: TOML, JSON or YAML, told by its suffix.

All three say the same things; a file means one thing only, so a key that stands in it twice is
refused in each of them. Relative paths in a file stay relative to the working directory, as with
Trustee.
"""

import json
import logging
import tomllib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import yaml

from keybroker.config.reader import read_values
from keybroker.model.errors import ConfigError

_log = logging.getLogger(__name__)

_T = TypeVar("_T", bound=msgspec.Struct)

#: No configuration comes near this; a larger file is another file, or a mischief.
MAX_FILE_BYTES = 1024 * 1024

#: Deeper tables than this are none of ours.
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Loaded(Generic[_T]):
    """A configuration, and what its file says without effect."""

    config: _T
    notes: Sequence[str]


def load_config(path: str | Path, type_: type[_T]) -> _T:
    """Read a file into its struct; notes about keys without effect go to the log.

    Args:
        path: file whose suffix is ``.toml``, ``.json``, ``.yaml`` or ``.yml``.
        type_: the struct of the whole file, such as ``KbsConfig``.

    Raises:
        ConfigError: cannot be read, is not of its format, or says what cannot be: all problems
            at once, each with the path of its key and the nearest key that there is.
    """
    loaded = load_with_notes(path, type_)
    for note in loaded.notes:
        _log.warning("%s: %s", path, note)
    return loaded.config


def load_with_notes(path: str | Path, type_: type[_T]) -> Loaded[_T]:
    """As :func:`load_config`, with the notes returned.

    Raises:
        ConfigError: as there.
    """
    values = _parse(Path(path))
    reading = read_values(values, type_)
    if reading.problems:
        raise _config_error(path, reading.problems)
    return Loaded(reading.value, reading.notes)


def _config_error(path: str | Path, problems: Sequence[str]) -> ConfigError:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ConfigError(f"the configuration file {path} is not valid:{lines}")


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the configuration file {path} cannot be read: {error.strerror}"
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise _config_error(path, [f"is larger than {MAX_FILE_BYTES} bytes"])
    parser = _PARSERS.get(path.suffix.lower())
    if parser is None:
        raise _config_error(path, [f"its suffix must be one of {', '.join(_PARSERS)}"])
    try:
        values = parser(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _config_error(path, ["is not UTF-8"]) from None
    except RecursionError:
        raise _config_error(path, ["is nested too deep"]) from None
    except yaml.YAMLError as error:
        raise _config_error(path, [_yaml_problem(error)]) from None
    except ValueError as error:  # what tomllib and json raise, and duplicates
        raise _config_error(path, [str(error)]) from None
    if values is None:  # an empty YAML file
        values = {}
    if not isinstance(values, dict):
        raise _config_error(path, ["must be a table of keys and values"])
    if _depth(values) > _MAX_DEPTH:
        raise _config_error(path, ["is nested too deep"])
    return values


def _depth(value: Any) -> int:
    """Depth of nesting, without recursion and never much beyond the limit."""
    depth, level = 0, [value]
    while level and depth <= _MAX_DEPTH:
        depth += 1
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
    return depth


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:64]!r} stands twice in one table")
        table[key] = value
    return table


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_no_duplicates)


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, and without aliases, which can make a file explode."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases are not taken here", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: ARG002 - as the base class
    ) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a string", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key[:64]!r} stands twice in one table",
                    key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep=True)


def _yaml(text: str) -> Any:
    # The linters do not see that the loader is a SafeLoader.
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 # nosec B506


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} at line {mark.line + 1} column {mark.column + 1}"
    return str(error)
