"""What ``kbs-client`` prints: text for people, JSON for scripts, errors with a next step."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keybroker.client.errors import BrokerError, ClientError
from keybroker.client.explanation import Explanation, RuleExplanation

PROGRAM = "kbs-client"


@dataclass(frozen=True)
class Output:
    """Prints results on standard output and everything else on standard error."""

    as_json: bool

    def result(self, text: str, document: Any) -> None:
        """Print a result in the form that was asked for."""
        print(json.dumps(document, ensure_ascii=False) if self.as_json else text)

    def error(self, error: ClientError, *, with_hint: bool = True) -> None:
        """Print what went wrong and what to do next."""
        if not self.as_json:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
            if with_hint and (hint := error.hint()):
                print(f"  {hint}", file=sys.stderr)
            return
        document: dict[str, Any] = {"error": str(error), "hint": error.hint()}
        if isinstance(error, BrokerError):
            document |= {"status": error.status, "type": error.problem, "detail": error.detail}
        print(json.dumps(document, ensure_ascii=False), file=sys.stderr)

    def explanation(self, explanation: Explanation) -> None:
        """Print why a guest may have a resource or not, on standard error."""
        if self.as_json:
            print(json.dumps(dict(explanation.document), ensure_ascii=False), file=sys.stderr)
        else:
            for line in explanation_lines(explanation):
                print(line, file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(f"{PROGRAM}: warning: {text}", file=sys.stderr)


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """Write an explanation as lines of text."""
    if explanation.allowed:
        yield "The resource policy allows it."
    else:
        yield "The resource policy denies it, because of these rules:"
    for rule in explanation.rules:
        yield from _rule_lines(rule)
    for device in explanation.appraisal:
        reason = ", because of these rules of the attestation policy:" if device.rules else "."
        yield f"The evidence of {device.submodule} is {device.status or 'not appraised'}{reason}"
        for rule in device.rules:
            yield from _rule_lines(rule)


def _rule_lines(rule: RuleExplanation) -> Iterator[str]:
    line = rule.expression_line if rule.expression_line is not None else rule.line
    place = f", line {line}" if line is not None else ""
    fault = rule.expression or "holds, and must not"
    yield f"  {rule.head or rule.rule or 'a rule'}{place}: {fault}"
    if rule.claim is not None:
        yield f"    {rule.claim} is {_short(rule.value)}"
    if rule.reference is not None:
        expected = rule.reference_value
        known = "unknown" if expected is None else _short(expected)
        yield f"    reference value {rule.reference} is {known}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else text[:400] + "…"


def write_secret(path: Path, secret: bytes) -> None:
    """Write a secret to a file that only its owner may read.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        # An older file keeps its mode when it is opened.
        os.fchmod(descriptor, 0o600)
        file.write(secret)


@contextmanager
def readable_output() -> Iterator[None]:
    """End quietly where the reader of our output went away, such as ``head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Nothing more can be written; the interpreter must not try at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
