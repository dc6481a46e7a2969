"""What of its ``input`` a policy can read, as far as its text shows.

A policy's answer depends on nothing else of its input: an answer may be kept for all inputs that
agree in what is read, and the rest need not be handed to the engine at all. Everything here errs on
the side of reading more.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from keybroker.policy.lexer import Token, tokens

#: Marks that, at the start of a line, can go on with what the line before ended with.
_CAN_BEGIN_A_CONDITION = frozenset({"}", ";", "{"})

_END = Token("newline", "\n", 0, 0, 0)


class InputReads:
    """The members of ``input`` that a policy names.

    Attributes:
        paths: each with everything below it.
        presences: paths of which only the presence counts: conditions such as ``input.snp``.
    """

    def __init__(
        self, paths: frozenset[tuple[str, ...]], presences: frozenset[tuple[str, ...]]
    ) -> None:
        self.paths = paths
        self.presences = presences
        # Shorter presences first, so that what is below them is there already; longer paths first,
        # so that a shorter one, which holds all below it, comes over them.
        self._below: dict[str, list[tuple[tuple[str, ...], bool]]] = {}
        for path in sorted(presences, key=len):
            self._below.setdefault(path[0], []).append((path, False))
        for path in sorted(paths, key=len, reverse=True):
            self._below.setdefault(path[0], []).append((path, True))

    def project(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of an input that the policy can tell from any other.

        Args:
            document: made of JSON types: objects are ``dict``.
        """
        found: dict[str, Any] = {}
        for name in document:
            for path, whole in self._below.get(name, ()):
                _copy(document, path, found, whole=whole)
        return found


def input_reads(source: str) -> InputReads | None:
    """Find what a policy reads.

    None: anything; the policy names ``input`` as a whole, or a member that is computed.
    """
    stream = list(tokens(source))
    paths: set[tuple[str, ...]] = set()
    presences: set[tuple[str, ...]] = set()
    for index, token in enumerate(stream):
        if token.kind != "name" or token.text != "input" or _is_member(stream, index):
            continue
        path, behind = _path(stream, index)
        if not path:
            return None
        condition = _begins_condition(stream, index) and _ends_condition(stream, behind)
        (presences if condition else paths).add(path)
    return InputReads(frozenset(paths), frozenset(presences))


def _is_member(stream: Sequence[Token], index: int) -> bool:
    """Whether the name is itself a member of something, as in ``data.input``."""
    return index > 0 and stream[index - 1].text == "."


def _path(stream: Sequence[Token], index: int) -> tuple[tuple[str, ...], int]:
    """Follow ``.name`` and ``["name"]`` as long as they are written together."""
    path: list[str] = []
    end = stream[index].end
    index += 1
    while index + 1 < len(stream) and stream[index].start == end:
        if stream[index].text == "." and stream[index + 1].kind == "name":
            path.append(stream[index + 1].text)
            end = stream[index + 1].end
            index += 2
            continue
        name = _quoted(stream[index : index + 3])
        if name is None:
            break
        path.append(name)
        end = stream[index + 2].end
        index += 3
    return tuple(path), index


def _quoted(three: Sequence[Token]) -> str | None:
    if [token.text for token in three[::2]] != ["[", "]"] or three[1].kind != "string":
        return None
    text = three[1].text
    if text.startswith("`"):
        return text[1:-1]
    try:
        return str(json.loads(text))
    except ValueError:
        return None


def _begins_condition(stream: Sequence[Token], index: int) -> bool:
    before = stream[index - 1] if index else _END
    if before.text == "not":
        before = stream[index - 2] if index > 1 else _END
    return before.kind == "newline" or before.text in ("{", ";")


def _ends_condition(stream: Sequence[Token], index: int) -> bool:
    if index < len(stream) and stream[index].kind != "newline":
        return stream[index].text in ("}", ";")
    following = next((token for token in stream[index:] if token.kind != "newline"), _END)
    return following.kind != "mark" or following.text in _CAN_BEGIN_A_CONDITION


def _copy(
    document: Mapping[str, Any], path: tuple[str, ...], found: dict[str, Any], *, whole: bool
) -> None:
    source: Any = document
    target: Any = found
    last = len(path) - 1
    for depth, name in enumerate(path):
        if name not in source:
            return
        source = source[name]
        if depth == last and whole:
            target[name] = source
        elif type(source) is dict:
            target = target.setdefault(name, {})
        else:
            # Something else than an object where one is named: its kind and value show.
            target[name] = [] if type(source) is list and depth == last else source
            return
