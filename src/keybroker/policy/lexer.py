"""Rego source as tokens: enough of the language to find names, calls and expressions in it.

The engine's own parser decides what a policy means; this reader only looks where the engine gives
no answer: at function names it does not know, at what makes a policy's answer change by itself,
and at the expressions of a rule body when a denial is explained.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["name", "string", "number", "mark", "newline"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        kind: what it is; comments and blanks make none.
        text: as it stands in the source.
        start: offset of the first character.
        line: counted from 1.
        column: counted from 1, in characters.
    """

    kind: Kind
    text: str
    start: int
    line: int
    column: int

    @property
    def end(self) -> int:
        """Offset behind the last character."""
        return self.start + len(self.text)


_TOKEN = re.compile(
    r"""
      (?P<newline>\n)
    | (?P<blank>[ \t\r\f\v]+|\#[^\n]*)
    | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    | (?P<mark>:=|==|!=|<=|>=|.)
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens(source: str) -> Iterator[Token]:
    """Yield the tokens of a module, line ends among them.

    Never fails: a character that starts nothing else is a ``mark``.
    """
    line, line_start = 1, 0
    for match in _TOKEN.finditer(source):
        kind = match.lastgroup
        text = match.group()
        start = match.start()
        if kind != "blank":
            yield Token(kind, text, start, line, start - line_start + 1)  # type: ignore[arg-type]
        breaks = text.count("\n")
        if breaks:
            line += breaks
            line_start = start + text.rindex("\n") + 1


@dataclass(frozen=True, slots=True)
class DottedName:
    """Names joined by dots without blanks, as in ``io.jwt.decode``.

    Attributes:
        text: the whole name.
        first: its first token.
        called: whether an opening parenthesis follows at once.
    """

    text: str
    first: Token
    called: bool


def dotted_names(stream: Sequence[Token]) -> Iterator[DottedName]:
    """Yield every dotted name that does not itself hang on something before it."""
    index = 0
    while index < len(stream):
        token = stream[index]
        if token.kind != "name" or _hangs(stream, index):
            index += 1
            continue
        parts = [token.text]
        end = token.end
        following = index + 1
        while (
            following + 1 < len(stream)
            and stream[following].text == "."
            and stream[following].start == end
            and stream[following + 1].kind == "name"
            and stream[following + 1].start == end + 1
        ):
            parts.append(stream[following + 1].text)
            end = stream[following + 1].end
            following += 2
        called = (
            following < len(stream)
            and stream[following].text == "("
            and stream[following].start == end
        )
        yield DottedName(".".join(parts), token, called)
        index = following


def _hangs(stream: Sequence[Token], index: int) -> bool:
    return (
        index > 0
        and stream[index - 1].text == "."
        and stream[index - 1].end == (stream[index].start)
    )


def literal(token: Token) -> str | None:
    """Return what a string token stands for, or None where it is no readable string."""
    if token.kind != "string":
        return None
    if token.text.startswith("`"):
        return token.text[1:-1]
    try:
        value = json.loads(token.text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def place(source: str, byte_offset: int) -> tuple[int, int]:
    """Turn an offset in UTF-8 bytes into line and column, both counted from 1."""
    before = source.encode("utf-8", "surrogatepass")[:byte_offset].decode("utf-8", "replace")
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
