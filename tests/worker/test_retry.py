"""What a `Retry` can be made of, and its delays."""

from __future__ import annotations

import pytest

from trio_swarmtask import Retry, RetryTask


@pytest.mark.parametrize("on", [int, "OSError", (OSError, 3), (KeyboardInterrupt,), None])
def test_on_is_exception_types_or_a_function(on: type[Exception]) -> None:
    with pytest.raises(TypeError, match="on must be exception types, or a function of one, not"):
        Retry(on=on)


@pytest.mark.parametrize("field", ["first_delay", "max_delay"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_seconds_are_finite(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be a finite number of seconds from 0 up"):
        Retry(**{field: value})  # type: ignore[arg-type]  # one of the two that are numbers


@pytest.mark.parametrize("value", ["1", True, None])
def test_seconds_are_a_number(value: float) -> None:
    with pytest.raises(TypeError, match="first_delay must be a number of seconds, not"):
        Retry(first_delay=value)


def test_delay_of_a_request_is_checked() -> None:
    with pytest.raises(ValueError, match="delay must be a finite number of seconds"):
        RetryTask(delay=-1)


def test_delays_double_up_to_the_cap() -> None:
    retry = Retry(first_delay=1, max_delay=10)
    for attempt, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (10**9, 10)]:
        delays = [retry.delay(attempt, ValueError()) for _ in range(100)]
        assert longest / 2 <= min(delays) < max(delays) <= longest


def test_longest_delay_that_was_asked_for_counts() -> None:
    asked = [RetryTask(delay=3), RetryTask(delay=5), RetryTask()]
    assert Retry().delay(1, ExceptionGroup("all", asked)) == 5
