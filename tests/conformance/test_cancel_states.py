"""What is known of a cancelled task's handler where no worker says so, on both brokers.

It has stopped for sure if nobody was ever handed the task; if somebody was, a worker has to say it.
"""

from __future__ import annotations

import pytest
import trio
from staff import Waiting
from swarm import Swarm, until, within

from trio_swarmtask import Message, TaskState


@within(20)
async def test_id_that_nobody_has_started(swarm: Swarm) -> None:
    """It may be one whose task is out of the queue, and at a worker."""
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.attach("unheard-of")
        assert not await dispatcher._futures.cancel(future, 0)
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
        assert not await dispatcher._futures.cancel(future, 10)
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
        assert not await rival._futures.cancel(other, 0.2)
        assert (future.state, other.state) == (TaskState.UNCONFIRMED, TaskState.UNCONFIRMED)
        assert handler.running == 1


@within(20)
async def test_state_after_the_dispatcher_was_closed(swarm: Swarm) -> None:
    """Nobody can be asked any more whether the handler has ended."""
    async with swarm.dispatcher() as dispatcher, swarm.dispatcher(name="boss") as boss:
        future = await dispatcher.start("coder", Message())
        await (await boss.attach(future.id)).cancel()
        await until(future._is_resolved)
        await dispatcher.aclose()
    assert future.state == TaskState.UNCONFIRMED
