import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.model.errors import PolicyEngineError, PolicyError
from keybroker.policy.engine import CompiledPolicy, compile_policy
from keybroker.policy.modules import asked_reference_values
from keybroker.policy.rego import RegoEngine, RegoError

ALLOW = "policy/allow"

#: A policy that the engine cannot compile: it ends its whole process on it.
ABORTING = """package policy
default allow = false
plugin = data.plugin
allow { plugin == "resource"; not input["submods"]["cpu0"]["x"]["sample"] }
other := x { x := data.policy.allow with input as {"submods": 1} with data.plugin as "resource" }
"""

VERSION_0 = """package policy

default allow = false

owner := data["resource-path"][0]

allow {
    data.plugin == "resource"
    owner == input.tenant
    not input.debug
}
"""

VERSION_1 = """package policy

import rego.v1

default allow := false

allow if {
    data.plugin == "resource"
    data["resource-path"][0] == input.tenant
    not input.debug
}
"""


async def allows(source: str, value: Any, **request: Any) -> Any:
    policy = await compile_policy(source, entrypoints=[ALLOW], name="test")
    return policy.evaluate(value, request=request or None).get(ALLOW)


@pytest.mark.parametrize("source", [VERSION_0, VERSION_1], ids=["version 0", "version 1"])
async def test_both_versions_of_the_language_decide_the_same(source: str) -> None:
    policy = await compile_policy(source, entrypoints=[ALLOW], name="test")
    request = {"plugin": "resource", "resource-path": ["alice", "key", "1"]}

    def decide(value: dict[str, Any], **changed: Any) -> Any:
        return policy.evaluate(value, request={**request, **changed}).get(ALLOW)

    assert decide({"tenant": "alice"}) is True
    assert decide({"tenant": "bob"}) is False
    assert decide({"tenant": "alice", "debug": True}) is False
    assert decide({"tenant": "alice"}, plugin="nebula-ca") is False


async def test_the_request_is_seen_in_data() -> None:
    source = (
        'package policy\nallow := [data.plugin, data["resource-path"], data.query, data.method]'
    )
    seen = await allows(
        source,
        {},
        **{"plugin": "p", "resource-path": ["a"], "query": {"q": "1"}, "method": "POST"},
    )
    assert seen == ["p", ["a"], {"q": "1"}, "POST"]


async def test_claims_cannot_pose_as_the_request() -> None:
    forged = {"keybroker_request": {"plugin": "resource", "resource-path": ["alice"]}}
    assert await allows(VERSION_1, {"tenant": "alice", **forged}, plugin="other") is False
    assert await allows(VERSION_1, {"tenant": "alice", **forged}) is False


async def test_a_rule_that_nothing_defines_has_no_value() -> None:
    assert await allows("package policy\nallow { input.yes }", {}) is None


async def test_reference_values_are_asked_by_name() -> None:
    source = """package policy
import rego.v1
allow := {
    "known": input.measurement in query_reference_value("measurements"),
    "flag": query_reference_value("flag") == false,
    "absent": query_reference_value("absent"),
    "nested": query_reference_value("nested").a[0],
}
"""
    policy = await compile_policy(source, entrypoints=[ALLOW], name="test")
    values = {"measurements": ["aa", "bb"], "flag": False, "nested": {"a": [1.5]}}
    answer = policy.evaluate({"measurement": "bb"}, reference_values=values).get(ALLOW)
    assert answer == {"known": True, "flag": True, "absent": None, "nested": 1.5}


@pytest.mark.parametrize(
    ("calls", "names"),
    [
        ('query_reference_value("a"); query_reference_value(`b\\`)', {"a", "b\\"}),
        ('query_reference_value( "a\\u0062" )', {"ab"}),
        ("true  # query_reference_value(x)", set()),
        ('query_reference_value(sprintf("%v", ["a"]))', None),
        ("x := input.x; query_reference_value(x)", None),
        ('query_reference_value("a"); query_reference_value(input.x)', None),
    ],
)
async def test_only_reference_values_that_a_policy_can_ask_for_are_compiled_in(
    calls: str, names: set[str] | None
) -> None:
    assert asked_reference_values(f"package policy\nallow {{\n{calls}\n}}") == names


