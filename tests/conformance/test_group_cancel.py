"""Groups that are cancelled, and what is waited for then, on both brokers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests._helpers.brokers import Swarm, until, within
from tests._helpers.handlers import WAIT, Staff
from trio_swarmtask import (
    ClosedError,
    Message,
    Result,
    Status,
    TaskCancelledError,
    TaskState,
    TaskTimeoutError,
)
from trio_swarmtask._dispatcher._future import is_resolved
from trio_swarmtask._dispatcher._group import GroupTasks
from trio_swarmtask._envelope import PAST_DEADLINE

if TYPE_CHECKING:
    from trio_swarmtask._abc import NewTask


@within(20)
async def test_exception_in_the_block_cancels_all(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="mine")):
            async with dispatcher.open_group() as group:
                future = await group.start("coder", WAIT)
                await until(lambda: staff.running)
                raise LookupError("mine")
        assert staff.running == 0
        assert future.state == TaskState.STOPPED


@within(20)
async def test_deadline_round_the_block(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with trio.move_on_after(1) as scope:
            async with dispatcher.open_group() as group:
                future = await group.start("coder", WAIT)
        assert scope.cancelled_caught
        assert staff.running == 0
        # Whoever was quicker: its dispatcher, or its worker, who knows the deadline.
        assert future.result.cancelled_by or future.result.past_deadline


@within(20)
async def test_cancel_scope_of_the_group(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            await group.start("coder", WAIT)
            await until(lambda: staff.running)
            group.cancel_scope.cancel()
        assert group.cancel_scope.cancelled_caught
        assert staff.running == 0


@within(20)
async def test_clean_up_is_waited_for(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            slow = Message(inputs={"do": "wait", "clean_up": "0.5"})
            futures = [await group.start("coder", slow) for _ in range(3)]
            await until(lambda: staff.running == 3)
            group.cancel_scope.cancel()
        assert staff.clean_ups == 3
        assert {future.state for future in futures} == {TaskState.STOPPED}


@within(20)
async def test_clean_up_that_outlasts_the_grace(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group(grace=1) as group:
            future = await group.start("coder", Message(inputs={"do": "wait", "clean_up": "3"}))
            await until(lambda: staff.running)
            group.cancel_scope.cancel()
        assert staff.clean_ups == 0
        assert future.state == TaskState.UNCONFIRMED
        assert future.result.cancelled_by


@within(15)
async def test_no_grace_at_all(swarm: Swarm) -> None:
    """Nobody's clean-up is waited for, but all are told: before anything else would tell them."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        await dispatcher.run("coder", Message())
        begun = trio.current_time()
        with trio.move_on_after(10):
            async with dispatcher.open_group(grace=0) as group:
                futures = [await group.start("coder", WAIT) for _ in range(3)]
                await until(lambda: staff.running == 3)
                group.cancel_scope.cancel()
        await until(lambda: staff.running == 0)
        assert trio.current_time() - begun < 5
        assert all(future.result.cancelled_by for future in futures)


