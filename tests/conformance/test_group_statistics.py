"""The counts of a group add up at any moment, on both brokers."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import FAIL, WAIT, Staff
from trio_swarmtask import (
    InvalidMessageError,
    Message,
    Result,
    Status,
    TaskFailedError,
    TaskGroup,
    TaskTimeoutError,
)
from trio_swarmtask._envelope import PAST_DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_swarmtask import GroupStatistics

MINE = msgspec.structs.replace(WAIT, id="mine")
TOO_LARGE = Message(id="mine", inputs={"text": "x" * (2 << 20)})
# What a worker stores whose clock is a little fast.
CUT_OFF = Result(id="mine", status=Status.TIMEOUT, metadata={PAST_DEADLINE: "theirs"})


def adds_up(counts: GroupStatistics) -> bool:
    ended = counts.succeeded + counts.failed + counts.cancelled
    return counts.started == counts.outstanding + ended and min(counts_of(counts)) >= 0


def counts_of(counts: GroupStatistics) -> tuple[int, int, int, int, int]:
    """Started, outstanding, succeeded, failed, cancelled."""
    return (
        counts.started,
        counts.outstanding,
        counts.succeeded,
        counts.failed,
        counts.cancelled,
    )


@contextmanager
def adding_up(group: TaskGroup) -> Iterator[None]:
    """Look after every step of any Trio task."""
    wrong: list[GroupStatistics] = []

    class Auditor(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            if not adds_up(group.statistics()):
                wrong.append(group.statistics())

    auditor = Auditor()
    trio.lowlevel.add_instrument(auditor)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(auditor)
    assert wrong == []


@within(20)
async def test_each_task_is_in_one_count(swarm: Swarm) -> None:
    """Those that end in each way, those that are refused, and those that are started twice."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group(on_failure="collect") as group:
            with adding_up(group):
                waiting = await group.start("coder", WAIT)
                alone = await group.start("coder", WAIT)
                assert await group.start("coder", MINE) is await group.start("coder", MINE)
                assert (await group.run("coder", FAIL)).status == Status.FAILED
                assert (await group.run("coder", Message())).status == Status.SUCCESS
                for call in (group.start, group.run):
                    with pytest.raises(InvalidMessageError, match="larger than"):
                        await call("coder", msgspec.structs.replace(TOO_LARGE, id=""))
                with pytest.raises(InvalidMessageError):
                    await group.start("coder", Message(id="no ID"))  # nothing was begun
                await until(lambda: staff.running == 3)
                await alone.cancel()
                assert counts_of(group.statistics()) == (7, 2, 1, 3, 1)
                group.cancel_scope.cancel()
        assert waiting.result.cancelled_by
        assert counts_of(group.statistics()) == (7, 0, 1, 3, 3)


@pytest.mark.parametrize("on_failure", ["cancel", "collect"])
@within(20)
async def test_one_id_is_run_twice_and_cut_off_by_a_deadline_that_is_extended(
    swarm: Swarm, on_failure: str
) -> None:
    """That is one failure."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with suppress(BaseExceptionGroup), trio.fail_after(1) as scope:
            async with dispatcher.open_group(on_failure=on_failure) as group:  # type: ignore[arg-type]  # one of the two
                with adding_up(group):
                    async with trio.open_nursery() as nursery:
                        for _ in range(2):
                            nursery.start_soon(group.run, "coder", MINE)
                        await until(lambda: staff.running)
                        scope.deadline += 10
        assert counts_of(group.statistics()) == (1, 0, 0, 1, 0)


@within(20)
async def test_one_id_is_run_twice_and_one_call_has_more_time(swarm: Swarm) -> None:
    """For that one it is a failure like any other, whatever the other one's scope catches."""
    async with swarm.dispatcher() as dispatcher:
        with pytest.RaisesGroup(TaskTimeoutError):
            async with dispatcher.open_group() as group:
                with adding_up(group):
                    async with trio.open_nursery() as nursery:

                        async def hurry() -> None:
                            with trio.move_on_after(2):
                                await group.run("coder", MINE)

                        nursery.start_soon(hurry)
                        await until(lambda: "mine" in dispatcher._core.futures.waiting)
                        nursery.start_soon(group.run, "coder", MINE)
                        future = dispatcher._core.futures.waiting["mine"]
                        await until(lambda: future._holders == 3)  # the group is one
                        await swarm.store_result("mine", CUT_OFF.encode())
        assert counts_of(group.statistics()) == (1, 0, 0, 1, 0)


@within(20)
async def test_run_that_fails_beside_one_that_is_cut_off(swarm: Swarm) -> None:
    """It waits for the task no more; the other one does, whose scope catches the deadline."""
    async with swarm.dispatcher() as dispatcher:
        async with dispatcher.open_group() as group:
            with adding_up(group):
                async with trio.open_nursery() as nursery:

                    async def hurry() -> None:
                        with trio.move_on_after(1) as scope:
                            await group.run("coder", MINE)
                        assert scope.cancelled_caught

                    nursery.start_soon(hurry)
                    await until(lambda: dispatcher.statistics().started == 1)
                    with pytest.raises(InvalidMessageError, match="larger than"):
                        await group.run("coder", TOO_LARGE)
                    await swarm.store_result("mine", CUT_OFF.encode())
                await trio.sleep(0.2)  # in which nothing comes of that
        assert counts_of(group.statistics()) == (1, 0, 0, 0, 1)


@within(20)
async def test_one_id_is_started_twice_and_refused_once(swarm: Swarm) -> None:
    """The one that is stored is the group's."""
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker, dispatcher.open_group() as group:
            with adding_up(group):

                async def refused() -> None:
                    with pytest.raises(InvalidMessageError, match="larger than"):
                        await group.start("coder", TOO_LARGE)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(refused)
                    nursery.start_soon(group.start, "coder", Message(id="mine"))
                assert counts_of(group.statistics()) == (1, 1, 0, 0, 0)
                await worker.handle("coder", echo)
        assert counts_of(group.statistics()) == (1, 0, 1, 0, 0)


@within(20)
async def test_one_id_is_started_twice_and_refused_twice(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, dispatcher.open_group() as group:
        with adding_up(group):

            async def refused() -> None:
                with pytest.raises(InvalidMessageError, match="larger than"):
                    await group.start("coder", TOO_LARGE)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused)
                nursery.start_soon(refused)
        assert counts_of(group.statistics()) == (1, 0, 0, 1, 0)


@within(20)
async def test_failure_leaves_counts_that_add_up(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with pytest.RaisesGroup(TaskFailedError):
            async with dispatcher.open_group() as group:
                with adding_up(group):
                    await group.start("coder", WAIT)
                    await group.start("nobody", Message())
                    await until(lambda: staff.running)
                    await group.run("coder", FAIL)
        assert counts_of(group.statistics()) == (3, 0, 0, 1, 2)
