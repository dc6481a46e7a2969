"""Operations without I/O: what to ask the broker and the attester, and what to make of the answers.

An operation is a generator. It yields a :class:`Call` and is sent the :class:`Answer`, or yields
a :class:`Quote` and is sent the evidence; what it returns is the result. The synchronous and the
asynchronous transport both run the same operations::

    def get_policy() -> Operation[str]:
        answer = yield from call(Call("GET", "resource-policy"))
        return parse_text(answer)
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from keybroker.client.attesters.interface import Attester
from keybroker.client.errors import ProtocolError, broker_error
from keybroker.model.errors import MalformedError
from keybroker.model.rcar import ErrorInformation
from keybroker.model.strict_json import parse_json, parse_struct

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"

#: Brokers answer 200; the others say as much about a write.
_SUCCESS = frozenset({200, 201, 204})

#: More of a refusal's text than this is not worth showing, and may be meant to fill a terminal.
_MAX_DETAIL_CHARS = 2000


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        path: below ``/kbs/v0/``, percent-encoded.
        content: the body, with its media type in ``content_type``; both or neither.
        bearer: token for the ``Authorization`` header.
    """

    method: str
    path: str
    content: bytes | None = field(default=None, repr=False)
    content_type: str | None = None
    bearer: str | None = field(default=None, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One answer of any status."""

    status: int
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Quote:
    """Ask an attester for evidence that binds ``report_data``."""

    attester: Attester
    report_data: bytes


_T = TypeVar("_T")
Operation = Generator[Call | Quote, Any, _T]


def call(request: Call) -> Operation[Answer]:
    """Ask the broker.

    Raises:
        BrokerError: the broker refused.
    """
    answer: Answer = yield request
    if answer.status not in _SUCCESS:
        refuse(answer)
    return answer


def quote(attester: Attester, report_data: bytes) -> Operation[Any]:
    """Ask an attester for evidence; raises AttesterError."""
    evidence: Any = yield Quote(attester, report_data)
    return evidence


def refuse(answer: Answer) -> None:
    """Raise the error that a refusal means.

    Raises:
        ProtocolError: not a status by which a broker answers.
        BrokerError: the broker refused.
    """
    if not 400 <= answer.status <= 599:
        raise ProtocolError(f"the broker answered with status {answer.status}")
    try:
        problem = parse_struct(answer.content, ErrorInformation)
    except MalformedError:
        raise broker_error(answer.status, "", "") from None
    raise broker_error(answer.status, _printable(problem.type), _printable(problem.detail))


def parse_answer(answer: Answer, what: str) -> Any:
    """Parse a JSON answer.

    Raises:
        ProtocolError: not JSON.
    """
    try:
        return parse_json(answer.content)
    except MalformedError as error:
        raise ProtocolError(f"{what} is malformed: {error.detail}") from None


def parse_text(answer: Answer, what: str) -> str:
    """Read an answer that is UTF-8 text.

    Raises:
        ProtocolError: not UTF-8.
    """
    try:
        return answer.content.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not UTF-8 text") from None


def _printable(text: str) -> str:
    # Control characters in an answer could rewrite the terminal it is shown on.
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_DETAIL_CHARS])
