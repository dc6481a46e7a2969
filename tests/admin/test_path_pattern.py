"""The matcher of access rules, held against Python's engine and against the clock."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.kbs.path_pattern import PathPattern, PatternError


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("^/kbs/v0/resource/.+$", ["/kbs/v0/resource/a/b/c"], ["/kbs/v0/resource/", "/kbs"]),
        ("^/kbs/v0/a|b$", ["/kbs/v0/a", "b"], ["/kbs/v0/ab", "/kbs/v0/a/x", "xb", "/kbs/v0/b"]),
        ("^/kbs/a$|^/kbs/b$", ["/kbs/a", "/kbs/b"], ["/kbs/ab", "/kbs/a/kbs/b"]),
        ("^/kbs/(a|b)+$", ["/kbs/a", "/kbs/abba"], ["/kbs/", "/kbs/abc"]),
        ("^/kbs/[^/]+/x$", ["/kbs/y/x"], ["/kbs/y/z/x", "/kbs//x"]),
        (r"^/kbs/a\.b$", ["/kbs/a.b"], ["/kbs/aXb"]),
        (r"^/kbs/\d{2,3}$", ["/kbs/12", "/kbs/123"], ["/kbs/1", "/kbs/1234", "/kbs/1a"]),
        ("^/kbs/(?:a{0}b)?c*?$", ["/kbs/", "/kbs/b", "/kbs/ccc", "/kbs/bc"], ["/kbs/a"]),
        (r"^/kbs/a\$$", ["/kbs/a$"], ["/kbs/a"]),
        (r"^/kbs/a\$", [], ["/kbs/a", "/kbs/a$x"]),
        ("^/kbs/.$", ["/kbs/x"], ["/kbs/\n", "/kbs/x\n", "/kbs/xy"]),
        ("^/kbs/()$", ["/kbs/"], ["/kbs"]),
        ("^/kbs/a^b$", [], ["/kbs/ab", "/kbs/a^b"]),
    ],
)
def test_the_whole_path_must_match(pattern: str, matching: list[str], other: list[str]):
    compiled = PathPattern(pattern)
    for path in matching:
        if path != "/kbs/a$":
            assert bool(re.fullmatch(pattern, path))
        assert compiled.matches(path), path
    for path in other:
        assert not compiled.matches(path), path


_atoms = st.sampled_from(["a", "b", "/", ".", "[ab]", "[^/]", r"\d", r"\w", r"\.", "^", "$"])
_patterns = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(
            inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,1}", "{1,}", "*?"])
        ).map(lambda parts: f"(?:{parts[0]}){parts[1]}"),
    ),
    max_leaves=8,
)


@given(pattern=_patterns, path=st.text("ab/.1", max_size=10))
@settings(max_examples=1500, deadline=None)
def test_it_agrees_with_the_engine_of_python(pattern: str, path: str):
    expected = re.compile(rf"(?:{pattern})\Z").match(path) is not None
    assert PathPattern(pattern).matches(path) is expected


@given(st.text(alphabet=r"^$ab/.*+?{}()[]|\,-123:&~=!<P", max_size=25) | st.text(max_size=25))
@settings(max_examples=1000, deadline=None)
def test_any_text_is_a_pattern_or_refused(source: str):
    try:
        pattern = PathPattern(source)
    except PatternError:
        return
    pattern.matches("/kbs/v0/ab")


@pytest.mark.parametrize(
    "pattern",
    [
        "^/kbs/(a+)+$",
        "^/kbs/(a|a)*$",
        "^/kbs/(.*)*x$",
        "^/kbs/.*.*.*.*.*.*.*x$",
        "^/kbs/(a?){50}a{50}$",
    ],
)
def test_no_pattern_is_slow_on_any_path(pattern: str):
    compiled = PathPattern(pattern)
    began = time.process_time()
    assert not compiled.matches("/kbs/" + "a" * 1000 + "!")
    assert time.process_time() - began < 3
