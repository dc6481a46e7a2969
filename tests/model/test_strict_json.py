"""Strict JSON and canonical JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import MAX_DEPTH, canonical_json, parse_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_what_json_writes_is_read_back(value: Any) -> None:
    text = json.dumps(value)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return
    assert parse_json(text.encode()) == value


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_as_malformed(raw: bytes) -> None:
    try:
        parse_json(raw)
    except MalformedError as error:
        assert error.status == 400


@given(st.text(alphabet='{}[]",:\\ 1aetrufalsn', max_size=120))
def test_text_that_looks_like_json_is_read_or_refused(text: str) -> None:
    try:
        parse_json(text.encode())
    except MalformedError:
        pass


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_is_bounded(opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    within = opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
    parse_json(within.encode())
    for depth in (MAX_DEPTH + 1, 100_000):
        beyond = opening * depth + "1" + closing * depth
        with pytest.raises(MalformedError, match="deeper than 32"):
            parse_json(beyond.encode())


def test_brackets_inside_strings_do_not_count_as_nesting() -> None:
    text = json.dumps(["[[[[{{{{" * 50, '\\"[[[' * 20])
    assert parse_json(text.encode())[0].startswith("[[[[")


def test_many_shallow_objects_are_no_nesting() -> None:
    assert len(parse_json(json.dumps([{"a": [1]}] * 500).encode())) == 500


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a":1,"a":2}', "twice"),
        (b'{"x":{"a":1,"\\u0061":2}}', "twice"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":Infinity}', "Infinity"),
        (b"", "not JSON"),
        (b"{'a':1}", "line 1 column 2"),
        (b"[1] x", "not JSON"),
        (b"9" * 10_000, "out of range"),
        (b'"\xed\xa0\x80"', "UTF-8"),
    ],
)
def test_what_other_parsers_forgive_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        parse_json(raw)


def test_canonical_json_sorts_by_utf16_code_units_and_escapes_shortest() -> None:
    # The example of RFC 8785, section 3.2.3: a supplementary character sorts before U+FB33.
    names = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7}
    text = canonical_json(names).decode()
    assert [text.index(f":{value}") for value in (2, 4, 6, 7, 1, 5, 3)] == sorted(
        text.index(f":{value}") for value in names.values()
    )
    assert canonical_json({"b": '\x08\t\n\f\r"\\\x01/\x7f'}) == (
        b'{"b":"\\b\\t\\n\\f\\r\\"\\\\\\u0001/\x7f"}'
    )


@given(json_values)
def test_canonical_json_means_the_same(value: Any) -> None:
    try:
        raw = canonical_json(value)
    except MalformedError:
        return
    assert json.loads(raw) == value
    assert canonical_json(json.loads(raw)) == raw


@pytest.mark.parametrize("value", [1.5, 2**53, "\ud800", {"a": b"x"}])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(MalformedError):
        canonical_json(value)


@given(json_values, st.sampled_from([(",", ":"), (", ", ": ")]))
def test_the_fast_way_and_the_slow_way_read_the_same(
    value: Any, separators: tuple[str, str]
) -> None:
    raw = json.dumps(value, separators=separators, ensure_ascii=False)
    try:
        encoded = raw.encode()
    except UnicodeEncodeError:
        return
    assert parse_json(encoded) == json.loads(raw)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"b":[1,{"c":1,"c":2}]}',
        '[1,{"a":1,"a":1}]',
        '[[1,2,{"x":{"y":1,"y":2}}]]',
        '{"a":"x","a":"y"}',
        "[1" + ",[1" * 40 + "]" * 41,
    ],
)
def test_nothing_hides_behind_a_number_in_a_list(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_json(text.encode())
