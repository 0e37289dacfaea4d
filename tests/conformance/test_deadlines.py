"""Deadlines that travel with the tasks of a group, on both brokers."""

from __future__ import annotations

import math

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from trio_swarmtask import (
    Message,
    Result,
    Status,
    TaskTimeoutError,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask._envelope import PAST_DEADLINE


async def tell_time_left(message: Message) -> float:
    """A handler that gives the seconds that it has."""
    return trio.current_effective_deadline() - trio.current_time()


async def sleep(message: Message) -> None:
    await trio.sleep_forever()


def new_task(task_id: str, seconds: float) -> NewTask:
    data = Message(id=task_id, timeout=60).encode()
    return NewTask("coder", task_id, data, trio.current_time() + seconds)


def cut_off(task_id: str) -> bytes:
    """What a worker stores whose clock is a little fast."""
    metadata = {PAST_DEADLINE: "of whoever started the task"}
    return Result(id=task_id, status=Status.TIMEOUT, metadata=metadata).encode()


@within(20)
async def test_deadline_round_the_group_is_the_handlers(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("clerk", tell_time_left)
        with trio.fail_after(10):
            async with dispatcher.open_group() as group:
                started = await group.start("clerk", Message())
                own = await group.start("clerk", Message(timeout=3))
                with trio.fail_after(5):  # a start has done its part when it is stored
                    brief = await group.start("clerk", Message())
                    run = await group.run("clerk", Message())
                group.cancel_scope.deadline = trio.current_time() + 7
                shorter = await group.start("clerk", Message())
        left = [each.result.outputs for each in (started, own, brief, shorter)]
        assert [*left, run.outputs] == pytest.approx([10, 3, 10, 7, 5], abs=0.5)


@within(20)
async def test_group_that_outlives_the_deadline_if_asked(swarm: Swarm) -> None:
    """By a shield, as anywhere in Trio."""
    seen = []

    async def look(message: Message) -> None:
        seen.append(trio.current_effective_deadline())

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("clerk", look)
        with trio.fail_after(10), trio.CancelScope(shield=True):
            async with dispatcher.open_group() as group:
                await group.start("clerk", Message())
                await group.run("clerk", Message())
    assert seen == [math.inf, math.inf]


@within(20)
async def test_task_that_is_queued_past_its_deadline_is_not_started(swarm: Swarm) -> None:
    calls = []

    async def note(message: Message) -> None:
        calls.append(message.id)

    async with swarm.outbox() as outbox, swarm.dispatcher() as dispatcher:
        await outbox.store(new_task("late", 0.2))
        await outbox.store(new_task("early", 10))
        await trio.sleep(0.3)  # the deadline is what is tested
        async with swarm.worker() as worker:
            await worker.handle("coder", note)
            result = await (await dispatcher.attach("late")).wait()
            await (await dispatcher.attach("early")).wait()
            await until(lambda: worker.statistics().timed_out == 1)
    assert calls == ["early"]
    assert result.past_deadline
    assert result.error == "its deadline had passed before it was started"


@within(20)
async def test_handler_is_cut_off_at_the_deadline(swarm: Swarm) -> None:
    """Also where nobody is there any more to cancel it."""
    async with (
        swarm.outbox() as outbox,
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
    ):
        await worker.handle("coder", sleep)
        begun = trio.current_time()
        await outbox.store(new_task("t1", 0.4))
        result = await (await dispatcher.attach("t1")).wait()
        assert trio.current_time() - begun == pytest.approx(0.4, abs=0.3)
    assert result.past_deadline
    assert result.error.startswith("the handler did not end within 0.")


@within(20)
@pytest.mark.parametrize("on_failure", ["cancel", "collect"])
async def test_scope_round_the_group_catches_its_deadline(swarm: Swarm, on_failure: str) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", sleep)
        with trio.move_on_after(2) as scope:
            async with dispatcher.open_group(on_failure=on_failure) as group:  # type: ignore[arg-type]  # one of the two
                await group.start("coder", Message())
                await group.run("coder", Message())
        assert scope.cancelled_caught
        statistics = group.statistics()
        assert (statistics.cancelled, statistics.failed, statistics.outstanding) == (2, 0, 0)


@within(20)
@pytest.mark.parametrize("on_failure", ["cancel", "collect"])
async def test_worker_that_is_a_little_fast(swarm: Swarm, on_failure: str) -> None:
    """What it cut off is no failure: the scope is waited for, that of the group or of `run`."""
    async with swarm.dispatcher() as dispatcher:
        with trio.move_on_after(2) as scope:
            async with dispatcher.open_group(on_failure=on_failure) as group:  # type: ignore[arg-type]  # one of the two
                future = await group.start("coder", Message())
                with trio.move_on_after(0.5) as brief:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(group.run, "coder", Message(id="run"))
                        await swarm.store_result("run", cut_off("run"))
                assert brief.cancelled_caught
                await swarm.store_result(future.id, cut_off(future.id))
        assert scope.cancelled_caught
        assert future.result.past_deadline
        statistics = group.statistics()
        assert (statistics.cancelled, statistics.failed, statistics.outstanding) == (2, 0, 0)


@within(20)
async def test_scope_that_is_given_more_time(swarm: Swarm) -> None:
    """The deadline went out with the task: then its timeout is a failure like any other."""
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", sleep)
        with pytest.RaisesGroup(TaskTimeoutError), trio.fail_after(0.3) as scope:
            async with dispatcher.open_group() as group:
                await group.start("coder", Message())
                scope.deadline += 10
        with trio.fail_after(0.3) as scope:
            async with (
                dispatcher.open_group(on_failure="collect") as group,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(group.run, "coder", Message())
                await trio.lowlevel.checkpoint()
                scope.deadline += 10
        assert group.statistics().failed == 1


@within(20)
async def test_deadline_reaches_the_leaves(swarm: Swarm) -> None:
    """Groups three deep, and the one deadline is that of the root."""
    leaves = []

    async def relay(message: Message) -> None:
        below = message.inputs["below"]
        if not below:
            leaves.append(trio.current_effective_deadline() - trio.current_time())
            await trio.sleep_forever()
        async with dispatcher.open_group(parent=message) as group:
            for _ in range(2):
                await group.start("relay", Message(inputs={"below": below[1:]}))

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("relay", relay)
        with trio.move_on_after(2) as scope:
            async with dispatcher.open_group() as group:
                await group.start("relay", Message(inputs={"below": "xx"}))
        assert scope.cancelled_caught
        await worker.aclose()
    assert len(leaves) == 4
    assert 0.5 < min(leaves) <= max(leaves) <= 2, leaves
    assert await swarm.count_tasks() == 0


@within(20)
async def test_deadline_of_a_plain_run_stays_here(swarm: Swarm) -> None:
    """A task outlives the call that is cancelled, as ever."""
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        with trio.fail_after(10):
            result = await dispatcher.run("coder", Message(inputs={"a": "b"}))
        assert result.outputs == {"a": "b"}
        assert not result.past_deadline
