"""What a policy can read of its input."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybroker.attestation_service.policies import builtin_policies
from keybroker.attestation_service.service import ENTRYPOINTS
from keybroker.policy.engine import CompiledPolicy
from keybroker.policy.reads import input_reads

HEAD = "package policy\nimport rego.v1\n"


def reads(body: str) -> Any:
    return input_reads(HEAD + body)


def test_dots_and_brackets_make_one_path() -> None:
    found = reads('allow if { input.a.b["c-d"].e == 1 }')
    assert found.paths == {("a", "b", "c-d", "e")}


def test_a_path_ends_where_it_is_computed_and_then_has_all_below() -> None:
    found = reads("allow if { x := input.a.b[_].c; x == 1 }")
    assert found.paths == {("a", "b")}


@pytest.mark.parametrize(
    "body",
    [
        "allow if { input.a }",
        "allow if {\n\tinput.a\n\ttrue\n}",
        "allow if { true; not input.a }",
        "allow if {\n input.a\n}\n",
    ],
)
def test_a_condition_reads_only_the_presence(body: str) -> None:
    found = reads(body)
    assert found.presences == {("a",)}
    assert not found.paths


@pytest.mark.parametrize(
    "body",
    [
        "allow if { input.a == 1 }",
        "allow if { input.a\n == 1 }",
        "x := input.a",
        "allow if { some k, v in input.a }",
        "allow if { f(input.a) }",
        "allow if { count(input.a) > 0 }",
        "allow if { input.a [0] }",
        "allow if {\n input.a\n [1]\n}",
        "x := {v | v := input.a[_]}",
        "allow if { 1 in input.a }",
        "x := input.a if { true }",
    ],
)
def test_everything_else_reads_the_whole_member(body: str) -> None:
    assert ("a",) in reads(body).paths


@pytest.mark.parametrize(
    "body",
    [
        "allow if { input[x] == 1 }",
        "x := input",
        "allow if { some k in input }",
        "import input as i",
        'allow if { object.get(input, "a", 1) }',
        "allow if { data.policy.x with input as {} }",
        "allow if { input[`a`, 1] }",
        'allow if { input ["a"] }',
    ],
)
def test_a_policy_that_names_the_whole_input_can_read_anything(body: str) -> None:
    assert reads(body) is None


def test_comments_and_strings_are_not_read() -> None:
    found = reads('# input[x]\nallow if { "input[x]" == input.a }\nx := data.input.b')
    assert found.paths == {("a",)}


def test_the_projection_keeps_what_is_read_and_the_presence_of_the_rest() -> None:
    found = reads("allow if { input.snp; input.snp.measurement == 1; input.list; input.x.y == 2 }")
    document = {"snp": {"measurement": 1, "report_id": "r"}, "list": [1], "x": 3, "other": 4}
    assert found.project(document) == {"snp": {"measurement": 1}, "list": [], "x": 3}
    assert found.project({}) == {}
    assert found.project({"snp": False}) == {"snp": False}


claim = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["ab", "cd"])
snp_claims = st.fixed_dictionaries(
    {},
    optional={
        "measurement": claim,
        "reported_tcb_bootloader": claim,
        "reported_tcb_microcode": claim,
        "reported_tcb_snp": claim,
        "reported_tcb_tee": claim,
        "policy_debug_allowed": claim,
        "policy_migrate_ma": claim,
        "report_id": claim,
    },
)
_CPU = CompiledPolicy(
    builtin_policies()["default_cpu"], entrypoints=ENTRYPOINTS, name="default_cpu"
)
_VALUES = {
    "snp_launch_measurement": ["ab"],
    "snp_bootloader": [1],
    "snp_microcode": [1, 2],
    "snp_snp_svn": [1],
    "snp_tee_svn": [0, 1],
}


@given(
    st.fixed_dictionaries({}, optional={"snp": snp_claims | claim, "sample": claim, "more": claim})
)
def test_a_policy_answers_the_same_on_the_projection(document: dict[str, Any]) -> None:
    found = input_reads(_CPU.source)
    assert found is not None
    whole = _CPU.evaluate(document, reference_values=_VALUES).values
    assert _CPU.evaluate(found.project(document), reference_values=_VALUES).values == whole


def test_guests_that_differ_in_identity_alone_are_one_to_the_default_policy() -> None:
    found = input_reads(_CPU.source)
    assert found is not None
    one = {"snp": {"measurement": "ab", "report_id": "1"}, "report_data": "x"}
    two = {"snp": {"measurement": "ab", "report_id": "2"}, "report_data": "y"}
    assert found.project(one) == found.project(two)
    assert found.project(one) != found.project({"snp": {"measurement": "cd"}})
