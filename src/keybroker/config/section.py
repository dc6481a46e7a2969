"""What every table of a configuration file has in common, and values that must not be shown."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table.

    What msgspec cannot say about a table stands in class variables, for the loader:

    Attributes:
        key_aliases: another spelling of a key → the key.
        tag_aliases: other spellings of this variant's name, where a table picks one by a tag.
        default_variant: this variant is meant where the tag is absent.
        without_effect: keys that Trustee's files carry though no current release reads them.
        flattened: a field whose own keys stand in this table, without a table of their own.
    """

    key_aliases: ClassVar[Mapping[str, str]] = {}
    tag_aliases: ClassVar[tuple[str, ...]] = ()
    default_variant: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ()
    flattened: ClassVar[str | None] = None


class Secret:
    """A password, token or API key as it stands in a file; neither ``repr`` nor ``str`` show it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one place that sends it where it belongs."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(("Secret", self._text))