@within(20)
async def test_run_that_is_cancelled_cancels_its_task(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            with trio.move_on_after(0.3) as scope:
                await group.run("coder", WAIT)
            assert scope.cancelled_caught
            assert staff.running == 0
            assert (await group.run("coder", Message())).outputs == "done"
        statistics = group.statistics()
        assert (statistics.succeeded, statistics.cancelled) == (1, 1)


@within(20)
async def test_start_that_is_cancelled_leaves_no_task(swarm: Swarm) -> None:
    """Whether it was stored by then or not."""
    async with swarm.dispatcher() as dispatcher, dispatcher.open_group() as group:
        for message in (Message(), Message(id="mine")):
            with trio.CancelScope() as scope:
                scope.cancel()
                await group.start("coder", message)
            assert scope.cancelled_caught
        assert await swarm.count_tasks() == 0
        assert group.statistics().cancelled == 2


@within(20)
async def test_child_that_is_cancelled_alone_is_no_failure(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            future = await group.start("coder", WAIT)
            await until(lambda: staff.running)
            await future.cancel()
            assert (await group.run("coder", Message())).outputs == "done"
        assert group.statistics().cancelled == 1


@within(20)
async def test_clean_up_of_a_child_that_is_cancelled_alone_is_waited_for(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            slow = Message(inputs={"do": "wait", "clean_up": "0.5"})
            future = await group.start("coder", slow)
            await until(lambda: staff.running)
            await future.cancel()
            assert staff.running == 1
        assert staff.clean_ups == 1
        assert future.state == TaskState.STOPPED


@within(20)
async def test_child_that_somebody_else_cancels_is_a_failure(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.dispatcher(name="rival") as rival:
        with pytest.RaisesGroup(TaskCancelledError) as raised:
            async with dispatcher.open_group() as group:
                future = await group.start("coder", Message())
                await (await rival.attach(future.id)).cancel()
        (failure,) = raised.value.exceptions
        assert type(failure) is TaskCancelledError
        assert failure.result.cancelled_by == "rival"


@within(10)
async def test_run_that_is_confirmed_is_not_stored_again(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two minutes the broker would take it for another task, and run it once more."""
    staff = Staff()
    stored: list[NewTask] = []

    async def store(task: NewTask, *, tried: bool = False) -> bool:
        stored.append(task)
        return True

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        await dispatcher.run("coder", Message())
        monkeypatch.setattr(dispatcher._core.outbox, "store", store)
        async with dispatcher.open_group() as group:
            group._tasks.nursery.start_soon(group.run, "coder", WAIT)
            await until(lambda: staff.running and dispatcher.statistics().started == 2)
            group.cancel_scope.cancel()
        assert staff.running == 0
    assert stored == []


@within(10)
async def test_child_that_is_begun_while_others_are_stopped(swarm: Swarm) -> None:
    """It is cancelled too; once that is over there can be no other."""
    staff = Staff()
    slow = Message(inputs={"do": "wait", "clean_up": "0.5"})
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            first = await group.start("coder", slow)
            await until(lambda: staff.running)
            group.cancel_scope.cancel()
            with trio.move_on_after(5, shield=True):
                await until(partial(is_resolved, first))
                second = await group.start("coder", WAIT)
                await until(group._tasks.left.is_set)
                with pytest.raises(ClosedError, match="this group was left, or cancelled"):
                    await group.start("coder", WAIT)
        assert (first.state, second.state) == (TaskState.STOPPED, TaskState.STOPPED)
        assert staff.running == 0


@within(10)
async def test_whoever_cancels_a_child_gives_up(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group, which has waited for that, does it then."""

    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with trio.open_nursery() as nursery, dispatcher.open_group() as group:
            future = await group.start("coder", WAIT)
            await until(lambda: staff.running)
            with monkeypatch.context() as patched:
                patched.setattr(GroupTasks, "_cancel", hang)
                child = group._tasks.all[future]
                nursery.start_soon(group._tasks._stop, child)  # noqa: ASYNC111 - it ends before the block
                await until(lambda: child.stopping is not None)
            group.cancel_scope.cancel()
            with trio.move_on_after(5, shield=True):
                await trio.testing.wait_all_tasks_blocked()
                assert group._tasks.all
                nursery.cancel_scope.cancel()
        assert future.state == TaskState.STOPPED
        assert staff.running == 0


@pytest.mark.parametrize("call", ["start", "run"])
@within(10)
async def test_timeout_by_the_deadline_of_another(swarm: Swarm, call: str) -> None:
    """The task was started before, by somebody who had less time: that is a failure like any."""
    theirs = Result(id="mine", status=Status.TIMEOUT, metadata={PAST_DEADLINE: "theirs"})
    async with swarm.dispatcher() as dispatcher:
        await swarm.store_result("mine", theirs.encode())
        with pytest.RaisesGroup(TaskTimeoutError):
            async with dispatcher.open_group() as group:
                await getattr(group, call)("coder", Message(id="mine"))
        async with dispatcher.map("coder", [Message(id="mine")]) as results:
            assert (await anext(results)).past_deadline
