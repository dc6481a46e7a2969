"""Why a broker's policies let a guest have a resource or not, as told to an administrator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RuleExplanation:
    """One body of a rule that took part in a decision; what the broker does not say is None.

    Attributes:
        rule: its name.
        line: where it begins in the policy's text, from 1.
        head: what it would define, such as ``hardware := 2``.
        expression: the first condition that did not hold.
        expression_line: where that condition begins.
        claim: path of the claim that the condition reads.
        value: what the evidence says there.
        reference: name of the reference value that was asked for.
        reference_value: what was expected.
    """

    rule: str | None = None
    line: int | None = None
    head: str | None = None
    expression: str | None = None
    expression_line: int | None = None
    claim: str | None = None
    value: Any = None
    reference: str | None = None
    reference_value: Any = None


@dataclass(frozen=True)
class AppraisalExplanation:
    """What the attestation service made of one device's evidence.

    Attributes:
        submodule: the device, such as ``cpu0``.
        status: of the whole: ``affirming``, ``warning``, ``contraindicated`` or ``none``.
        rules: the rules of the attestation policy that did not hold.
        document: all that the broker says of it.
    """

    submodule: str
    status: str | None
    rules: tuple[RuleExplanation, ...]
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Explanation:
    """A decision and its reasons.

    Attributes:
        allowed: whether the resource policy lets the token's guest have the resource.
        appraisal: what the attestation service made of the evidence of each device.
        rules: the rules of the resource policy that did not hold.
        document: the broker's whole answer.
    """

    allowed: bool
    appraisal: tuple[AppraisalExplanation, ...]
    rules: tuple[RuleExplanation, ...]
    document: Mapping[str, Any] = field(repr=False)


def read_explanation(document: Mapping[str, Any]) -> Explanation:
    """Give a broker's answer its shape; members of another type than expected are left out.

    ``allowed`` is false unless the answer says true.
    """
    appraisal = document.get("appraisal")
    return Explanation(
        allowed=document.get("allowed") is True,
        appraisal=tuple(
            AppraisalExplanation(name, _text(device, "status"), _read_rules(device), device)
            for name, device in (appraisal.items() if isinstance(appraisal, dict) else ())
            if isinstance(device, dict)
        ),
        rules=_read_rules(document),
        document=document,
    )


def _read_rules(document: Mapping[str, Any]) -> tuple[RuleExplanation, ...]:
    rules = document.get("rules")
    return tuple(
        RuleExplanation(
            rule=_text(rule, "rule"),
            line=_number(rule, "line"),
            head=_text(rule, "head"),
            expression=_text(rule, "expression"),
            expression_line=_number(rule, "expression_line"),
            claim=_text(rule, "claim"),
            value=rule.get("value"),
            reference=_text(rule, "reference"),
            reference_value=rule.get("reference_value"),
        )
        for rule in (rules if isinstance(rules, list) else ())
        if isinstance(rule, dict)
    )


def _text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) else None


def _number(members: Mapping[str, Any], name: str) -> int | None:
    value = members.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
