"""Compiles policies and evaluates them.

>>> policy = await compile_policy(source, entrypoints=["policy/allow"], name="default")
>>> policy.evaluate(claims, request={"plugin": "resource", ...}).get("policy/allow")
True

A policy is compiled once a revision, in about 15 ms, and then evaluated in well under one. The
engine's objects are not for two threads at once, so a compiled policy keeps a small pool of them.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keybroker.model.errors import PolicyEngineError, PolicyError
from keybroker.policy.determinism import is_deterministic
from keybroker.policy.lexer import Token, dotted_names, place, tokens
from keybroker.policy.modules import (
    ASKED,
    PLAIN,
    asked_reference_values,
    check_entrypoint,
    policy_data,
    policy_input,
    policy_modules,
)
from keybroker.policy.rego import ENGINE_VERSION, UNDEFINED, RegoEngine, RegoError, is_builtin
from keybroker.policy.sandbox import run_trial
from keybroker.workbench import run

#: Longest policy; the shipped ones have 10 KiB. Compiling is linear at about 1 ms a KiB.
MAX_POLICY_BYTES = 1024 * 1024

#: Engines of one policy at most: two threads of the workbench, the event loop, one to spare.
_POOL_SIZE = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy answered.

    Attributes:
        values: by entrypoint (``policy/allow``); a rule that is undefined is not among them.
    """

    values: Mapping[str, Any]

    def get(self, entrypoint: str) -> Any | None:
        """Return the value of a rule, or None where it is undefined."""
        return self.values.get(entrypoint)


@dataclass(slots=True)
class _Pooled:
    """An engine, the reference values it was last asked with, and those compiled into it."""

    engine: RegoEngine
    given: Mapping[str, Any] | None
    compiled: Mapping[str, Any]


