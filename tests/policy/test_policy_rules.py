"""The reading of rule bodies out of a policy's text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.attestation_service.policies import builtin_policies
from keybroker.policy.determinism import is_deterministic
from keybroker.policy.lexer import place, tokens
from keybroker.policy.modules import asked_reference_values
from keybroker.policy.rules import has_if_keyword, rule_bodies


def read(source: str) -> list[tuple[str, int, list[str]]]:
    return [
        (body.rule, body.line, [expression.text for expression in body.expressions])
        for body in rule_bodies(f"package policy\n{source}")
    ]


@pytest.mark.parametrize(
    ("source", "bodies"),
    [
        ("default allow := false", []),
        ("default allow = false\nallow { a; b }", [("allow", 3, ["a", "b"])]),
        ("allow if {\n\ta\n\n\t# why\n\tb\n}", [("allow", 2, ["a", "b"])]),
        ("allow if a == 1", [("allow", 2, ["a == 1"])]),
        (
            "allow := 2 if {\n a\n} else := 3 if {\n b\n}",
            [("allow", 2, ["a"]), ("allow", 4, ["b"])],
        ),
        ("allow := 2 if { a }\n\nelse := 3 if { b }", [("allow", 2, ["a"]), ("allow", 4, ["b"])]),
        ("allow := x if a\nelse := y", [("allow", 2, ["a"]), ("allow", 3, [])]),
        ("allow = 2 { a } else = 3 { b }", [("allow", 2, ["a"]), ("allow", 2, ["b"])]),
        ("allow { a } { b }", [("allow", 2, ["a"]), ("allow", 2, ["b"])]),
        ('names := {\n\t"a": b,\n}\nallow { c }', [("names", 2, []), ("allow", 5, ["c"])]),
        ('x = {"a"} { b }', [("x", 2, ["b"])]),
        ("seen contains name if { some name in input.n }", [("seen", 2, ["some name in input.n"])]),
        ("p[x] { x := input.a[_] }", [("p", 2, ["x := input.a[_]"])]),
        (
            "allow if {\n a ==\n  1\n b\n  with input.c as 1\n}",
            [("allow", 2, ["a ==\n  1", "b\n  with input.c as 1"])],
        ),
        (
            "allow if { every x in [1] {\n x > 0\n y } }",
            [("allow", 2, ["every x in [1] {\n x > 0\n y }"])],
        ),
        ('allow { a == "}{;"; b == `{\n` }', [("allow", 2, ['a == "}{;"', "b == `{\n`"])]),
        ("# allow { a }", []),
        ("allow if {", [("allow", 2, [])]),
    ],
)
def test_bodies_and_conditions_are_found(
    source: str, bodies: list[tuple[str, int, list[str]]]
) -> None:
    assert read(source) == bodies


def test_a_function_is_known_as_one() -> None:
    bodies = rule_bodies("package policy\nf(x) := 1 if { x }\nallow { f(1) }")
    assert [(body.rule, body.function) for body in bodies] == [("f", True), ("allow", False)]


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("import rego.v1", True),
        ("import future.keywords.if", True),
        ("import future.keywords", True),
        ("import data.rego", False),
        ("# import rego.v1", False),
    ],
)
def test_the_version_of_the_language_is_told_by_imports(source: str, has: bool) -> None:
    assert has_if_keyword(f"package policy\n{source}\n") is has


@pytest.mark.parametrize("name", sorted(builtin_policies()))
def test_every_body_of_a_shipped_policy_has_its_text_where_it_says(name: str) -> None:
    source = builtin_policies()[name]
    lines = source.splitlines()
    for body in rule_bodies(source):
        assert body.head.splitlines()[0] in lines[body.line - 1]
        for expression in body.expressions:
            assert expression.text.splitlines()[0] in lines[expression.line - 1]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='allow if else{}[]()=:;\n"`#.,some in not default 1_x\\', max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    source = f"package policy\n{text}"
    assert "".join(token.text for token in tokens(source)).startswith("package")
    rule_bodies(source)
    is_deterministic(source)
    asked_reference_values(source)


def test_a_place_is_counted_in_characters() -> None:
    assert place("a\néé b", len("a\néé ".encode())) == (2, 4)
    assert place("", 0) == (1, 1)