async def test_a_reference_value_can_be_asked_by_a_computed_name() -> None:
    source = "package policy\nallow := query_reference_value(input.name)"
    policy = await compile_policy(source, entrypoints=[ALLOW], name="test")
    for name, value in (("a", 1), ("b", [2]), ("c", None)):
        answer = policy.evaluate({"name": name}, reference_values={"a": 1, "b": [2]})
        assert answer.get(ALLOW) == value


async def test_changed_reference_values_are_in_force_at_once() -> None:
    source = 'package policy\nallow { query_reference_value("svn") == input.svn }'
    policy = await compile_policy(source, entrypoints=[ALLOW], name="test")
    for svn in (1, 2, 3):
        assert policy.evaluate({"svn": svn}, reference_values={"svn": svn}).get(ALLOW) is True
        assert policy.evaluate({"svn": 0}, reference_values={"svn": svn}).get(ALLOW) is None
    assert policy.evaluate({"svn": 3}).get(ALLOW) is None


async def test_a_measurement_is_not_in_reference_values_that_are_absent() -> None:
    source = 'package policy\nimport rego.v1\nallow if input.m in query_reference_value("none")'
    assert await allows(source, {"m": None}) is None


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("package policy\n\nallow if {\n  x ==\n}\n", "line 4, column 5: "),
        ('package policy\nname := "é"; "é" == x ==\n', "line 2, column "),
        ("package policy\nallow {\n  frobnicate(1)\n}\n", "line 3, column 3: there is no function"),
        ("package policy\nallow { http.send({}).status == 200 }", "line 2, column 9: "),
        ("package other\nallow = true", "line 1, column 1: "),
        ("package policy.sub\nallow = true", "line 1, column 1: "),
        ("allow = true", "line 1, column 1: "),
        ("", "line 1, column 1: "),
        ("# only a comment", "line 1, column 1: "),
        ("package policy\nquery_reference_value(x) := 1", "line 2, column 1: "),
    ],
)
async def test_a_policy_is_refused_with_line_and_column(source: str, where: str) -> None:
    with pytest.raises(PolicyError) as refused:
        await compile_policy(source, entrypoints=[ALLOW], name="test")
    assert refused.value.detail.startswith(where)
    assert refused.value.status == 400


async def test_a_policy_that_aborts_the_engine_is_refused_and_the_process_lives() -> None:
    with pytest.raises(PolicyError, match="the policy is refused"):
        await compile_policy(ABORTING, entrypoints=[ALLOW], name="test")
    assert await allows("package policy\nallow = true", {}) is True


async def test_a_policy_that_asks_for_all_memory_is_refused() -> None:
    source = "package policy\nallow { count(numbers.range(1, 200000000)) > 0 }"
    with pytest.raises(PolicyError, match=r"too (much memory|long)"):
        await compile_policy(source, entrypoints=[ALLOW], name="test")


@pytest.mark.parametrize("bracket", ["[]", "()"])
async def test_a_policy_nested_without_end_is_refused(bracket: str) -> None:
    source = f"package policy\nallow := {bracket[0] * 50_000}1{bracket[1] * 50_000}"
    with pytest.raises(PolicyError):
        await compile_policy(source, entrypoints=[ALLOW], name="test")


@pytest.mark.parametrize(
    "source",
    [
        "package policy\nallow { b }\nb { allow }",
        "package policy\nf(x) := f(x + 1)\nallow := f(1)",
        "package policy\nallow := 1\nallow := 2",
        "package policy\nallow := 1 { " + "x" * (1024 * 1024) + " }",
        "package policy\nallow := \0",
        "package policy\nallow := \ud800",
    ],
    ids=["recursion", "recursive function", "two values", "too long", "NUL", "surrogate"],
)
async def test_a_policy_that_can_never_answer_is_refused(source: str) -> None:
    with pytest.raises(PolicyError):
        await compile_policy(source, entrypoints=[ALLOW], name="test")


async def test_two_values_for_one_rule_fail_closed() -> None:
    source = "package policy\nallow := true { input.a }\nallow := false { input.b }"
    policy = await compile_policy(source, entrypoints=[ALLOW], name="test")
    assert policy.evaluate({"a": 1}).get(ALLOW) is True
    with pytest.raises(PolicyEngineError):
        policy.evaluate({"a": 1, "b": 1})
    assert policy.evaluate({"b": 1}).get(ALLOW) is False


