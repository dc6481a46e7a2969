"""Why a policy answered as it did: for an administrator, never for a guest.

Every body of a rule is a list of conditions that must hold together. Here they are asked one after
the other, each together with those before it, so that the first that does not hold is known; then
the claim it reads and the reference value it asks for are looked up. What a condition leans on,
another rule of the policy, is explained likewise.

The questions are put in a process of their own, as a trial is: odd text may end it. What cannot be
said this way is left open, and the rule's text and line stand for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keybroker.policy.references import Reference, read_reference, references
from keybroker.policy.rules import Body, Expression, has_if_keyword, rule_bodies
from keybroker.policy.sandbox import run_trial

#: Bodies explained at most; a policy has some thirty.
MAX_BODIES = 400

#: Trial processes for one explanation at most: each body that ends one costs another.
_MAX_PROCESSES = 8


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """What became of one body of a rule.

    Attributes:
        rule: name of the rule.
        line: where the body begins in the policy's text, from 1.
        head: what the body would define, such as ``hardware := 2``.
        holds: whether all its conditions hold; None: that cannot be said.
        expression: the first condition that does not hold; the first of all where that cannot be
            said; None where the body holds.
        expression_line: where that condition begins.
        claim: what it reads of the input or the request, as a path: ``input.snp.measurement``; for
            a body that holds, what its last condition reads.
        present: whether the input has that claim.
        value: its value, or None.
        reference: name of the reference value it asks for.
        reference_value: its value, or None where there is none.
        negated: whether another rule asks that this one does not hold (``not sample_evidence``).
    """

    rule: str
    line: int
    head: str
    holds: bool | None
    expression: str | None = None
    expression_line: int | None = None
    claim: str | None = None
    present: bool = False
    value: Any = None
    reference: str | None = None
    reference_value: Any = None
    negated: bool = False

    @property
    def at_fault(self) -> bool:
        """Whether what was asked for is missing because of this body, as far as can be said."""
        return self.holds is None or self.holds is self.negated

    def as_json(self) -> dict[str, Any]:
        """Return the members as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


async def explain(
    source: str,
    input: Mapping[str, Any],
    *,
    request: Mapping[str, Any] | None = None,
    reference_values: Mapping[str, Any] | None = None,
    rules: Sequence[str] = ("allow",),
) -> list[RuleTrace]:
    """Say of every body of some rules, and of the rules they lean on, what became of it.

    Args:
        source: the policy.
        input: what it was asked with, made of JSON types.
        request: as in an evaluation.
        reference_values: as in an evaluation.
        rules: names of rules: ``allow``, or ``trust_claims``, or trust claims by their rules.

    Returns:
        In the order in which rules lean on each other. Bodies for another kind of TEE, which end
        at asking for a claim that is not there, are left out where others of their rule remain.
    """
    bodies = [body for body in rule_bodies(source) if body.rule][:MAX_BODIES]
    job = {
        "kind": "probe",
        "source": source,
        "input": dict(input),
        "request": None if request is None else dict(request),
        "reference_values": dict(reference_values or {}),
    }
    reached = await _ask(job, bodies, "if " if has_if_keyword(source) else "")
    teller = _Teller(input, request or {}, reference_values or {}, bodies, reached)
    return teller.tell(rules)


#: How many conditions of a body hold together, from the first; None: not known.
_Reached = dict[int, int | None]


async def _ask(job: Mapping[str, Any], bodies: Sequence[Body], keyword: str) -> _Reached:
    reached: _Reached = {
        index: None if body.function else 0 for index, body in enumerate(bodies) if body.expressions
    }
    open_ = [index for index, held in reached.items() if held is not None]
    # All at once is quickest; where that fails, one by one, to lose only the body at fault.
    groups = [open_] if open_ else []
    for process in range(_MAX_PROCESSES):
        if not groups:
            break
        answers, ending = await run_trial(
            {**job, "groups": [_group(bodies, group, keyword) for group in groups]}
        )
        for group, answer in zip(groups, answers, strict=False):
            for index in group:
                reached[index] = _held(answer, index, len(bodies[index].expressions))
        if process == 0 and (ending is not None or "error" in answers[0]):
            groups = [[index] for index in open_]
            continue
        if ending is None:
            groups = []
            break
        lost = groups[len(answers)] if len(answers) < len(groups) else []
        for index in lost:
            reached[index] = None
        groups = groups[len(answers) + 1 :]
    for group in groups:
        for index in group:
            reached[index] = None
    return reached


def _probe(index: int, count: int) -> str:
    return f"keybroker_probe_{index}_{count}"


