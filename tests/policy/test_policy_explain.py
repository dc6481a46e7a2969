from typing import Any

import pytest

from keybroker.attestation_service.policies import builtin_policies
from keybroker.kbs.policies import resource_policy
from keybroker.policy.explain import RuleTrace, explain

SNP = {
    "measurement": "ab" * 48,
    "policy_debug_allowed": False,
    "policy_migrate_ma": False,
    "reported_tcb_bootloader": 3,
    "reported_tcb_microcode": 115,
    "reported_tcb_snp": 8,
    "reported_tcb_tee": 0,
}


def failed(traces: list[RuleTrace], rule: str) -> list[RuleTrace]:
    return [trace for trace in traces if trace.rule == rule and trace.holds is False]


async def test_an_appraisal_names_the_claim_and_the_reference_value() -> None:
    traces = await explain(
        builtin_policies()["default_cpu"],
        {"snp": SNP},
        reference_values={
            "snp_launch_measurement": ["cd" * 48],
            "snp_bootloader": [3],
            "snp_microcode": [114],
        },
        rules=["trust_claims"],
    )
    (executables,) = failed(traces, "executables")
    assert executables.claim == "input.snp.measurement"
    assert executables.value == "ab" * 48
    assert executables.reference == "snp_launch_measurement"
    assert executables.reference_value == ["cd" * 48]
    (hardware,) = failed(traces, "hardware")
    assert hardware.expression == (
        'input.snp.reported_tcb_microcode in query_reference_value("snp_microcode")'
    )
    assert (hardware.value, hardware.reference_value) == (115, [114])
    line = builtin_policies()["default_cpu"].splitlines()[(hardware.expression_line or 0) - 1]
    assert hardware.expression in line
    assert [trace.head for trace in traces if trace.rule == "configuration"] == [
        "configuration := 2",
        "else := 3",
    ]
    assert [trace.holds for trace in traces if trace.rule == "configuration"] == [False, True]


async def test_a_guest_of_no_known_kind_is_told_every_kind_that_it_is_not() -> None:
    traces = await explain(builtin_policies()["default_gpu"], {}, rules=["hardware"])
    assert {trace.claim for trace in traces} == {"input.sampledevice", "input.nvidia"}
    assert not any(trace.present for trace in traces)


async def test_a_denied_sample_guest_is_led_to_its_evidence() -> None:
    submod = {"ear.veraison.annotated-evidence": {"sample": {"svn": "1"}}}
    traces = await explain(
        resource_policy("default"),
        {"submods": {"cpu0": submod}},
        request={"plugin": "resource", "resource-path": ["a", "b", "c"]},
    )
    assert [(trace.rule, trace.holds, trace.expression) for trace in traces] == [
        ("allow", False, "not sample_evidence"),
        ("sample_evidence", True, None),
    ]
    assert traces[1].claim == 'input.submods.cpu0["ear.veraison.annotated-evidence"].sample'
    assert traces[1].value == {"svn": "1"}


async def test_the_statuses_of_all_devices_are_shown() -> None:
    submods = {"cpu0": {"ear.status": "affirming"}, "gpu0": {"ear.status": "warning"}}
    traces = await explain(resource_policy("affirming"), {"submods": submods}, request={})
    (held,) = [trace for trace in traces if trace.holds and trace.rule != "allow"]
    assert held.claim == 'input.submods[_]["ear.status"]'
    assert held.value == ["affirming", "warning"]


VERSION_0 = """package policy

default allow = false

tenant := data["resource-path"][0]

allow {
    data.plugin == "resource"
    name := input.tenant
    name == "alice"
}

allow { input.admin; data.method == "GET" }
"""


@pytest.mark.parametrize(
    ("value", "request_", "expression", "line", "seen"),
    [
        ({}, {"plugin": "x"}, 'data.plugin == "resource"', 8, ("data.plugin", "x")),
        ({}, {"plugin": "resource"}, "name := input.tenant", 9, ("input.tenant", None)),
        ({"tenant": "bob"}, {"plugin": "resource"}, 'name == "alice"', 10, ("input.tenant", "bob")),
    ],
)
async def test_version_0_is_explained_through_its_local_variables(
    value: Any, request_: Any, expression: str, line: int, seen: Any
) -> None:
    traces = await explain(VERSION_0, value, request={"method": "GET", **request_})
    first = traces[0]
    assert (first.holds, first.expression, first.expression_line) == (False, expression, line)
    assert (first.claim, first.value) == seen


async def test_a_body_that_holds_says_so() -> None:
    traces = await explain(VERSION_0, {"admin": True}, request={"plugin": "x", "method": "GET"})
    assert [trace.holds for trace in traces] == [False, True]


async def test_a_function_is_named_with_its_text() -> None:
    source = "package policy\nf(x) := 1 { x == input.a }\nallow { f(2) }"
    traces = await explain(source, {"a": 1}, request={})
    assert [(trace.rule, trace.holds, trace.line) for trace in traces] == [
        ("allow", False, 3),
        ("f", None, 2),
    ]
    assert traces[1].expression == "x == input.a"


async def test_a_policy_that_ends_the_engine_is_named_with_its_text() -> None:
    source = """package policy
default allow = false
plugin = data.plugin
allow { plugin == "resource"; not input["submods"]["cpu0"]["x"]["sample"] }
other := x { x := data.policy.allow with input as {"submods": 1} with data.plugin as "resource" }
"""
    traces = await explain(source, {}, request={"plugin": "x"})
    assert [(trace.rule, trace.holds) for trace in traces] == [("allow", None), ("plugin", True)]


async def test_a_trace_is_plain_json() -> None:
    (trace,) = await explain("package policy\nallow { input.a }", {"a": False}, request={})
    assert trace.as_json() == {
        "rule": "allow",
        "line": 2,
        "head": "allow",
        "holds": False,
        "expression": "input.a",
        "expression_line": 2,
        "claim": "input.a",
        "present": True,
        "value": False,
        "reference": None,
        "reference_value": None,
        "negated": False,
    }


async def test_an_unknown_rule_has_nothing_to_tell() -> None:
    assert await explain("package policy", {}, rules=["allow"]) == []


async def test_a_rule_that_must_not_hold_is_at_fault_where_it_does() -> None:
    source = """package policy
import rego.v1
default allow := false
allow if {
    input.tee == "sample"
    not revoked
}
revoked if input.version in [2, 3]
revoked if input.lost
"""
    traces = await explain(source, {"tee": "sample", "version": 3})
    faults = [(trace.rule, trace.line, trace.holds) for trace in traces if trace.at_fault]
    assert ("allow", 4, False) in faults
    assert ("revoked", 8, True) in faults
    assert ("revoked", 9, False) not in faults
    (held,) = [trace for trace in traces if trace.holds and trace.negated]
    assert (held.claim, held.value) == ("input.version", 3)
