"""The page about configuration: its examples load, and it names every key that there is."""

import re
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from keybroker.config.attestation import AttestationServiceFileConfig, RvpsFileConfig
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_with_notes

_PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
_EXAMPLES = re.findall(r"```(toml|json|yaml)\n(.*?)```", _PAGE, re.S)

#: Field whose own keys stand in its parent's table.
_NO_KEY = {"backend"}

#: Tables of the other faces, whose keys are on pages of their own.
_ELSEWHERE = {"key_transfer", "workloads"}


@pytest.mark.parametrize(("suffix", "text"), _EXAMPLES)
def test_every_example_loads_without_a_note(suffix: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"example.{suffix}"
    path.write_text(text)
    assert load_with_notes(path, KbsConfig).notes == ()


def test_there_are_examples_of_all_kinds() -> None:
    assert {suffix for suffix, _ in _EXAMPLES} == {"toml", "json", "yaml"}
    assert len(_EXAMPLES) >= 5


def _keys(type_: inspect.Type, seen: set[type]) -> set[str]:
    match type_:
        case inspect.StructType() if type_.cls not in seen:
            seen.add(type_.cls)
            keys = {field.encode_name for field in type_.fields} - _NO_KEY
            inner = [field for field in type_.fields if field.name not in _ELSEWHERE]
            return keys.union(*(_keys(field.type, seen) for field in inner))
        case inspect.UnionType():
            return set[str]().union(*(_keys(item, seen) for item in type_.types))
        case inspect.VarTupleType():
            return _keys(type_.item_type, seen)
        case inspect.Metadata():
            return _keys(type_.type, seen)
    return set()


@pytest.mark.parametrize("type_", [KbsConfig, AttestationServiceFileConfig, RvpsFileConfig])
def test_every_key_is_on_the_page(type_: type[msgspec.Struct]) -> None:
    quoted = set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`([^`\n]+)`", _PAGE))))
    assert _keys(inspect.type_info(type_), set()) - quoted == set()
