"""Groups: a nursery whose tasks run elsewhere, on both brokers."""

from __future__ import annotations

import gc

import pytest
import trio

from tests._helpers.brokers import MemorySwarm, Swarm, echo, until, within
from tests._helpers.handlers import FAIL, WAIT, Staff
from trio_swarmtask import (
    ClosedError,
    Future,
    InvalidCapabilityError,
    InvalidMessageError,
    Message,
    Result,
    Status,
    TaskCancelledError,
    TaskFailedError,
    TaskGroup,
    TaskState,
    TaskTimeoutError,
)


@within(20)
async def test_leaving_the_block_waits_for_all(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker, dispatcher.open_group() as group:
            futures = [await group.start("coder", Message()) for _ in range(5)]
            with pytest.raises(RuntimeError, match=f"task {futures[0].id} has no result yet"):
                _ = futures[0].result
            assert futures[0].state == TaskState.OUTSTANDING
            assert "5 outstanding" in repr(group)
            await worker.handle("coder", Staff())
            assert (await group.run("coder", Message())).outputs == "done"
        assert [future.result.outputs for future in futures] == ["done"] * 5
        assert {future.state for future in futures} == {TaskState.ENDED}
        statistics = group.statistics()
        assert (statistics.started, statistics.succeeded, statistics.outstanding) == (6, 6, 0)
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_empty_group(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, dispatcher.open_group():
        pass


@within(20)
async def test_failure_cancels_the_others(swarm: Swarm) -> None:
    """Those that run, those that wait, and the block; and it alone is raised."""
    staff = Staff()
    async with swarm.worker() as gone:
        await gone.handle("nobody", staff)  # so that a server knows what it has delivered
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with pytest.RaisesGroup(TaskFailedError) as raised:
            async with dispatcher.open_group() as group:
                running = [await group.start("coder", WAIT) for _ in range(3)]
                waiting = [await group.start("nobody", Message()) for _ in range(3)]
                await until(lambda: staff.running == 3)
                failing = await group.start("coder", FAIL)
                await trio.sleep_forever()
        (failure,) = raised.value.exceptions
        assert type(failure) is TaskFailedError
        assert failure.result == failing.result
        assert staff.running == 0
        assert await swarm.count_tasks() == 0
        for future in (*running, *waiting):
            assert future.state == TaskState.STOPPED
            with pytest.raises(TaskCancelledError):
                future.result.raise_for_status()
        statistics = group.statistics()
        assert (statistics.failed, statistics.cancelled) == (1, 6)


@within(20)
async def test_timeout_is_a_failure(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", Staff())
        with pytest.RaisesGroup(TaskTimeoutError):
            async with dispatcher.open_group() as group:
                await group.start("coder", Message(inputs={"do": "wait"}, timeout=1))


@within(20)
async def test_failure_of_what_the_block_runs(swarm: Swarm) -> None:
    """`run` does not return it: the block is cancelled there."""
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", Staff())
        with pytest.RaisesGroup(TaskFailedError):
            async with dispatcher.open_group() as group:
                await group.run("coder", FAIL)
                pytest.fail("it went on")


@within(20)
async def test_block_and_child_fail_together(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", Staff())
        with pytest.RaisesGroup(TaskFailedError, LookupError):
            async with dispatcher.open_group() as group:
                try:
                    await group.run("coder", FAIL)
                finally:
                    raise LookupError("mine")


@within(20)
async def test_collecting_group_raises_nothing(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", Staff())
        async with dispatcher.open_group(on_failure="collect") as group:
            failed = await group.run("coder", FAIL)
            future = await group.start("coder", FAIL)
            good = await group.start("coder", Message())
        assert failed.status == future.result.status == Status.FAILED
        assert good.result.status == Status.SUCCESS


@within(20)
async def test_group_in_a_handler_makes_a_tree(swarm: Swarm) -> None:
    """Three deep; cancelling the top reaches every leaf."""
    staff = Staff()
    seen: dict[str, Message] = {}

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:

        async def branch(message: Message) -> None:
            seen[message.inputs["level"]] = message
            level = int(message.inputs["level"]) + 1
            capability = "branch" if level < 3 else "leaf"
            async with dispatcher.open_group(parent=message) as group:
                for _ in range(2):
                    below = Message(inputs={"level": f"{level}", "do": "wait"})
                    await group.start(capability, below)

        await worker.handle("branch", branch)
        await worker.handle("leaf", staff)
        async with dispatcher.open_group() as group:
            top = await group.start("branch", Message(inputs={"level": "1"}))
            await until(lambda: staff.running == 4)
            group.cancel_scope.cancel()
        assert staff.running == 0
        assert await swarm.count_tasks() == 0
    root = seen["1"].root
    assert root
    assert seen["1"].parent == seen["1"].correlation_id == root
    assert (seen["2"].parent, seen["2"].root) == (top.id, root)
    leaf = staff.messages[0]
    assert (leaf.root, leaf.correlation_id) == (root, root)
    assert leaf.parent != top.id


@within(20)
async def test_ids_that_are_given_are_kept(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        parent = Message(id="p", correlation_id="c")
        async with dispatcher.open_group(parent=parent) as group:
            await group.run("coder", Message())
            await group.run("coder", Message(parent="x", root="y", correlation_id="z"))
        first, second = staff.messages
        assert (first.parent, first.root, first.correlation_id) == ("p", "p", "c")
        assert (second.parent, second.root, second.correlation_id) == ("x", "y", "z")


@within(20)
async def test_same_task_twice_in_a_group(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        async with dispatcher.open_group() as group:
            one = await group.start("coder", Message(id="mine"))
            assert await group.start("coder", Message(id="mine")) is one
            await worker.handle("coder", echo)
        assert group.statistics().started == group.statistics().succeeded == 1


@within(20)
async def test_task_that_is_done_already(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        stored = Result(id="mine", status=Status.SUCCESS, outputs="before")
        await swarm.store_result("mine", stored.encode())
        async with dispatcher.open_group() as group:
            future = await group.start("coder", Message(id="mine"))
            assert (await group.run("coder", Message(id="mine"))).outputs == "before"
        assert future.result.outputs == "before"


@within(20)
async def test_start_that_fails_is_the_blocks_affair(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        async with dispatcher.open_group() as group:
            with pytest.raises(InvalidCapabilityError):
                await group.start("a coder", Message())
            with pytest.raises(ValueError, match="is not a Message"):
                await group.run("coder", "text")  # type: ignore[arg-type]  # wrong on purpose
        assert group.statistics().started == 0
        with pytest.raises(ClosedError, match="this group was left, or cancelled"):
            await group.start("coder", Message())
        with pytest.raises(TypeError, match="grace must be a number of seconds"):
            dispatcher.open_group(grace="soon")  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(ValueError, match="must be 'cancel' or 'collect', not 'ignore'"):
            dispatcher.open_group(on_failure="ignore")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ClosedError):
        dispatcher.open_group()


@within(20)
async def test_task_that_is_too_large_is_the_blocks_affair(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        async with dispatcher.open_group() as group:
            large = Message(inputs={"text": "x" * (2 << 20)})
            for send in (group.start, group.run):
                with pytest.raises(ValueError, match="larger than"):
                    await send("coder", large)
        assert group.statistics().outstanding == dispatcher.statistics().outstanding == 0


@within(20)
async def test_same_task_that_is_too_large_the_second_time(swarm: Swarm) -> None:
    """The first is in the queue all the same, and in the group."""
    async with swarm.dispatcher() as dispatcher, dispatcher.open_group() as group:
        await group.start("coder", Message(id="twice"))
        with pytest.raises(InvalidMessageError, match="larger than"):
            await group.start("coder", Message(id="twice", inputs={"big": "x" * 2_000_000}))
        assert group.statistics().outstanding == 1
        group.cancel_scope.cancel()
    assert await swarm.count_tasks() == 0


@within(20)
async def test_dispatcher_that_is_closed_fails_the_group(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.RaisesGroup(ClosedError):
            async with dispatcher.open_group() as group:
                await group.start("coder", Message())
                await dispatcher.aclose()


@within(60)
async def test_groups_leave_nothing(swarm: Swarm) -> None:
    """No task, no subscription, no memory: of 10,000, where that takes no time."""
    lanes, each = 10, 1000 if isinstance(swarm, MemorySwarm) else 50

    def count_left() -> int:
        gc.collect()
        return sum(type(one) in (Future, TaskGroup) for one in gc.get_objects())

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)

        async def many(number: int) -> None:
            for _ in range(number):
                async with dispatcher.open_group() as group:
                    await group.start("coder", Message())

        await many(1)
        tasks = trio.lowlevel.current_statistics().tasks_living
        left = count_left()
        async with trio.open_nursery() as nursery:
            for _ in range(lanes):
                nursery.start_soon(many, each)
        assert dispatcher.statistics().outstanding == 0
        assert dispatcher.statistics().resolved == lanes * each + 1
        assert count_left() == left
        # The lanes that handlers run in are kept for the next ones.
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + lanes
        await swarm.wait_until_empty()
