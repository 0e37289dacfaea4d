# A future by itself: resolved once, for good, for any number of waiters.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_swarmtask import (
    BrokerError,
    ClosedError,
    Future,
    Result,
    Status,
    SwarmTaskError,
    TaskState,
    UnsupportedVersionError,
)
from trio_swarmtask._dispatcher._future import unwatch, wake, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask._abc import Source

SUCCESS = Result(id="t-1", status=Status.SUCCESS, outputs={"a": [1]})
FAILED = Result(id="t-1", status=Status.FAILED, error="disk full")


class Nobody:
    """Holds a future of which nobody asks for more than its result: in place of `Futures`."""

    async def cancel(self, future: Future, grace: float) -> bool:
        pytest.fail("nobody has asked for it")

    def ask(self, future: Future) -> None:
        pass

    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        pytest.fail("nobody has asked for it")


@pytest.fixture
def future() -> Future:
    return Future._create("t-1", "coder", Nobody())


async def test_id_and_repr(future: Future) -> None:
    assert future.id == "t-1"
    assert repr(future) == "<Future of task t-1, waiting>"
    future._resolve(SUCCESS.encode())
    assert repr(future) == "<Future of task t-1, resolved>"
    await future.wait()
    assert repr(future) == "<Future of task t-1, resolved>"
    with pytest.raises(AttributeError):
        future.id = "t-2"


def test_no_public_constructor() -> None:
    """The error must not send anyone to a function that there is none of."""
    with pytest.raises(TypeError, match="Future has no public constructor") as info:
        Future("t-1")
    assert "open_future" not in str(info.value)


async def test_wait_after_the_result(future: Future) -> None:
    """It is there, however late somebody asks; and asking is a checkpoint each time."""
    future._resolve(SUCCESS.encode())
    results = []
    for _ in range(3):
        with assert_checkpoints():
            results.append(await future.wait())
    assert results[0] == SUCCESS
    assert all(result is results[0] for result in results)


async def test_wait_before_the_result(future: Future) -> None:
    """Any number of tasks get the one object."""
    results: list[Result] = []

    async def wait() -> None:
        results.append(await future.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert results == []
        future._resolve(SUCCESS.encode())
    assert len(results) == 5
    assert all(result is results[0] for result in results)
    assert results[0] == SUCCESS


async def test_wait_that_is_woken_too_early_goes_on(future: Future) -> None:
    """As by a `run` of the same task that goes another way."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(future.wait)
        await wait_all_tasks_blocked()
        wake(future)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        future._resolve(SUCCESS.encode())


async def test_wait_is_a_checkpoint(future: Future) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            await wait_all_tasks_blocked()
            future._resolve(SUCCESS.encode())

        with assert_checkpoints():
            await future.wait()


async def test_wait_cancelled_loses_nothing(future: Future) -> None:
    results: list[Result] = []

    async def wait() -> None:
        results.append(await future.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.move_on_after(0) as scope:
            await future.wait()
        assert scope.cancelled_caught
        future._resolve(SUCCESS.encode())
    assert results == [SUCCESS] == [await future.wait()]


async def test_wait_cancelled_with_the_result_there(future: Future) -> None:
    future._resolve(SUCCESS.encode())
    with trio.move_on_after(0) as scope:
        await future.wait()
    assert scope.cancelled_caught
    assert await future.wait() == SUCCESS


async def test_a_failure_is_a_result(future: Future) -> None:
    future._resolve(FAILED.encode())
    assert await future.wait() == FAILED


@pytest.mark.parametrize("waited", [False, True])
async def test_first_resolution_counts(future: Future, waited: bool) -> None:
    """Whether or not somebody has looked at it."""
    future._resolve(SUCCESS.encode())
    if waited:
        await future.wait()
    future._resolve(FAILED.encode())
    future._fail(ClosedError("too late"))
    assert await future.wait() == SUCCESS


@pytest.mark.parametrize("data", [b"", b"nope", b'{"version":1}', b"[" * 100_000, b"\xff"])
async def test_unreadable_result(future: Future, data: bytes) -> None:
    """An answer all the same: nobody is left waiting."""
    future._resolve(data)
    result = await future.wait()
    assert (result.id, result.status) == ("t-1", Status.FAILED)
    assert result.error.startswith("the stored result can't be read: not a result envelope: ")
    assert await future.wait() is result
    future._fail(ClosedError("too late"))
    assert await future.wait() is result


async def wait_for_error(future: Future, errors: list[SwarmTaskError]) -> None:
    with pytest.raises(SwarmTaskError) as info:
        await future.wait()
    errors.append(info.value)


async def test_result_of_a_future_version(future: Future) -> None:
    """Raised, for every waiter, and not taken back by what comes later."""
    errors: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_error, future, errors)
        nursery.start_soon(wait_for_error, future, errors)
        await wait_all_tasks_blocked()
        future._resolve(b'{"version":2}')
    future._resolve(SUCCESS.encode())
    await wait_for_error(future, errors)
    assert {type(error) for error in errors} == {UnsupportedVersionError}
    assert {str(error) for error in errors} == {
        "result envelope of version 2: this library reads up to 1; upgrade it"
    }
    assert len(set(map(id, errors))) == 3
    assert future.state == TaskState.ENDED  # there is one


@pytest.mark.parametrize("error", [ClosedError("it was closed"), BrokerError("lost h for good")])
async def test_fail(future: Future, error: SwarmTaskError) -> None:
    """Each waiter gets one of its own: an exception collects the tracebacks of all who raise it."""
    errors: list[SwarmTaskError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_error, future, errors)
        await wait_all_tasks_blocked()
        future._fail(error)
    await wait_for_error(future, errors)
    with assert_checkpoints():
        await wait_for_error(future, errors)
    for raised in errors:
        assert type(raised) is type(error)
        assert raised.args == error.args
        assert raised is not error
        assert raised.__cause__ is error
    assert len(set(map(id, errors))) == 3
    assert error.__traceback__ is None
    assert future.state == TaskState.OUTSTANDING


async def test_fail_then_resolve(future: Future) -> None:
    """After the dispatcher was closed, a result that still comes changes nothing."""
    future._fail(ClosedError("it was closed"))
    future._resolve(SUCCESS.encode())
    future._fail(BrokerError("lost"))
    with pytest.raises(ClosedError, match="it was closed"):
        await future.wait()


async def test_watchers_are_told_one_by_one(
    future: Future, caplog: pytest.LogCaptureFixture
) -> None:
    """One that raises keeps no other from hearing; one that is taken away hears nothing."""
    told: list[str] = []

    def stumble(_: Future) -> None:
        told.append("first")
        unwatch(future, left)
        raise LookupError("no place to put it")

    def left(_: Future) -> None:
        told.append("one that has left")

    for watcher in (stumble, left, lambda _: told.append("last")):
        watch(future, watcher)
    future._resolve(SUCCESS.encode())
    future._resolve(SUCCESS.encode())
    assert told == ["first", "last"]
    assert await future.wait() == SUCCESS
    assert "a watcher of task t-1 has failed" in caplog.text
    assert "no place to put it" in caplog.text
