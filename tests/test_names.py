# Capabilities and task IDs: what may become a token of a subject, and how errors show the rest.

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from typing import Any, Final

import pytest

from trio_swarmtask import InvalidCapabilityError, InvalidMessageError
from trio_swarmtask._check import (
    check_capability,
    check_task_id,
    check_timeout,
    is_task_id,
    make_key,
    make_secrets,
)
from trio_swarmtask._util import shorten

GOOD: Final = ("a", "Z", "0", "-", "_", "a--b", "-a", "a-", "code-review_2", "A" * 64)
BAD: Final = (
    *(
        "",
        " ",
        "a b",
        "a.b",
        ".",
        "*",
        ">",
        "a>",
        "a*b",
        "$JS",
        "a/b",
        "a:b",
        "a\n",
        "\na",
        "a\r\n",
    ),
    *("\0", "a\tb", "\x7f", "é", "²", "٣", "\u2028", "\ud800", "ａ"),  # noqa: RUF001 - a wide one
    *(None, 5, True, b"a", ["a"], ("a",), 1.5),
)


@pytest.mark.parametrize("text", GOOD)
def test_check_capability_good(text: str) -> None:
    check_capability(text)


@pytest.mark.parametrize("text", [*BAD, "a" * 65])
def test_check_capability_bad(text: object) -> None:
    """A wildcard in a subject would be stored as it is, so nothing of the kind gets through."""
    with pytest.raises(
        InvalidCapabilityError, match=re.escape(f"capability {text!r} must be a string of 1 to 64 ")
    ):
        check_capability(text)


@pytest.mark.parametrize("text", [*GOOD, "a" * 128])
def test_check_task_id_good(text: str) -> None:
    check_task_id(text)
    assert is_task_id(text)


@pytest.mark.parametrize("text", [*BAD, "a" * 129])
def test_check_task_id_bad(text: object) -> None:
    with pytest.raises(
        InvalidMessageError, match=re.escape(f"task ID {text!r} must be a string of 1 to 128 ")
    ):
        check_task_id(text)
    assert not is_task_id(text)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((0, 0), (-5, 0), (-math.inf, 0), (1.5, 1.5), (math.inf, math.inf)),
        *((10**400, math.inf), (-(10**400), 0)),  # no float is as large
    ],
)
def test_check_timeout_good(seconds: float, expected: float) -> None:
    """A deadline that has passed leaves no time; that is no error."""
    assert check_timeout(seconds) == expected


@pytest.mark.parametrize("seconds", [None, "5", True, [5]])
def test_check_timeout_of_a_wrong_type(seconds: object) -> None:
    wrong = f"timeout must be a number of seconds, not {re.escape(repr(seconds))}"
    with pytest.raises(TypeError, match=wrong):
        check_timeout(seconds)


def test_check_timeout_nan() -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds, not NaN"):
        check_timeout(math.nan)


def test_make_key() -> None:
    """Random, and without a dash: an ID is taken apart at the first one."""
    keys = {make_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch("[a-z0-9]{12,}", key) for key in keys)


def test_make_secrets() -> None:
    """As long as each other, or two numbers could make one ID; and never twice."""
    drawn = list(itertools.islice(make_secrets(), 10_000))
    assert len(set(drawn)) == 10_000
    assert all(re.fullmatch("[a-z0-9]{12}", secret) for secret in drawn)
    # Each of the 32 characters in each place, about as often as any other.
    for place in range(12):
        counts = Counter(secret[place] for secret in drawn)
        assert len(counts) == 32
        assert max(counts.values()) < 2 * min(counts.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", r"'a\nb'"),
        ("x" * 158, f"'{'x' * 158}'"),  # 160 with the quotes
        ("x" * 159, f"'{'x' * 159}… (161 characters)"),
        (["x" * 1000], f"['{'x' * 158}… (1004 characters)"),
    ],
)
def test_shorten(value: object, text: str) -> None:
    assert shorten(value) == text


def test_shorten_to_a_limit() -> None:
    assert shorten(123456, limit=3) == "123… (6 characters)"


class BrokenRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no text today")


def too_deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("make", "shown"),
    [(BrokenRepr, "BrokenRepr"), (too_deep, "list"), (lambda: 10**5000, "int")],
    ids=["broken", "deep", "huge"],
)
def test_shorten_what_has_no_repr(make: Any, shown: str) -> None:  # noqa: ANN401 - a factory
    """Whoever shows a value is raising an error of their own; this must not take its place."""
    assert shown in shorten(make())
    with pytest.raises(InvalidCapabilityError, match=shown):
        check_capability(make())
    with pytest.raises(InvalidMessageError, match=shown):
        check_task_id(make())
