"""The examples of docs/policies.md do what the document says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from keybroker.attestation_service.ear import TRUST_CLAIMS, parse_extensions, parse_trust_claims
from keybroker.attestation_service.policies import builtin_policies
from keybroker.policy.engine import compile_policy
from keybroker.policy.modules import asked_reference_values

DOCUMENT = (Path(__file__).parents[2] / "docs/policies.md").read_text("utf-8")

EXAMPLES: list[tuple[str, list[Any]]] = [
    (source, json.loads(cases))
    for source, cases in re.findall(
        r"```rego\n(.*?)```\n+```json cases\n(.*?)```", DOCUMENT, re.DOTALL
    )
]


def test_every_example_has_cases() -> None:
    assert len(EXAMPLES) == DOCUMENT.count("```rego") > 0


@pytest.mark.parametrize(("source", "cases"), EXAMPLES)
async def test_an_example_gives_what_the_document_says(source: str, cases: list[Any]) -> None:
    rules = {name for case in cases for name in case["gives"]}
    policy = await compile_policy(
        source, entrypoints=[f"policy/{rule}" for rule in sorted(rules)], name="example"
    )
    for case in cases:
        answer = policy.evaluate(
            case["input"],
            request=case.get("request"),
            reference_values=case.get("reference_values"),
        )
        given = {name.removeprefix("policy/"): value for name, value in answer.values.items()}
        assert given == case["gives"]
        if "trust_claims" in given:
            assert parse_trust_claims(given["trust_claims"])
            assert parse_extensions(given.get("extensions", [])) is not None


def test_the_inputs_shown_are_json() -> None:
    shown = re.findall(r"```json input\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(shown) == 2
    for text in shown:
        json.loads(text)


def test_every_trust_claim_and_reference_value_of_the_default_policy_is_named() -> None:
    for name in TRUST_CLAIMS:
        assert f"| `{name}` |" in DOCUMENT
    table = DOCUMENT.split("### Reference values of the default policy")[1].split("\n## ")[0]
    asked = asked_reference_values(builtin_policies()["default_cpu"])
    assert asked is not None
    assert asked <= set(re.findall(r"`([a-z0-9_]+)`", table))


def test_the_files_linked_to_are_there() -> None:
    for target in re.findall(r"\]\((\.\./[^)]+)\)", DOCUMENT):
        assert (Path(__file__).parents[2] / "docs" / target).resolve().is_file()
