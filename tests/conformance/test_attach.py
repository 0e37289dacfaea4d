"""Following tasks of other programs, and letting go of one's own, on both brokers."""

from __future__ import annotations

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import (
    ClosedError,
    InvalidMessageError,
    Message,
)


@within(20)
async def test_attach_to_a_task_of_another(swarm: Swarm) -> None:
    async with swarm.dispatcher() as one, swarm.dispatcher() as two, swarm.worker() as worker:
        future = await one.start("coder", Message(inputs={"a": "b"}))
        early = await two.attach(future.id)
        assert early.id == future.id
        await worker.handle("coder", echo)
        assert (await early.wait()).outputs == {"a": "b"}
        late = await two.attach(future.id)
        assert await late.wait() == await future.wait()
        assert two.statistics().outstanding == 0


@within(20)
async def test_attach_to_what_can_not_be(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(InvalidMessageError, match="a task"):
            await dispatcher.attach("a task")
        with trio.CancelScope() as scope:
            scope.cancel()
            await dispatcher.attach("t1")
        assert dispatcher.statistics().outstanding == 0
    with pytest.raises(ClosedError):
        await dispatcher.attach("t1")


@within(20)
async def test_forgotten_task_goes_on(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message(id="mine"))
        assert await dispatcher.attach("mine") is future
        dispatcher.forget(future)
        assert dispatcher.statistics().outstanding == 1
        dispatcher.forget(future)
        assert dispatcher.statistics().outstanding == 0
        dispatcher.forget(future)  # nothing is left to forget
        with pytest.raises(ClosedError, match="task mine was forgotten"):
            await future.wait()
        await worker.handle("coder", echo)
        await swarm.wait_until_empty()
        assert worker.statistics().succeeded == 1
