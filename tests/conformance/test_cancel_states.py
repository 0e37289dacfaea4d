"""What is known of a cancelled task's handler where no worker says so, on both brokers.

It has stopped for sure if nobody was ever handed the task; if somebody was, a worker has to say it.
That nobody was is known of tasks that are younger than the first worker of their capability.
"""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from tests._helpers.handlers import Waiting
from trio_swarmtask import Message, TaskState
from trio_swarmtask._dispatcher._future import is_resolved
from trio_swarmtask._jetstream import _cancel


@within(20)
async def test_id_that_nobody_has_started(swarm: Swarm) -> None:
    """It may be one whose task is out of the queue, and at a worker."""
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.attach("unheard-of")
        assert not await dispatcher._core.futures.cancel(future, 0)
        assert (await future.wait()).cancelled_by
        assert future.state == TaskState.UNCONFIRMED


@within(20)
async def test_task_that_was_given_back(swarm: Swarm) -> None:
    """Its worker is gone, which alone could say that its handler has ended."""
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            future = await dispatcher.start("coder", Message())
            await handler.started.wait()
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        assert not await dispatcher._core.futures.cancel(future, 10)
        assert future.state == TaskState.UNCONFIRMED


@within(20)
async def test_second_canceller_who_is_not_told_of_the_clean_up(swarm: Swarm) -> None:
    """The task is in no queue any more; its handler runs all the same."""
    handler = Waiting(clean_up=3)
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.dispatcher() as rival,
        swarm.worker() as worker,
    ):
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        await future.cancel()
        other = await rival.attach(future.id)
        assert not await rival._core.futures.cancel(other, 0.2)
        assert (future.state, other.state) == (TaskState.UNCONFIRMED, TaskState.UNCONFIRMED)
        assert handler.running == 1


@within(20)
async def test_state_after_the_dispatcher_was_closed(swarm: Swarm) -> None:
    """Nobody can be asked any more whether the handler has ended."""
    async with swarm.dispatcher() as dispatcher, swarm.dispatcher(name="boss") as boss:
        future = await dispatcher.start("coder", Message())
        await (await boss.attach(future.id)).cancel()
        await until(partial(is_resolved, future))
        await dispatcher.aclose()
    assert future.state == TaskState.UNCONFIRMED


@within(20)
async def test_task_that_nobody_has_ever_handled(swarm: Swarm) -> None:
    """Nobody is waited for, and nothing is claimed: it may have been another's before."""
    async with swarm.dispatcher() as dispatcher:
        begun = trio.current_time()
        async with dispatcher.open_group() as group:
            future = await group.start("coder", Message())
            group.cancel_scope.cancel()
        assert trio.current_time() - begun < 1.5
    assert future.state == TaskState.UNCONFIRMED


@within(20)
async def test_tasks_that_are_older_than_their_first_worker(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What knows who was handed a task is younger than they are, and no worker has them."""
    monkeypatch.setattr(_cancel, "ANSWER_SECONDS", 0.2)
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        async with dispatcher.open_group() as group:
            running, older = [await group.start("coder", Message()) for _ in range(2)]
            await worker.handle("coder", handler, max_in_flight=1)
            await handler.started.wait()
            younger = await group.start("coder", Message())
            # These first: the end of the one that runs leaves a place, and one of them may get it.
            await older.cancel()
            await younger.cancel()
            group.cancel_scope.cancel()
        assert handler.calls == 1
    states = [future.state for future in (running, older, younger)]
    assert states == [TaskState.STOPPED, TaskState.UNCONFIRMED, TaskState.STOPPED]


@within(20)
async def test_cancelling_once_more(swarm: Swarm) -> None:
    """It is in no queue any more, and no worker has it: nobody says anything, nor is it needed."""
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler, max_in_flight=1)
        running = await dispatcher.start("coder", Message())
        await handler.started.wait()
        future = await dispatcher.start("coder", Message())
        await future.cancel()
        assert future.state == TaskState.STOPPED
        await future.cancel()
        assert future.state == TaskState.STOPPED
        await running.cancel()


@within(20)
async def test_copy_that_runs_where_another_worker_had_one(swarm: Swarm) -> None:
    """That one remembers that its own has ended, and the end of the other is waited for."""
    quick, slow, other_task = Waiting(), Waiting(clean_up=0.5), Waiting()
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.dispatcher() as rival,
        swarm.worker() as first,
        swarm.worker() as second,
        trio.open_nursery() as nursery,
    ):
        await first.handle("coder", quick, max_in_flight=1)
        future = await dispatcher.start("coder", Message(id="mine"))
        await quick.started.wait()
        assert await dispatcher._core.futures.cancel(future, 10)
        await first.handle("tester", other_task)  # so that it stays, and takes no more
        await dispatcher.start("tester", Message())
        await other_task.started.wait()
        nursery.start_soon(first.aclose)
        await first._closing.pulls_ended.wait()
        await swarm.store_again("coder", "mine", Message(id="mine").encode())
        await second.handle("coder", slow)
        await slow.started.wait()
        held = await rival.attach("mine")
        assert await rival._core.futures.cancel(held, 10)
        assert slow.clean_ups == 1
        nursery.cancel_scope.cancel()
