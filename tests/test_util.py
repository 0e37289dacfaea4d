# The nursery that does not show, and classes without a public constructor.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_swarmtask._util import (
    NoPublicConstructor,
    find_interrupt,
    in_task,
    is_for_trio,
    leaves,
    open_flat_nursery,
)
from trio_swarmtask._worker._runner import JobRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    AsyncFn = Callable[[], Awaitable[None]]


async def fail(exc: BaseException) -> NoReturn:
    raise exc


async def fail_on_cancellation(exc: BaseException) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise exc


async def two_sleepers() -> None:
    """Cancelled, its nursery may leave with a group of cancellations."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.sleep_forever()


class NoticeError(ExceptionGroup):  # noqa: ASYNC126 - as users write them
    """A group of the user's own class, that Trio can't make a copy of."""


# The block's own exception


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("own"),
        KeyboardInterrupt,
        lambda: SystemExit(3),
        lambda: ExceptionGroup("own", [ValueError("1")]),
        lambda: ExceptionGroup("own", [ValueError("1"), ExceptionGroup("", [KeyError("2")])]),
        lambda: NoticeError("own", [ValueError("1")]),
    ],
    ids=["error", "interrupt", "exit", "group", "deep_group", "class_of_group"],
)
@pytest.mark.parametrize("busy", [False, True])
async def test_own_exception_comes_out_as_raised(
    make: Callable[[], BaseException], busy: bool
) -> None:
    """The very object, without a cause or context that the user did not give it."""
    own = make()
    with pytest.raises(type(own)) as info:
        async with open_flat_nursery() as nursery:
            if busy:
                nursery.start_soon(two_sleepers)
            raise own
    assert info.value is own
    assert own.__context__ is own.__cause__ is None


async def test_own_exception_keeps_its_context() -> None:
    own, first, cause = ValueError("own"), KeyError("first"), OSError("cause")
    with pytest.raises(ValueError, match="own"):
        async with open_flat_nursery():
            try:
                raise first
            except KeyError:
                raise own from cause
    assert own.__context__ is first
    assert own.__cause__ is cause


async def test_own_exception_while_another_is_handled() -> None:
    own, first = ValueError("own"), KeyError("first")
    with pytest.raises(ValueError, match="own"):
        try:
            raise first
        except KeyError:
            async with open_flat_nursery():  # noqa: ASYNC120 - it is about the context
                raise own from None
    assert own.__context__ is first  # as without the nursery


async def test_own_error_wins_over_background() -> None:
    own, background = ValueError("own"), KeyError("background")
    with pytest.raises(ValueError, match="own") as info:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_on_cancellation, background)
            await wait_all_tasks_blocked()
            raise own
    assert info.value is own
    assert own.__context__ is None


async def test_what_does_not_leave_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """In a note of what does, and in the log, once; but not that others were cancelled."""
    own = ValueError("own")
    with pytest.raises(ValueError, match="own") as raised:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_on_cancellation, KeyError("other"))
            nursery.start_soon(fail_on_cancellation, KeyError("other"))
            nursery.start_soon(fail_on_cancellation, ValueError("own"))  # as it says itself
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            raise own
    assert raised.value.__notes__ == ["a background task has failed as well: KeyError: 'other'"]
    [record] = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


async def test_nothing_is_told_where_all_leave(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.RaisesGroup(KeyError, KeyError) as raised:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_on_cancellation, KeyError("1"))
            nursery.start_soon(fail, KeyError("2"))
            await trio.sleep_forever()
    assert not hasattr(raised.value, "__notes__")
    assert not caplog.records


async def test_own_group_wins_over_background() -> None:
    own = ExceptionGroup("own", [ValueError("1")])
    with pytest.RaisesGroup(ValueError, match="own") as info:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_on_cancellation, KeyError("background"))
            await wait_all_tasks_blocked()
            raise own
    assert info.value is own


async def test_no_exception() -> None:
    """The block waits for its tasks."""
    done = trio.Event()

    async def work() -> None:
        await wait_all_tasks_blocked()
        done.set()

    async with open_flat_nursery() as nursery:
        nursery.start_soon(work)
    assert done.is_set()


async def test_nursery_cancelled() -> None:
    async with open_flat_nursery() as nursery:
        nursery.start_soon(two_sleepers)
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()
    assert nursery.cancel_scope.cancelled_caught


# Background errors


async def test_background_error_is_bare() -> None:
    background = ValueError("background")
    with pytest.raises(ValueError, match="background") as info:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, background)
            await trio.sleep_forever()
    assert info.value is background
    assert background.__context__ is None  # not the cancellation that it caused in the block


async def test_background_error_keeps_its_context() -> None:
    first, background = KeyError("first"), ValueError("background")

    async def fail_while_handling() -> None:
        try:
            raise first
        except KeyError:
            raise background  # noqa: B904 - it is about the context

    with pytest.raises(ValueError, match="background"):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_while_handling)
            await trio.sleep_forever()
    assert background.__context__ is first


async def test_background_error_after_the_block() -> None:
    with pytest.raises(ValueError, match="background"):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, ValueError("background"))


async def test_background_error_while_the_block_waits_in_a_nursery() -> None:
    """The group of cancellations that the block's nursery may raise is none of its errors."""
    with pytest.raises(ValueError, match="background"):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, ValueError("background"))
            await two_sleepers()


