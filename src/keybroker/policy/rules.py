"""The rules of a policy, their bodies and the expressions in them, with their places.

A reading of the text for explanations only: what it cannot read is left out, and what a policy
decides never depends on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from keybroker.policy.lexer import Token, tokens


@dataclass(frozen=True, slots=True)
class Expression:
    """One condition of a body.

    Attributes:
        text: as it stands in the source.
        line: where it begins, from 1.
        stream: its tokens, line ends left out.
    """

    text: str
    line: int
    stream: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Body:
    """One way for a rule to be defined.

    Attributes:
        rule: name of the rule.
        line: where the body begins: its rule's head, or its ``else``.
        head: the text before the conditions, such as ``hardware := 2``.
        head_stream: tokens of that text.
        expressions: the conditions; none where the rule always holds.
        function: the rule takes arguments, so that its conditions mean nothing without a call.
    """

    rule: str
    line: int
    head: str
    head_stream: tuple[Token, ...]
    expressions: tuple[Expression, ...]
    function: bool


def rule_bodies(source: str) -> list[Body]:
    """Return the bodies of all rules, in the order of the text; ``default`` lines are none."""
    return _Reader(source).bodies()


def has_if_keyword(source: str) -> bool:
    """Return whether bodies of this policy are written with ``if``."""
    imports = [token.text for token in tokens(source) if token.kind != "newline"]
    return any(
        imports[index : index + 4]
        in (["import", "rego", ".", "v1"], ["import", "future", ".", "keywords"])
        for index in range(len(imports))
    )


_OPEN = {"{": "}", "[": "]", "(": ")"}

#: After these a `{` begins a value, not a body.
_BEFORE_VALUE = frozenset({":=", "=", "contains", "in", "(", "[", ",", ":"})

#: A line that ends with one of these, or is followed by one, goes on.
_BINARY = frozenset(
    {":=", "=", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "&", "|", "in"}
)
_GOES_ON_AFTER = _BINARY | {",", ".", "not", "some", "every", "with", "as", "contains"}
_GOES_ON_BEFORE = (_BINARY - {"-"}) | {",", ".", "with", "as"}


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = list(tokens(source))
        self._at = 0

    def bodies(self) -> list[Body]:
        found: list[Body] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind != "name" or token.text in ("package", "import", "default"):
                self._skip_line()
                continue
            found += self._statement(token)
        return found

    def _statement(self, first: Token) -> list[Body]:
        bodies: list[Body] = []
        function = self._text(self._at + 1) == "(" and self._touches(self._at)
        rule = first.text
        while True:
            start = self._at
            conditions = self._head()
            head = self._tokens[start : self._at]
            if conditions == "{":
                inside = self._block()
            elif conditions == "if":
                self._at += 1
                if self._text(self._at) == "{":
                    inside = self._block()
                else:
                    line_start = self._at
                    self._to_line_end()
                    inside = self._tokens[line_start : self._at]
            else:
                inside = []
            expressions = self._expressions(inside)
            if head and head[0].text == "{":  # another body of the same head
                head = []
            bodies.append(self._body(rule, first, head, expressions, function))
            ahead = self._after_line_ends()
            if self._text(ahead) == "else" or (conditions and self._text(self._at) == "{"):
                self._at = ahead if self._text(ahead) == "else" else self._at
                first = self._tokens[self._at]
                continue
            self._skip_line()
            return bodies

    def _body(
        self,
        rule: str,
        first: Token,
        head: Sequence[Token],
        expressions: tuple[Expression, ...],
        function: bool,
    ) -> Body:
        named = [token for token in head if token.kind != "newline"]
        text = self._source[named[0].start : named[-1].end] if named else rule
        return Body(rule, first.line, text, tuple(named), expressions, function)

    def _head(self) -> str:
        """Move to what follows the head: ``if``, the ``{`` of a body, or a line end ("")."""
        started = self._at
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.text == "if" and token.kind == "name":
                return "if"
            if token.text == "{" and self._begins_body(started):
                return "{"
            if token.kind == "newline" and not self._line_goes_on():
                return ""
            if token.text in _OPEN:
                self._skip_brackets()
            else:
                self._at += 1
        return ""

    def _begins_body(self, started: int) -> bool:
        before = self._before(self._at)
        return self._at == started or before is None or before.text not in _BEFORE_VALUE

    def _block(self) -> list[Token]:
        start = self._at
        self._skip_brackets()
        return self._tokens[start + 1 : self._at - 1]

    def _expressions(self, inside: Sequence[Token]) -> tuple[Expression, ...]:
        expressions: list[Expression] = []
        current: list[Token] = []
        depth = 0

        def close() -> None:
            stream = tuple(token for token in current if token.kind != "newline")
            if stream:
                text = self._source[stream[0].start : stream[-1].end]
                expressions.append(Expression(text, stream[0].line, stream))
            current.clear()

        for index, token in enumerate(inside):
            if token.text in _OPEN:
                depth += 1
            elif token.text in _OPEN.values():
                depth -= 1
            following = next((one for one in inside[index:] if one.kind != "newline"), None)
            ends = token.text == ";" or (
                token.kind == "newline" and not _goes_on(current, following)
            )
            if depth == 0 and ends:
                close()
            else:
                current.append(token)
        close()
        return tuple(expressions)

    def _line_goes_on(self) -> bool:
        before = self._before(self._at)
        after = self._text(self._after_line_ends())
        opened = before is not None and before.text in (*_GOES_ON_AFTER, "if", "else")
        return opened or after in _GOES_ON_BEFORE

    def _to_line_end(self) -> None:
        while self._at < len(self._tokens):
            if self._tokens[self._at].kind == "newline" and not self._line_goes_on():
                return
            if self._tokens[self._at].text in _OPEN:
                self._skip_brackets()
            else:
                self._at += 1

    def _skip_line(self) -> None:
        self._to_line_end()
        self._at += 1

    def _skip_brackets(self) -> None:
        depth = 0
        while self._at < len(self._tokens):
            text = self._tokens[self._at].text
            self._at += 1
            if text in _OPEN:
                depth += 1
            elif text in _OPEN.values():
                depth -= 1
                if depth == 0:
                    return

    def _after_line_ends(self) -> int:
        index = self._at
        while index < len(self._tokens) and self._tokens[index].kind == "newline":
            index += 1
        return index

    def _before(self, index: int) -> Token | None:
        index -= 1
        while index >= 0 and self._tokens[index].kind == "newline":
            index -= 1
        return self._tokens[index] if index >= 0 else None

    def _text(self, index: int) -> str:
        return self._tokens[index].text if index < len(self._tokens) else ""

    def _touches(self, index: int) -> bool:
        return index + 1 < len(self._tokens) and (
            self._tokens[index + 1].start == self._tokens[index].end
        )


def _goes_on(current: Sequence[Token], following: Token | None) -> bool:
    last = next((token for token in reversed(current) if token.kind != "newline"), None)
    if last is None:
        return False
    if last.text in _GOES_ON_AFTER:
        return True
    return following is not None and following.text in _GOES_ON_BEFORE
