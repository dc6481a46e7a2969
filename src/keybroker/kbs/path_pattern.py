"""Regular expressions over request paths, matched in time that grows with the path alone.

Access rules are written for an engine that never backtracks. Python's does: a harmless looking
rule can keep it busy for minutes on a path that an administrator of a lesser role chose. So the
rules are matched by following all alternatives at once, character by character (Thompson 1968).

What may be written: characters; ``\\`` before a punctuation character; ``.``; ``\\d \\w \\s`` and
``\\D \\W \\S``; character classes; groups ``( )`` and ``(?: )``; ``|``; ``* + ? {n} {n,} {n,m}``,
also lazy; ``^`` and ``$``. What that engine does not have (back-references, look-around), or what
no path needs (flags, named groups), is refused.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

#: Longest pattern, and most states after counted repetitions are written out.
MAX_PATTERN_CHARS = 1024
MAX_STATES = 4096

#: Deepest nesting of groups.
MAX_GROUPS = 32

_COUNTED = re.compile(r"\{(\d{1,3})(,(\d{1,3})?)?\}")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\\[]|\\.)*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\[dwsDWS]|\\[^A-Za-z0-9]", re.DOTALL)


class PatternError(ValueError):
    """The pattern cannot be used; the text says why."""


@dataclass(slots=True)
class _State:
    """A step: take one character, or stand at an edge, or go on without either."""

    takes: Callable[[str], object] | None = None
    edge: str = ""
    next: list["_State"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of the automaton, entered at ``first`` and left at ``last``."""

    first: _State
    last: _State


class PathPattern:
    """A compiled pattern.

    Args:
        source: the regular expression.

    Raises:
        PatternError: it is malformed, too long, or uses what is not supported.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_PATTERN_CHARS:
            raise PatternError(f"longer than {MAX_PATTERN_CHARS} characters")
        parser = _Parser(source)
        self._start, self._end = parser.parse()
        self.source = source

    def matches(self, path: str) -> bool:
        """Return whether the whole path matches."""
        current = _reach([self._start], at_start=True, at_end=not path)
        for position, character in enumerate(path, 1):
            taken = [
                following
                for state in current
                if state.takes is not None and state.takes(character)
                for following in state.next
            ]
            if not taken:
                return False
            current = _reach(taken, at_start=False, at_end=position == len(path))
        return any(state is self._end for state in current)


def _reach(states: Iterable[_State], *, at_start: bool, at_end: bool) -> list[_State]:
    """Return the states and all that follow without a character."""
    seen: dict[int, _State] = {}
    waiting = list(states)
    while waiting:
        state = waiting.pop()
        if id(state) in seen:
            continue
        if (state.edge == "^" and not at_start) or (state.edge == "$" and not at_end):
            continue
        seen[id(state)] = state
        if state.takes is None:
            waiting.extend(state.next)
    return list(seen.values())


class _Parser:
    """Recursive descent: alternatives of sequences of repeated atoms."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._position = 0
        self._states = 0
        self._depth = 0

    def parse(self) -> tuple[_State, _State]:
        piece = self._alternatives()
        if self._position < len(self._source):
            raise PatternError(f"unbalanced ) at {self._position}")
        return piece.first, piece.last

    def _state(self, takes: Callable[[str], object] | None = None, edge: str = "") -> _State:
        self._states += 1
        if self._states > MAX_STATES:
            raise PatternError("its counted repetitions are too large")
        return _State(takes, edge)

    def _peek(self) -> str:
        return self._source[self._position : self._position + 1]

    def _alternatives(self) -> _Piece:
        self._depth += 1
        if self._depth > MAX_GROUPS:
            raise PatternError(f"groups are nested deeper than {MAX_GROUPS}")
        first, last = self._state(), self._state()
        while True:
            branch = self._sequence()
            first.next.append(branch.first)
            branch.last.next.append(last)
            if self._peek() != "|":
                self._depth -= 1
                return _Piece(first, last)
            self._position += 1

    def _sequence(self) -> _Piece:
        first = last = self._state()
        while self._peek() not in ("", "|", ")"):
            piece = self._repeated()
            last.next.append(piece.first)
            last = piece.last
        return _Piece(first, last)

    def _repeated(self) -> _Piece:
        begin = self._position
        piece = self._atom()
        end = self._position
        least, most = self._quantifier()
        if (least, most) == (1, 1):
            return piece
        if self._source[begin] in "^$":
            raise PatternError(f"nothing to repeat at {end}")
        # The first copy is parsed already; further ones are parsed from the same text again.
        resume = self._position
        first = last = self._state()
        copies = max(least, 1) if most is None else most
        done = self._state()
        for copy in range(copies):
            if copy:
                self._position = begin
                piece = self._atom()
            if copy >= least:
                last.next.append(done)
            last.next.append(piece.first)
            last = piece.last
        last.next.append(done)
        if most is None:
            last.next.append(piece.first)
        self._position = resume
        return _Piece(first, done)

    def _quantifier(self) -> tuple[int, int | None]:
        character = self._peek()
        bounds: tuple[int, int | None]
        if character in ("*", "+", "?"):
            self._position += 1
            bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        elif counted := _COUNTED.match(self._source, self._position):
            self._position = counted.end()
            least = int(counted[1])
            most = (int(counted[3]) if counted[3] else None) if counted[2] else least
            if most is not None and most < least:
                raise PatternError("a repetition ends before it begins")
            bounds = (least, most)
        else:
            return 1, 1
        if self._peek() == "?":  # lazy; which of two matches is found does not matter here
            self._position += 1
        if self._peek() in ("*", "+", "?"):
            raise PatternError(f"a repetition is repeated at {self._position}")
        return bounds

    def _atom(self) -> _Piece:
        character = self._peek()
        if character == "(":
            return self._group()
        if character in ("*", "+", "?", "{"):
            raise PatternError(f"nothing to repeat at {self._position}")
        if character in ("^", "$"):
            self._position += 1
            return self._single(edge=character)
        if character in ("[", "\\"):
            found = (_CLASS if character == "[" else _ESCAPE).match(self._source, self._position)
            if found is None:
                raise PatternError(f"not supported at {self._position}: {character}…")
            self._position = found.end()
            return self._single(self._one_character(found[0]))
        self._position += 1
        if character == ".":
            return self._single(lambda taken: taken != "\n")
        return self._single(character.__eq__)

    def _single(self, takes: Callable[[str], object] | None = None, edge: str = "") -> _Piece:
        first, last = self._state(takes, edge), self._state()
        first.next.append(last)
        return _Piece(first, last)

    def _one_character(self, source: str) -> Callable[[str], object]:
        # Set operators of the engine that rules are written for; here they would be characters.
        if any(operator in source for operator in ("&&", "--", "~~")):
            raise PatternError(f"not supported: set operators in {source}")
        # One character at a time gives Python's engine nothing to go back over.
        try:
            return re.compile(source).fullmatch
        except re.error:
            raise PatternError(f"the character class {source} is malformed") from None

    def _group(self) -> _Piece:
        begin = self._position
        self._position += 1
        if self._peek() == "?":
            if not self._source.startswith("?:", self._position):
                raise PatternError(f"not supported at {begin}: only ( ) and (?: ) group")
            self._position += 2
        piece = self._alternatives()
        if self._peek() != ")":
            raise PatternError(f"a group that begins at {begin} does not end")
        self._position += 1
        return piece
