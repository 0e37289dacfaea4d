# The errors that users see: what else each of them is, and what it says.

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Final

import pytest
import trio

import trio_swarmtask
from trio_swarmtask import (
    AuthenticationError,
    BrokerError,
    ClosedError,
    InvalidCapabilityError,
    InvalidMessageError,
    Result,
    RetryTask,
    Status,
    SwarmTaskError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
    UnsupportedVersionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PARENTS: Final[dict[type[SwarmTaskError], tuple[type[BaseException], ...]]] = {
    SwarmTaskError: (Exception,),
    ClosedError: (SwarmTaskError, trio.ClosedResourceError),
    InvalidMessageError: (SwarmTaskError, ValueError),
    InvalidCapabilityError: (SwarmTaskError, ValueError),
    UnsupportedVersionError: (SwarmTaskError, ValueError),
    TaskFailedError: (SwarmTaskError,),
    TaskCancelledError: (TaskFailedError,),
    TaskTimeoutError: (SwarmTaskError,),
    BrokerError: (SwarmTaskError, ConnectionError),
    AuthenticationError: (BrokerError,),
}
RESULT_ERRORS: Final = {TaskFailedError: "failed at", TaskTimeoutError: "ran out of time at"}


@pytest.mark.parametrize("error", PARENTS)
def test_error_parents(error: type[SwarmTaskError]) -> None:
    """Exactly those: code that catches trio's or Python's class catches ours, and no more."""
    assert error.__bases__ == PARENTS[error]


def test_every_public_error_is_tested() -> None:
    public = {
        value
        for value in vars(trio_swarmtask).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    # RetryTask is for handlers to raise: nobody gets to see it.
    assert public == {*PARENTS, RetryTask}


@pytest.mark.parametrize(
    "error",
    [error for error in PARENTS if error not in (*RESULT_ERRORS, TaskCancelledError)],
)
def test_error_text(error: type[SwarmTaskError]) -> None:
    """One argument, the text; an OSError with two would show an errno."""
    assert str(error("it is closed")) == "it is closed"
    assert error("it is closed").args == ("it is closed",)


@pytest.mark.parametrize("error", RESULT_ERRORS)
def test_result_error_text(error: type[TaskFailedError | TaskTimeoutError]) -> None:
    result = Result(status=Status.FAILED, id="t-1", agent="worker-1", error="disk full")
    assert str(error(result)) == f"task t-1 {RESULT_ERRORS[error]} worker-1: disk full"
    assert error(result).result is result


@pytest.mark.parametrize("error", RESULT_ERRORS)
def test_result_error_text_without_agent(error: type[TaskFailedError | TaskTimeoutError]) -> None:
    result = Result(status=Status.FAILED, id="t-1", error="disk full")
    assert str(error(result)) == f"task t-1 {RESULT_ERRORS[error]} nobody: disk full"


def test_cancelled_text() -> None:
    result = Result(status=Status.FAILED, id="t-1", metadata={"swarm-cancelled-by": "boss"})
    assert result.cancelled_by == "boss"
    assert str(TaskCancelledError(result)) == "task t-1 was cancelled by boss"
    success = Result(status=Status.SUCCESS, metadata={"swarm-cancelled-by": "boss"})
    assert success.cancelled_by == ""


@pytest.mark.parametrize("error", RESULT_ERRORS)
@pytest.mark.parametrize("make", [copy.copy, lambda exc: pickle.loads(pickle.dumps(exc))])
def test_result_error_can_be_copied(
    make: Callable[[Exception], TaskFailedError], error: type[TaskFailedError | TaskTimeoutError]
) -> None:
    """Debuggers and process pools do so."""
    original = error(Result(status=Status.FAILED, id="t-1", error="disk full"))
    copied = make(original)
    assert type(copied) is error
    assert (str(copied), copied.result) == (str(original), original.result)
