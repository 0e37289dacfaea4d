"""Following a task: how the iteration over its updates begins and ends, on both brokers."""

from __future__ import annotations

import pytest
import trio
from trio.testing import assert_checkpoints

from tests._helpers.brokers import Swarm, echo, until, within
from tests.conformance.test_progress import Steps, collect, notes
from trio_swarmtask import (
    ClosedError,
    Future,
    Message,
    Status,
    Updates,
)
from trio_swarmtask._record import encode
from trio_swarmtask.results import (
    Result,
    ResultStatus,
)


@within(10)
async def test_for_without_a_block(swarm: Swarm) -> None:
    steps = Steps()
    heard: list[str] = []

    async def follow(future: Future, updates: Updates) -> None:
        async for update in updates:
            heard.extend(notes([update]))
        assert future.result.status == Status.SUCCESS

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message())
        updates = future.updates()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, future, updates)
            await until(lambda: updates._entered)
            steps.go.set()
    assert heard == ["step 0", "step 1", "step 2"]
    assert swarm.count_followers() == 0


@within(10)
async def test_everybody_who_follows_hears_all(swarm: Swarm) -> None:
    """Through the same future, one that is attached, and one of a group."""
    steps = Steps()
    async with (
        swarm.worker() as worker,
        swarm.dispatcher() as dispatcher,
        swarm.dispatcher() as other,
        dispatcher.open_group() as group,
    ):
        await worker.handle("coder", steps)
        future = await group.start("coder", Message())
        attached = await other.attach(future.id)
        async with (
            future.updates() as one,
            future.updates() as two,
            attached.updates() as three,
        ):
            steps.go.set()
            for updates in (one, two, three):
                assert notes(await collect(updates)) == ["step 0", "step 1", "step 2"]


@within(10)
async def test_slow_reader_misses_the_oldest(swarm: Swarm) -> None:
    steps = Steps(100)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as updates:
            steps.go.set()
            await future.wait()
            heard = notes(await collect(updates))
    assert heard == [f"step {number}" for number in range(84, 100)]


@within(10)
async def test_what_is_no_update_is_passed_over(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps(1)
    record = Result(task_id="t-1", status=ResultStatus.PENDING)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message(id="t-1"))
        async with future.updates() as updates:
            for _ in range(2):
                await swarm.report("t-1", b"garbage")
            await swarm.report("t-1", encode(Result(task_id="t-2", status=ResultStatus.PENDING)))
            await swarm.report("t-1", encode(Result(task_id="t-1", status=ResultStatus.FAILED)))
            await swarm.report("t-2", encode(Result(task_id="t-2", status=ResultStatus.PENDING)))
            await swarm.report("t-1", encode(record))
            assert await anext(updates) == record
            steps.go.set()
            assert notes(await collect(updates)) == ["step 0"]
    (logged,) = [text for text in caplog.messages if "progress of task" in text]
    assert logged.startswith("skipped what came as progress of task t-1: not a result")


# When it ends


@within(10)
async def test_updates_of_a_task_that_has_ended(swarm: Swarm) -> None:
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", echo)
        future = await dispatcher.start("coder", Message())
        await future.wait()
        assert await collect(future.updates()) == []
        async with future.updates() as updates:
            assert await collect(updates) == []


@pytest.mark.parametrize("how", ["close", "forget"])
@within(10)
async def test_updates_of_a_future_that_fails(swarm: Swarm, how: str) -> None:
    """The iteration ends; `wait` says why."""
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("nobody", Message())
        updates = future.updates()

        async def follow() -> None:
            assert await collect(updates) == []
            with pytest.raises(ClosedError):
                await future.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await until(lambda: updates._entered)
            if how == "close":
                await dispatcher.aclose()
            else:
                dispatcher.forget(future)
        assert swarm.count_followers() == 0


@within(10)
async def test_updates_that_are_closed_early(swarm: Swarm) -> None:
    """By leaving the block, or by `aclose`; others go on."""
    steps = Steps()
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as left:
            pass
        assert swarm.count_followers() == 0
        async with future.updates() as closed, future.updates() as other:
            with assert_checkpoints():
                await closed.aclose()
            await closed.aclose()
            assert swarm.count_followers() == 1
            steps.go.set()
            assert len(await collect(other)) == 3
        assert await collect(left) == await collect(closed) == []


@within(10)
async def test_iteration_that_is_dropped_half_way(swarm: Swarm) -> None:
    """It takes no more than until the end of its task."""
    steps = Steps(2)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message())
        updates = future.updates()

        async def read_one() -> None:
            async for _ in updates:
                break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_one)
            await until(lambda: updates._entered)
            steps.go.set()
        await future.wait()
        assert swarm.count_followers() == 0
        assert future._watchers == ()


@within(10)
async def test_begin_that_is_cancelled(swarm: Swarm) -> None:
    """Nothing is left of it, and it can be tried again."""
    steps = Steps()
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message())
        updates = future.updates()
        with trio.move_on_after(0) as scope:
            await anext(updates)
        assert scope.cancelled_caught
        assert swarm.count_followers() == 0
        assert future._watchers == ()
        async with updates:
            steps.go.set()
            assert len(await collect(updates)) == 3


@within(10)
async def test_several_readers_of_one_iteration(swarm: Swarm) -> None:
    """They begin at once, and each update goes to one of them."""
    steps = Steps()
    heard: list[str] = []

    async def read(updates: Updates) -> None:
        heard.extend(notes(await collect(updates)))

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message())
        updates = future.updates()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, updates)
            nursery.start_soon(read, updates)
            await until(lambda: updates._entered)
            steps.go.set()
    assert sorted(heard) == ["step 0", "step 1", "step 2"]


@within(10)
async def test_task_that_ends_as_the_iteration_begins(swarm: Swarm) -> None:
    """In the same moment: nothing is left behind."""
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("nobody", Message())
        updates = future.updates()
        begin = updates._source.__aenter__

        async def end_and_begin() -> None:
            future._fail(ClosedError("just now"))
            with trio.CancelScope(shield=True):
                await begin()

        updates._source.__aenter__ = end_and_begin  # type: ignore[method-assign]  # for this one
        assert await collect(updates) == []
        assert swarm.count_followers() == 0
