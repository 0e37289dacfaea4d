"""Cancellations that a worker hears too early, too late, or not at all, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import Waiting
from trio_swarmtask import Message, Result, Status
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream._delivery import NATSDelivery
from trio_swarmtask._memory._queue import _MemoryDelivery
from trio_swarmtask._message import encode_cancelled
from trio_swarmtask._worker import _capability as _service

if TYPE_CHECKING:
    import pytest

    from trio_swarmtask._abc import Delivery


@within(20)
async def test_result_of_another_ends_a_handler_that_runs_on(swarm: Swarm) -> None:
    """Though nobody tells it: its worker looks, in each round of renewal."""
    handler = Waiting()
    swarm.configure(ack_wait=1)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        stored = Result(id=future.id, status=Status.SUCCESS, outputs="theirs", agent="w")
        async with swarm.outbox() as outbox:
            assert await outbox.store_result(future.id, stored.encode()) == stored.encode()
        await handler.cancelled.wait()
        await until(lambda: worker.statistics().in_flight == 0)
        assert worker.statistics().cancelled == 1
        assert (await future.wait()).outputs == "theirs"


@within(20)
async def test_push_that_is_ahead_of_its_task(swarm: Swarm) -> None:
    """The worker looks before it starts it: it may be a task that goes on, too."""
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        await worker.handle("tester", echo)
        cancelled = Result(id="t1", status=Status.FAILED, error="cancelled", agent="boss")
        async with swarm.outbox() as outbox:
            await outbox.withdraw("coder", "t1", 0, never_delayed=True)
            await outbox.withdraw("tester", "t2", 0, never_delayed=True)
            await outbox.store_result("t1", cancelled.encode())
            await outbox.store(NewTask("coder", "t1", Message(id="t1").encode()))
            await swarm.wait_until_empty()
            assert handler.calls == 0
        assert (await dispatcher.run("tester", Message(id="t2"))).status == Status.SUCCESS


@within(20)
async def test_cancelled_while_its_result_is_looked_for(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its arrival and its handler: it is neither started nor given back."""
    looking = trio.Event()

    def be_slow_once(kind: type[Delivery]) -> None:
        is_done = kind.is_done

        async def look(delivery: Delivery) -> bool:
            if not looking.is_set():
                looking.set()
                await trio.sleep_forever()
            return await is_done(delivery)

        monkeypatch.setattr(kind, "is_done", look)

    be_slow_once(NATSDelivery)
    be_slow_once(_MemoryDelivery)
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        async with swarm.outbox() as outbox:
            await outbox.withdraw(
                "coder", "t1", 0, never_delayed=True
            )  # so that it is looked for at all
        future = await dispatcher.start("coder", Message(id="t1"))
        await looking.wait()
        assert await dispatcher._core.futures.cancel(future, 10)
        await until(lambda: worker.statistics().in_flight == 0)
        assert worker.statistics().given_back == 0
        assert handler.calls == 0


@within(20)
async def test_push_that_comes_after_the_end(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canceller's result was first, and the handler had ended before it was told."""
    monkeypatch.setattr(_service, "_REMEMBERED", 1)
    go_on = trio.Event()

    async def wait(message: Message) -> None:
        await go_on.wait()

    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
        swarm.outbox() as outbox,
    ):
        await worker.handle("coder", wait)
        for name in ("t1", "t2"):
            await dispatcher.start("coder", Message(id=name))
        await until(lambda: worker.statistics().in_flight == 2)
        for name in ("t1", "t2"):
            await outbox.store_result(name, encode_cancelled(name, "boss"))
        go_on.set()
        await until(lambda: worker.statistics().superseded == 2)
        # One of them is remembered, and there is no room for more.
        answers = [
            await outbox.withdraw("coder", name, 2, never_delayed=True) for name in ("t1", "t2")
        ]
        assert sum(map(bool, answers)) == 1


@within(20)
async def test_pushes_ahead_of_their_tasks_fill_no_memory(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_service, "_EARLY", 1)
    async with swarm.worker() as worker, swarm.outbox() as outbox:
        await worker.handle("coder", echo)
        for name in ("t1", "t2"):
            await outbox.withdraw("coder", name, 0, never_delayed=True)
        await until(lambda: len(worker._services["coder"].remembered) == 1)  # type: ignore[union-attr,arg-type]  # it is there


# Attaching, forgetting