async def test_an_entrypoint_is_a_rule_of_the_policy() -> None:
    for entrypoint in ("allow", "other/allow", "policy/", "policy/a b", "policy/a/b"):
        with pytest.raises(ValueError, match="entrypoint"):
            await compile_policy("package policy", entrypoints=[entrypoint], name="test")


@pytest.mark.parametrize(
    ("expression", "deterministic"),
    [
        ("input.a == 1", True),
        ('input.text == "time.now_ns()"  # time.now_ns()', True),
        ("input.text == `rand.intn`", True),
        ("input.time.now == 1", True),
        ("time.now_ns() > input.a", False),
        ('rand.intn("x", 2) == 1', False),
        ('uuid.rfc4122("x") == ""', False),
        ("opa.runtime().env.X == 1", False),
        ('net.lookup_ip_addr("localhost")', False),
        ('http.send({"url": "x"})', False),
        ('io.jwt.decode_verify(input.t, {"secret": "x"})', False),
    ],
)
def test_what_changes_by_itself_is_known_from_the_text(
    expression: str, deterministic: bool
) -> None:
    source = f"package policy\nallow {{\n{expression}\n}}"
    policy = CompiledPolicy(source, entrypoints=[ALLOW], name="test")
    assert policy.deterministic is deterministic


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=8)
    | st.sampled_from(["\0", "a\0b", '"', "\\", "\u2028", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)

_ECHO = CompiledPolicy("package policy\nallow := input", entrypoints=[ALLOW], name="echo")


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=4), _JSON, max_size=4))
def test_every_json_input_arrives_as_it_was(value: dict[str, Any]) -> None:
    assert _ECHO.evaluate(value).get(ALLOW) == value


def test_a_claim_cannot_write_the_answer() -> None:
    source = "package policy\nallow := false\nextensions := [input.image]"
    policy = CompiledPolicy(source, entrypoints=[ALLOW, "policy/extensions"], name="test")
    for image in ('x"],"policy/allow":true,"y":["', '\\"', '"', "\\", "\n", "a\0b", "\\u0022"):
        assert policy.evaluate({"image": image}).values == {
            ALLOW: False,
            "policy/extensions": [image],
        }


def test_a_claim_equals_the_same_text_in_a_policy() -> None:
    source = (
        r"package policy"
        "\n"
        r'allow := [input.a == "a\nb", input.b == "\"\\", input.c == "\u0000"]'
    )
    policy = CompiledPolicy(source, entrypoints=[ALLOW], name="test")
    value = {"a": "a\nb", "b": '"\\', "c": "\0"}
    assert policy.evaluate(value).get(ALLOW) == [True, True, True]
    assert policy.evaluate({**value, "big": 2**70}).get(ALLOW) == [True, True, True]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), b"bytes", object(), "\ud800"])
def test_an_input_that_is_not_json_is_an_error(odd: Any) -> None:
    with pytest.raises(PolicyEngineError):
        _ECHO.evaluate({"odd": odd})


def test_an_input_that_holds_itself_is_an_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PolicyEngineError):
        _ECHO.evaluate({"endless": endless})


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='package policy{}[]():=\n"#`allow|.,x1', max_size=60))
def test_odd_text_never_gives_another_error_than_the_documented(text: str) -> None:
    from keybroker.policy.engine import _check_source

    try:
        _check_source("package policy\n" + text)
    except PolicyError as error:
        assert error.detail


async def test_eight_threads_get_their_own_answers() -> None:
    source = 'package policy\nallow := sprintf("%v %v", [input.n, query_reference_value("v")])'
    policy = await compile_policy(source, entrypoints=[ALLOW], name="test")
    begin = threading.Barrier(8)
    first, second = {"v": "first"}, {"v": "second"}

    def ask(thread: int) -> list[Any]:
        begin.wait()
        wrong = []
        for turn in range(60):
            values = second if turn % 20 == 19 else first
            n = thread * 1000 + turn
            answer = policy.evaluate({"n": n}, reference_values=values).get(ALLOW)
            if answer != f"{n} {values['v']}":
                wrong.append(answer)
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert [wrong for wrong in pool.map(ask, range(8)) if wrong] == []


def test_the_engine_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RegoError):
        RegoEngine(
            {"policy.rego": "package policy\nallow { frobnicate(1) }"}, {}, ["policy/allow"]
        ).query("policy/allow", {})
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")
