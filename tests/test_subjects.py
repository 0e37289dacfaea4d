# Subjects: which can be published on, which subscribed to, and which pattern matches which.

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from trio_swarmtask._subjects import (
    check_pattern,
    check_queue,
    check_subject,
    is_literal,
    matches,
)
from trio_swarmtask.bus import InvalidSubjectError

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[[object], None]

CHECKS: Final = {
    check_subject: "can't publish on subject",
    check_pattern: "can't subscribe to subject",
    check_queue: "can't share queue",
}

LITERAL: Final = (
    *("a", "a.b", "A.Z.0", "-", "_", "a-b_c", "$JS.API.INFO", "a/b", "a:b", 'a"b', "a.b.c.d.e"),
    *("é", "²", "日本", "\U0001f600", "x" * 1024, "é" * 512),  # 1,024 bytes, both
)
PATTERNS: Final = ("*", ">", "a.*", "*.a", "a.>", "*.*", "*.>", "a.*.b.*", "a.*.>")
BAD: Final = {
    "": "it is empty",
    "a b": "it holds ' '",
    " a": "it holds ' '",
    "a\n": r"it holds '\n'",
    "a\r\nPUB b 1": r"it holds '\r'",
    "a\tb": r"it holds '\t'",
    "a\0": r"it holds '\x00'",
    "\x1fa": r"it holds '\x1f'",
    "a\x7f": r"it holds '\x7f'",
    "a\x85b": r"it holds '\x85'",
    "a\xa0b": r"it holds '\xa0'",
    "a\u2028b": r"it holds '\u2028'",
    "a\ud800": r"it holds '\ud800'",
    "a\udfffb": r"it holds '\udfff'",
    ".": "it has an empty token",
    ".a": "it has an empty token",
    "a.": "it has an empty token",
    "a..b": "it has an empty token",
    "x" * 1025: "it is longer than 1024 bytes",
    "é" * 513: "it is longer than 1024 bytes",
}
WRONG_TYPES: Final[dict[object, str]] = {
    None: "NoneType",
    5: "int",
    True: "bool",
    b"a": "bytes",
    ("a",): "tuple",
    1.5: "float",
}
STRAY: Final = {
    "a*": "unlike in 'a*'",
    "*a.b": "unlike in '*a'",
    "a.b>": "unlike in 'b>'",
    "**": "unlike in '**'",
    "*>": "unlike in '*>'",
    ">.a": "'>' stands for the rest, so it comes last",
    "a.>.b": "'>' stands for the rest, so it comes last",
    ">.>": "'>' stands for the rest, so it comes last",
}


def refused(check: Check, text: object) -> str:
    """Why ``check`` refuses ``text``."""
    with pytest.raises(InvalidSubjectError, match=f"^{CHECKS[check]} ") as raised:
        check(text)
    return str(raised.value)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("text", LITERAL)
def test_literal_is_fine_everywhere(check: Check, text: str) -> None:
    check(text)
    assert is_literal(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wildcards_are_for_subscribing_alone(pattern: str) -> None:
    check_pattern(pattern)
    assert not is_literal(pattern)
    for check in (check_subject, check_queue):
        assert refused(check, pattern).endswith(": '*' and '>' are for subscribing")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("text", BAD)
def test_bad_everywhere(check: Check, text: str) -> None:
    assert BAD[text] in refused(check, text)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", WRONG_TYPES)
def test_wrong_type(check: Check, value: object) -> None:
    problem = f"{value!r}: it must be a string, not {WRONG_TYPES[value]}"
    assert refused(check, value) == f"{CHECKS[check]} {problem}"


@pytest.mark.parametrize("pattern", STRAY)
def test_stray_wildcards(pattern: str) -> None:
    """nats-py would let a publish with one through, and a server stores it as it is."""
    assert STRAY[pattern] in refused(check_pattern, pattern)
    for check in (check_subject, check_queue):
        assert "are for subscribing" in refused(check, pattern)


def test_long_subject_is_cut_in_the_message() -> None:
    assert len(refused(check_subject, "x" * 100_000)) < 300


def test_error_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="it has an empty token; write one dot between two tokens"):
        check_subject("a..b")


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        *(("a", "a", True), ("a", "A", False), ("a", "b", False), ("a", "a.b", False)),
        *(("a.b", "a", False), ("a.b", "a.b", True), ("a.b", "b.a", False)),
        *(("*", "a", True), ("*", "a.b", False), ("a.*", "a", False), ("a.*", "a.b", True)),
        *(("a.*", "a.b.c", False), ("*.b", "a.b", True), ("*.b", "a.c", False)),
        *((">", "a", True), (">", "a.b.c", True), ("a.>", "a", False), ("a.>", "a.b", True)),
        *(("a.>", "a.b.c.d", True), ("a.>", "b.c", False), ("a.>", "ab.c", False)),
        *(("a.*.>", "a.b", False), ("a.*.>", "a.b.c.d", True), ("*.b.>", "a.b.c", True)),
        *(("*.*", "a.b", True), ("*.*", "a", False), ("a.*.c", "a.b.c", True)),
        ("a.*.c", "a.b.d", False),
    ],
)
def test_matches(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected


def obviously_matches(pattern: str, subject: str) -> bool:
    """By a regular expression for the whole: slow, and as the definition reads."""
    tokens = {"*": r"[^.]+", ">": r"[^.]+(\.[^.]+)*"}
    parts = [tokens.get(token, re.escape(token)) for token in pattern.split(".")]
    return re.fullmatch(r"\.".join(parts), subject) is not None


words: Final = st.sampled_from(["a", "b", "ab", "A", "é", "$", "+", "-"])
subjects: Final = st.lists(words, min_size=1, max_size=5).map(".".join)
patterns: Final = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(words | st.just("*"), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")
quietly: Final = settings(
    max_examples=500, derandomize=True, database=None, deadline=None, suppress_health_check=()
)


@quietly
@given(patterns, subjects)
@example("a.>", "a")
@example("*.>", "a.b.c")
def test_matches_as_its_definition(pattern: str, subject: str) -> None:
    check_pattern(pattern)
    check_subject(subject)
    assert matches(pattern, subject) is obviously_matches(pattern, subject)


@settings(quietly, suppress_health_check=[HealthCheck.filter_too_much])
@given(subjects, st.data())
def test_pattern_made_of_a_subject_matches_it(subject: str, data: st.DataObject) -> None:
    """Any tokens replaced by `*`, and any tail by `>`."""
    tokens = subject.split(".")
    pattern = [data.draw(st.sampled_from([token, "*"])) for token in tokens]
    length = data.draw(st.integers(0, len(tokens)))
    if length < len(tokens):
        pattern = [*pattern[:length], ">"]
    assert matches(".".join(pattern), subject)
    assert not matches(".".join([*pattern[:-1], "other"]), subject)


@quietly
@given(st.text(max_size=30) | st.from_regex(r"[a-c.*> ]{0,8}", fullmatch=True))
def test_anything_at_all(text: str) -> None:
    """What is fine to publish on is fine to subscribe to, as one line of the protocol."""
    try:
        check_subject(text)
    except InvalidSubjectError:
        pass
    else:
        check_pattern(text)
        check_queue(text)
        assert is_literal(text)
        assert matches(text, text)
        assert len(text.encode().split()) == 1
    try:
        check_pattern(text)
    except InvalidSubjectError:
        with pytest.raises(InvalidSubjectError):
            check_subject(text)
