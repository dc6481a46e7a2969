"""What an expression of a policy reads: claims of the input, the request, reference values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keybroker.policy.lexer import Token, literal


@dataclass(frozen=True, slots=True)
class Reference:
    """A path into the input or the request.

    Attributes:
        path: as it is written in the policy, up to the first step that is not a fixed name.
        present: whether the document has it.
        value: what is there, or None; of a variable that runs over a collection, the list of
            what all its members have there.
        many: the reference is such a variable.
    """

    path: str
    present: bool
    value: Any
    many: bool = False

    def members(self) -> "Reference":
        """Return what a variable stands for that runs over the value."""
        found: list[Any] = []
        if isinstance(self.value, Mapping):
            found = list(self.value.values())
        elif isinstance(self.value, list):
            found = self.value
        return Reference(f"{self.path}[_]", bool(found), found, many=True)

    def step(self, name: str | int, written: str) -> "Reference":
        """Return one step further down."""
        if not self.many:
            present, value = _descend(self.present, self.value, name)
            return Reference(self.path + written, present, value)
        found = [
            value
            for present, value in (_descend(True, member, name) for member in self.value)
            if present
        ]
        return Reference(self.path + written, bool(found), found, many=True)


@dataclass(frozen=True, slots=True)
class References:
    """What one expression reads.

    Attributes:
        claim: the first path into the input, else the first into the request, else None.
        reference_value: name in the first ``query_reference_value("…")``, or None.
    """

    claim: Reference | None
    reference_value: str | None


def references(
    stream: Sequence[Token], documents: Mapping[str, Any], locals_: Mapping[str, Reference]
) -> References:
    """Find what an expression reads.

    Args:
        stream: its tokens.
        documents: ``input`` and ``data``.
        locals_: what local variables stand for.
    """
    claims: list[Reference] = []
    reference_value: str | None = None
    index = 0
    while index < len(stream):
        if stream[index].text == "query_reference_value" and index + 2 < len(stream):
            if reference_value is None and stream[index + 1].text == "(":
                reference_value = literal(stream[index + 2])
            index += 3
            continue
        claim, end = read_reference(stream, index, documents, locals_)
        if claim is not None:
            claims.append(claim)
        index = max(end, index + 1)
    claims.sort(key=lambda claim: not claim.path.startswith("input"))
    return References(claims[0] if claims else None, reference_value)


def read_reference(
    stream: Sequence[Token],
    index: int,
    documents: Mapping[str, Any],
    locals_: Mapping[str, Reference],
) -> tuple[Reference | None, int]:
    """Read the reference that begins at a token, and say where it ends."""
    token = stream[index]
    if token.kind != "name" or (index > 0 and stream[index - 1].text == "."):
        return None, index + 1
    if token.text in documents:
        reference = Reference(token.text, True, documents[token.text])
    elif token.text in locals_:
        reference = locals_[token.text]
    else:
        return None, index + 1
    index += 1
    while index < len(stream):
        name, written, end = _step(stream, index)
        if name is None:
            break
        reference = reference.step(name, written)
        index = end
    return reference, index


def _step(stream: Sequence[Token], index: int) -> tuple[str | int | None, str, int]:
    text = stream[index].text
    if text == "." and index + 1 < len(stream) and stream[index + 1].kind == "name":
        name = stream[index + 1].text
        return name, f".{name}", index + 2
    if text == "[" and index + 2 < len(stream) and stream[index + 2].text == "]":
        inside = stream[index + 1]
        step: str | int | None = None
        if inside.kind == "string":
            step = literal(inside)
        elif inside.kind == "number" and inside.text.isdigit():
            step = int(inside.text)
        return step, f"[{inside.text}]", index + 3
    return None, "", index


def _descend(present: bool, value: Any, step: str | int) -> tuple[bool, Any]:
    if present and isinstance(value, Mapping) and step in value:
        return True, value[step]
    if present and isinstance(value, list) and isinstance(step, int) and step < len(value):
        return True, value[step]
    return False, None