class CompiledPolicy:
    """A policy that compiled. Safe to use from several threads.

    Attributes:
        name: for messages to an administrator.
        digest: SHA-256 of the source, hexadecimal.
        deterministic: whether the same question always gets the same answer, so that answers may
            be kept; false where the policy reads the clock, chance or the network.
    """

    def __init__(self, source: str, *, entrypoints: Sequence[str], name: str) -> None:
        self.name = name
        self.source = source
        self.entrypoints = tuple(entrypoints)
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        self.deterministic = is_deterministic(source)
        self._modules = policy_modules(source, self.entrypoints)
        self._asked = asked_reference_values(source)
        self._idle: list[_Pooled] = [_Pooled(self._build({}), None, {})]
        self._turn = threading.BoundedSemaphore(_POOL_SIZE)

    def evaluate(
        self,
        input: Mapping[str, Any],
        *,
        request: Mapping[str, Any] | None = None,
        reference_values: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """Ask all entrypoints of the policy.

        Args:
            input: the policy's ``input``, made of JSON types.
            request: ``plugin``, ``resource-path``, ``query`` and ``method``, seen as ``data.…``.
            reference_values: what ``query_reference_value`` knows. Those that the policy names are
                compiled in: the first evaluation after one of them changed takes some 15 ms more.
                Handing over the same object while they are the same saves comparing them.

        Raises:
            PolicyEngineError: the policy cannot answer: two values for one rule, recursion.
        """
        with self._turn:
            pooled = self._take(reference_values)
            try:
                found = pooled.engine.query(
                    PLAIN if request is None else ASKED, policy_input(input, request)
                )
            except RegoError as error:
                raise PolicyEngineError(
                    f"policy {self.name!r} could not be evaluated: {error.message}"
                ) from None
            finally:
                self._idle.append(pooled)
        return Evaluation({} if found is UNDEFINED else found)

    def _take(self, given: Mapping[str, Any] | None) -> _Pooled:
        try:
            pooled = self._idle.pop()
        except IndexError:
            values = self._select(given)
            return _Pooled(self._build(values), given, values)
        if pooled.given is not given:
            values = self._select(given)
            if values != pooled.compiled:
                pooled.engine, pooled.compiled = self._build(values), values
            pooled.given = given
        return pooled

    def _select(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        if given is None:
            return {}
        if self._asked is None:
            return dict(given)
        return {name: given[name] for name in self._asked if name in given}

    def _build(self, reference_values: Mapping[str, Any]) -> RegoEngine:
        try:
            return RegoEngine(self._modules, policy_data(reference_values), [PLAIN, ASKED])
        except RegoError as error:
            raise PolicyEngineError(
                f"policy {self.name!r} does not compile: {error.message}"
            ) from None


async def compile_policy(
    source: str, *, entrypoints: Sequence[str], name: str, tried: bool = False
) -> CompiledPolicy:
    """Check a policy, try it in a process of its own, and compile it.

    Args:
        source: Rego, version 0 or 1, of ``package policy``.
        entrypoints: the rules that will be asked, as ``policy/<rule>``.
        name: for messages.
        tried: the policy is known to have passed a trial (:func:`trial_id`); skips the trial.

    Raises:
        PolicyError: the policy does not compile, or the engine cannot evaluate it. ``detail``
            says why, with line and column where they are known.
    """
    for entrypoint in entrypoints:
        check_entrypoint(entrypoint)
    await run(_check_source, source)
    if not tried:
        await _try(source, entrypoints)
    try:
        return await run(CompiledPolicy, source, entrypoints=entrypoints, name=name)
    except PolicyEngineError as error:
        raise PolicyError(error.diagnostics()) from None


def trial_id(source: str, entrypoints: Sequence[str]) -> str:
    """Name the trial of a policy: what passed once under this name need not be tried again."""
    material = "\0".join(["1", ENGINE_VERSION, *entrypoints, source])
    return hashlib.sha256(material.encode("utf-8", "surrogatepass")).hexdigest()


async def _try(source: str, entrypoints: Sequence[str]) -> None:
    answers, ending = await run_trial(
        {"kind": "try", "source": source, "entrypoints": list(entrypoints)}
    )
    verdict = answers[0] if answers and ending is None else None
    if verdict is None:
        raise PolicyError(f"the policy is refused: {ending or 'its trial gave no verdict'}")
    if verdict.get("passed") is not True:
        message, offset = str(verdict.get("message")), verdict.get("offset")
        if isinstance(offset, int):
            line, column = place(source, offset)
            raise PolicyError(f"line {line}, column {column}: {message}")
        raise PolicyError(message)


def _check_source(source: str) -> None:
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        raise PolicyError("the policy is not UTF-8") from None
    if size > MAX_POLICY_BYTES:
        raise PolicyError(f"the policy is longer than {MAX_POLICY_BYTES} bytes")
    if "\0" in source:
        raise PolicyError("the policy holds a NUL character")
    stream = [token for token in tokens(source) if token.kind != "newline"]
    _check_package(stream)
    _check_functions(stream)


def _check_package(stream: Sequence[Token]) -> None:
    if not stream:
        raise PolicyError("line 1, column 1: the policy is empty")
    if [token.text for token in stream[:2]] != ["package", "policy"] or (
        len(stream) > 2 and stream[2].text in (".", "[")
    ):
        raise PolicyError(f"{_at(stream[0])}: a policy must be of `package policy`")


#: Words of the language that may stand before a parenthesis, and the constructor of the empty set.
_NOT_FUNCTIONS = frozenset(
    {"not", "in", "if", "else", "some", "every", "with", "as", "default", "import", "package"}
    | {"contains", "set", "true", "false", "null"}
)


def _check_functions(stream: Sequence[Token]) -> None:
    # The engine notices an unknown function when a rule comes to call it, which may be at the
    # first real request; its author wants to know now.
    defined = set(_top_level_names(stream)) | {
        stream[index + 1].text
        for index, token in enumerate(stream[:-1])
        if token.text in ("default", "as")
    }
    for name in dotted_names(stream):
        if not name.called or name.text in _NOT_FUNCTIONS:
            continue
        if name.text == "query_reference_value":
            _refuse_definition(stream, name.first)
            continue
        head = name.text.partition(".")[0]
        if head in ("data", "input") or name.text in defined or is_builtin(name.text):
            continue
        raise PolicyError(f"{_at(name.first)}: there is no function {name.text}")


def _top_level_names(stream: Sequence[Token]) -> Iterator[str]:
    """Yield the names that begin a line outside all brackets: rules and functions."""
    depth = 0
    last_line = 0
    for token in stream:
        if token.text in "([{":
            depth += 1
        elif token.text in ")]}":
            depth -= 1
        elif depth == 0 and token.kind == "name" and token.line > last_line:
            yield token.text
        last_line = token.line


def _refuse_definition(stream: Sequence[Token], first: Token) -> None:
    if first.column == 1 and stream[0] is not first:
        raise PolicyError(
            f"{_at(first)}: query_reference_value is given by the broker and cannot be defined"
        )


def _at(token: Token) -> str:
    return f"line {token.line}, column {token.column}"
