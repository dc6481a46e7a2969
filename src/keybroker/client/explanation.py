"""Why a broker's policies let a guest have a resource or not, as told to an administrator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RuleExplanation:
    """One rule that took part in a decision; what the broker does not say is None.

    Attributes:
        rule: its name, with the policy's where given.
        line: in the policy's text, from 1.
        expression: the text that did not hold.
        claim: path of the claim that it reads.
        value: what the evidence says.
        reference_value: what was expected.
    """

    rule: str | None = None
    line: int | None = None
    expression: str | None = None
    claim: str | None = None
    value: Any = None
    reference_value: Any = None


@dataclass(frozen=True)
class Explanation:
    """A decision and its reasons.

    Attributes:
        allowed: whether the resource policy lets the token's guest have the resource.
        appraisal: what the attestation service made of the evidence, by submodule.
        rules: the rules that decided.
        document: the broker's whole answer.
    """

    allowed: bool
    appraisal: Mapping[str, Any]
    rules: tuple[RuleExplanation, ...]
    document: Mapping[str, Any] = field(repr=False)


def read_explanation(document: Mapping[str, Any]) -> Explanation:
    """Give a broker's answer its shape; members of another type than expected are left out.

    ``allowed`` is false unless the answer says true.
    """
    appraisal = document.get("appraisal")
    rules = document.get("rules")
    return Explanation(
        allowed=document.get("allowed") is True,
        appraisal=appraisal if isinstance(appraisal, dict) else {},
        rules=tuple(
            _read_rule(rule)
            for rule in (rules if isinstance(rules, list) else ())
            if isinstance(rule, dict)
        ),
        document=document,
    )


def _read_rule(rule: Mapping[str, Any]) -> RuleExplanation:
    line = rule.get("line")
    return RuleExplanation(
        rule=_text(rule, "rule"),
        line=line if isinstance(line, int) else None,
        expression=_text(rule, "expression"),
        claim=_text(rule, "claim"),
        value=rule.get("value"),
        reference_value=rule.get("reference_value"),
    )


def _text(rule: Mapping[str, Any], name: str) -> str | None:
    value = rule.get(name)
    return value if isinstance(value, str) else None