def _group(bodies: Sequence[Body], indices: Sequence[int], keyword: str) -> dict[str, Any]:
    text: list[str] = []
    rules: list[str] = []
    for index in indices:
        expressions = bodies[index].expressions
        for count in range(1, len(expressions) + 1):
            rule = _probe(index, count)
            conditions = "\n".join(expression.text for expression in expressions[:count])
            text.append(f"{rule} {keyword}{{\n{conditions}\n}}")
            rules.append(f"policy/{rule}")
    return {"addition": "\n".join(text), "entrypoints": rules}


def _held(answer: Mapping[str, Any], index: int, expressions: int) -> int | None:
    defined = answer.get("defined")
    if not isinstance(defined, list):
        return None
    for count in range(1, expressions + 1):
        if f"policy/{_probe(index, count)}" not in defined:
            return count - 1
    return expressions


#: Names of rules that an expression reads, and whether it asks that they do not hold.
_LeansOn = list[tuple[str, bool]]


class _Teller:
    def __init__(
        self,
        input: Mapping[str, Any],
        request: Mapping[str, Any],
        reference_values: Mapping[str, Any],
        bodies: Sequence[Body],
        reached: _Reached,
    ) -> None:
        self._documents: dict[str, Any] = {"input": input, "data": request}
        self._reference_values = reference_values
        self._bodies = bodies
        self._reached = reached
        self._names = {body.rule for body in bodies}
        self._told: set[str] = set()
        self._traces: list[RuleTrace] = []

    def tell(self, rules: Sequence[str]) -> list[RuleTrace]:
        for rule in rules:
            self._tell_rule(rule)
        return self._traces

    def _tell_rule(self, rule: str, negated: bool = False) -> None:
        if rule in self._told:
            return
        self._told.add(rule)
        traces: list[tuple[RuleTrace, bool, _LeansOn]] = [
            self._trace(index, body) for index, body in enumerate(self._bodies) if body.rule == rule
        ]
        some_relevant = any(relevant for _, relevant, _ in traces)
        leans_on: list[tuple[str, bool]] = []
        for trace, relevant, names in traces:
            if relevant or not some_relevant:
                self._traces.append(replace(trace, negated=negated))
                leans_on += [(name, not_ is not negated) for name, not_ in names]
        for name, not_ in leans_on:
            self._tell_rule(name, not_)

    def _trace(self, index: int, body: Body) -> tuple[RuleTrace, bool, _LeansOn]:
        """Return the trace, whether it concerns this input, and the rules it leans on."""
        if not body.expressions:
            leans_on = self._rules_in(body.head_stream[1:])
            return RuleTrace(body.rule, body.line, body.head, True), True, leans_on
        held = self._reached.get(index)
        if held is not None and held >= len(body.expressions):
            return self._holding(body), True, []
        failing = body.expressions[held or 0]
        claim, reference = self._look_up(body, held or 0)
        trace = RuleTrace(
            body.rule,
            body.line,
            body.head,
            None if held is None else False,
            failing.text,
            failing.line,
            claim.path if claim is not None else None,
            claim.present if claim is not None else False,
            claim.value if claim is not None else None,
            reference,
            self._reference_values.get(reference) if reference is not None else None,
        )
        bare = claim is not None and not claim.present and failing.text == claim.path
        relevant = not (held == 0 and bare)
        return trace, relevant, self._rules_in(failing.stream)

    def _holding(self, body: Body) -> RuleTrace:
        # A rule that holds is told because another must not hold with it: what it read last says
        # most.
        claim, reference = self._look_up(body, len(body.expressions) - 1)
        return RuleTrace(
            body.rule,
            body.line,
            body.head,
            True,
            claim=claim.path if claim is not None else None,
            present=claim.present if claim is not None else False,
            value=claim.value if claim is not None else None,
            reference=reference,
            reference_value=self._reference_values.get(reference) if reference else None,
        )

    def _look_up(self, body: Body, at: int) -> tuple[Reference | None, str | None]:
        locals_: dict[str, Reference] = {}
        for expression in body.expressions[:at]:
            self._remember_local(expression, locals_)
        found = references(body.expressions[at].stream, self._documents, locals_)
        return found.claim, found.reference_value

    def _remember_local(self, expression: Expression, locals_: dict[str, Reference]) -> None:
        stream = expression.stream
        words = [token.text for token in stream]
        if len(stream) > 2 and stream[0].kind == "name" and words[1] in (":=", "="):
            start, runs = 2, False
        elif words[0] == "some" and "in" in words:
            start, runs = words.index("in") + 1, True
        else:
            return
        if start >= len(stream):
            return
        reference, end = read_reference(stream, start, self._documents, locals_)
        if reference is not None and end == len(stream):
            locals_[words[start - 2]] = reference.members() if runs else reference

    def _rules_in(self, stream: Sequence[Any]) -> _LeansOn:
        return [
            (token.text, index > 0 and stream[index - 1].text == "not")
            for index, token in enumerate(stream)
            if token.kind == "name"
            and token.text in self._names
            and (index == 0 or stream[index - 1].text != ".")
        ]