async def test_several_background_errors() -> None:
    with pytest.RaisesGroup(KeyError, ValueError):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, ValueError("1"))
            nursery.start_soon(fail, KeyError("2"))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_background_interrupt_comes_first(kind: type[BaseException]) -> None:
    """Bare, before the block's own error and other tasks'."""
    interrupt = kind()
    with pytest.raises(kind) as info:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_on_cancellation, ValueError("background"))
            nursery.start_soon(fail, ExceptionGroup("", [KeyError()]))
            nursery.start_soon(fail, BaseExceptionGroup("", [KeyError(), interrupt]))
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("own")
    assert info.value is interrupt


# Cancellation from outside


@pytest.mark.parametrize("block", [trio.sleep_forever, two_sleepers])
@pytest.mark.parametrize("background", [None, trio.sleep_forever, two_sleepers])
async def test_cancelled_is_caught_outside(block: AsyncFn, background: AsyncFn | None) -> None:
    with trio.CancelScope() as scope:
        async with open_flat_nursery() as nursery:
            if background is not None:
                nursery.start_soon(background)
            await wait_all_tasks_blocked()
            scope.cancel()
            await block()
    assert scope.cancelled_caught


@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize("background", [trio.sleep_forever, two_sleepers])
async def test_cancelled_stays_a_plain_cancellation(waiting: bool, background: AsyncFn) -> None:
    """Whoever looks at it on the way sees no group that we made, be the block waiting or over."""
    passing: BaseException | None = None
    with trio.CancelScope() as scope:
        try:
            async with open_flat_nursery() as nursery:
                nursery.start_soon(background)
                nursery.start_soon(background)
                await wait_all_tasks_blocked()
                scope.cancel()
                if waiting:
                    await trio.sleep_forever()
        except BaseException as exc:
            passing = exc
            raise
    assert scope.cancelled_caught
    assert type(passing) is trio.Cancelled


@pytest.mark.parametrize("block", [trio.sleep_forever, two_sleepers])
async def test_background_error_in_a_cancellation_is_not_lost(block: AsyncFn) -> None:
    with pytest.raises(ValueError, match="background"), trio.CancelScope() as scope:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_on_cancellation, ValueError("background"))
            await wait_all_tasks_blocked()
            scope.cancel()
            await block()


# The small functions


def test_leaves() -> None:
    one, two, three = ValueError("1"), KeyError("2"), OSError("3")
    assert list(leaves(one)) == [one]
    group = ExceptionGroup("", [one, ExceptionGroup("", [ExceptionGroup("", [two]), three])])
    assert list(leaves(group)) == [one, two, three]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_find_interrupt(interrupt: BaseException) -> None:
    assert find_interrupt(interrupt) is interrupt
    deep = BaseExceptionGroup("", [BaseExceptionGroup("", [ValueError(), interrupt])])
    assert find_interrupt(BaseExceptionGroup("", [KeyError(), deep])) is interrupt


@pytest.mark.parametrize("exc", [ValueError(), GeneratorExit(), ExceptionGroup("", [KeyError()])])
def test_find_interrupt_none(exc: BaseException) -> None:
    assert find_interrupt(exc) is None


class Thing(metaclass=NoPublicConstructor):
    def __init__(self, number: int, *, name: str) -> None:
        self.number, self.name = number, name


def test_no_public_constructor() -> None:
    with pytest.raises(TypeError, match=r"Thing has no public constructor"):
        Thing(1, name="a")
    thing = Thing._create(1, name="a")
    assert (type(thing), thing.number, thing.name) == (Thing, 1, "a")


def test_coroutine_that_is_thrown_away() -> None:
    """Its ``GeneratorExit`` is Python's: no handler has raised it."""
    assert not in_task()
    assert is_for_trio(GeneratorExit())
    nobody: Any = None
    assert not JobRunner.ended_by(nobody, nobody, GeneratorExit(), timed_out=False)


async def test_generator_exit_in_a_task() -> None:
    assert in_task()
    assert not is_for_trio(GeneratorExit())
    assert is_for_trio(BaseExceptionGroup("a", [ValueError(), KeyboardInterrupt()]))
