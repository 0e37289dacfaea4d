# The user's handler: which objects can be one, and what its value or failure becomes.

from __future__ import annotations

import functools
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import pytest

from trio_swarmtask import InvalidMessageError, Message, Result, Status
from trio_swarmtask._worker._handler import check_handler, describe, failed_result, fill_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


async def handler(message: Message) -> str:
    return message.id


async def generator(message: Message) -> AsyncIterator[str]:  # noqa: ASYNC900 - to be refused
    yield message.id


def blocking(message: Message) -> str:
    return message.id


@functools.wraps(handler)
def wrapper(message: Message) -> Awaitable[str]:
    return handler(message)


class Coder:
    def __init__(self, style: str = "") -> None:
        self.style = style

    async def __call__(self, message: Message) -> str:
        return message.id

    async def method(self, message: Message) -> str:
        return message.id

    @classmethod
    async def of_the_class(cls, message: Message) -> str:
        return message.id

    @staticmethod
    async def static(message: Message) -> str:
        return message.id


class Blocking:
    def __call__(self, message: Message) -> str:
        return message.id


labelled = functools.partial(Coder())
labelled.label = "a"  # else Python makes one partial of the two

GOOD: Final[dict[str, Any]] = {
    "function": handler,
    "partial": functools.partial(handler),
    "partial_of_partial": functools.partial(labelled),
    "instance": Coder(),
    "partial_of_instance": functools.partial(Coder()),
    "method": Coder().method,
    "classmethod": Coder.of_the_class,
    "staticmethod": Coder.static,
    "mock": mock.AsyncMock(),
}
BAD: Final[dict[str, Any]] = {
    "none": None,
    "text": "handler",
    "function": blocking,
    "lambda": lambda message: handler(message),
    "wrapper": wrapper,
    "generator": generator,
    "instance": Blocking(),
    "class": Coder,  # calling it makes an instance
    "partial_of_class": functools.partial(Coder),
    "partial": functools.partial(blocking),
    "cached": functools.lru_cache(handler),
}


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_check_handler_good(good: object) -> None:
    check_handler(good)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_check_handler_bad(bad: object) -> None:
    """The error says what it got, and what to write instead."""
    wrong = re.escape(f"must be an async function, not {bad!r}")
    with pytest.raises(TypeError, match=wrong + r".*'async def handler\(message\)'.*run_sync"):
        check_handler(bad)


def test_check_handler_coroutine() -> None:
    """The commonest slip. Nobody will await it, so it must not warn later (warnings are errors)."""
    coroutine = handler(Message())
    with pytest.raises(
        TypeError, match=r"<coroutine .*handler.*> .*pass the async function itself"
    ):
        check_handler(coroutine)
    with pytest.raises(RuntimeError, match="already awaited"):
        coroutine.send(None)


def test_check_handler_shows_a_short_value() -> None:
    with pytest.raises(TypeError, match=r"not 'x{100,160}… \(10002 characters\)"):
        check_handler("x" * 10_000)


# Failures


class NoText(Exception):
    pass


class BrokenText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text today")


class ExitingText(Exception):
    def __str__(self) -> str:
        sys.exit(3)


class NotText(Exception):
    def __str__(self) -> str:
        return 5


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (ValueError("disk full"), "disk full"),
        (NoText(), "NoText"),
        (NoText(""), "NoText"),
        (BrokenText(), "BrokenText, whose text raised RuntimeError"),
        (ExitingText(), "ExitingText, whose text raised SystemExit"),
        (NotText(), "NotText, whose text raised TypeError"),
        (KeyError("a"), "'a'"),
        (ExceptionGroup("unsaid", [ValueError("one")]), "one"),
        (
            ExceptionGroup(
                "a", [ValueError("1"), ExceptionGroup("b", [NoText(), ValueError("2")])]
            ),
            "1; NoText; 2",
        ),
        (BaseExceptionGroup("a", [KeyboardInterrupt()]), "KeyboardInterrupt"),
    ],
)
def test_describe(exc: BaseException, text: str) -> None:
    assert describe(exc) == text


@pytest.mark.parametrize("length", [0, 1, 8000])
def test_failed_result(length: int) -> None:
    assert failed_result("é" * length) == Result(status=Status.FAILED, error="é" * length)


@pytest.mark.parametrize("length", [8001, 5_000_000])
def test_failed_result_cut(length: int) -> None:
    """A failure must never be too large to be stored."""
    result = failed_result("\0" * length)  # the widest in JSON: six bytes each
    assert result.error == "\0" * 8000 + f"… ({length} characters)"
    assert len(result.encode()) < 64 * 1024


def test_failed_result_with_lone_surrogates() -> None:
    """`os.fsdecode` makes such text of a file's name."""
    result = failed_result("no file b\udcff\ud800")
    assert result.error == r"no file b\udcff\ud800"
    assert Result.decode(result.encode()) == result
    assert failed_result("\ud800" * 5000).error == r"\ud800" * 1333 + r"\u… (30000 characters)"


# The blanks

FILLING: Final = {
    "task_id": "t-1",
    "correlation_id": "c-1",
    "agent": "worker-1",
    "attempt": 3,
    "seconds": 1.2345,
}


def fill(result: Result) -> Result:
    return fill_result(result, **FILLING)


def test_fill_result_blank() -> None:
    before = datetime.now(UTC)
    result = fill(Result(status=Status.SUCCESS, outputs=5, metadata={"a": "b"}))
    assert result.completed_at is not None
    assert before <= result.completed_at <= datetime.now(UTC)
    assert result == Result(
        id="t-1",
        correlation_id="c-1",
        status=Status.SUCCESS,
        outputs=5,
        agent="worker-1",
        attempt=3,
        duration=1234,
        completed_at=result.completed_at,
        metadata={"a": "b"},
    )


def test_fill_result_full() -> None:
    """What the handler said stands; its own struct is not changed."""
    full = Result(
        id="t-1",
        correlation_id="c-9",
        status=Status.FAILED,
        error="disk full",
        agent="me",
        attempt=9,
        duration=9,
        completed_at=datetime(2026, 4, 19, tzinfo=UTC),
    )
    assert fill(full) == full


def test_fill_result_leaves_the_original() -> None:
    blank = Result(status=Status.SUCCESS)
    fill(blank)
    assert blank == Result(status=Status.SUCCESS)


def test_fill_result_of_another_task() -> None:
    wrong = r"task 't-1' returned a Result of task 't-2'; leave its id empty"
    with pytest.raises(InvalidMessageError, match=wrong):
        fill(Result(status=Status.SUCCESS, id="t-2"))


@pytest.mark.parametrize("task_id", [None, 0, 5, b"t-1", 10**5000], ids=type)
def test_fill_result_with_an_id_of_a_wrong_type(task_id: object) -> None:
    """As any other wrong ID: the task fails, the worker lives on."""
    with pytest.raises(InvalidMessageError, match="returned a Result of task"):
        fill(Result(status=Status.SUCCESS, id=task_id))


@pytest.mark.parametrize(
    "field", ["correlation_id", "agent", "attempt", "duration", "completed_at", "metadata"]
)
@pytest.mark.parametrize("make", [object, lambda: None], ids=["object", "none"])
def test_fill_result_with_a_wrong_field(field: str, make: Callable[[], object]) -> None:
    """It is not taken for a blank, and `encode` says what is wrong with it."""
    filled = fill(Result(**{"status": Status.SUCCESS, field: (value := make())}))
    if field != "completed_at" or value is not None:
        assert getattr(filled, field) is value
