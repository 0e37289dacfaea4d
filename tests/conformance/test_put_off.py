"""One ID that was sent twice, while its first task is still in hand, on both brokers.

The broker forgets an ID after two minutes, and takes it for a new task then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Message, Result, Status
from trio_swarmtask._abc import NewTask
from trio_swarmtask._worker._capability import Service

if TYPE_CHECKING:
    from trio_swarmtask._abc import Delivery

ACK_WAIT = 1.0
AGAIN = Message(id="t1", inputs={"sent": "again"})


class Arrivals:
    """Notes what arrives at every worker: the numbers of the deliveries, by what they carry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.numbers: dict[bytes, list[int]] = {}
        receive = Service.delivered

        def note(service: Service, delivery: Delivery) -> None:
            self.numbers.setdefault(delivery.data, []).append(delivery.number)
            receive(service, delivery)

        monkeypatch.setattr(Service, "delivered", note)

    def last(self, data: bytes) -> int:
        return max(self.numbers.get(data, [0]))


@within(30)
async def test_task_that_is_sent_again_is_put_off(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no failure, however often: it does not make a dead letter of what succeeds."""
    swarm.configure(ack_wait=ACK_WAIT)
    arrivals = Arrivals(monkeypatch)
    started, go_on = trio.Event(), trio.Event()
    runs = 0

    async def work(message: Message) -> str:
        nonlocal runs
        runs += 1
        started.set()
        await go_on.wait()
        return "done"

    async with swarm.dispatcher() as dispatcher, swarm.worker(max_deliveries=2) as worker:
        await worker.handle("coder", work)
        future = await dispatcher.start("coder", Message(id="t1"))
        await started.wait()
        await swarm.store_again("coder", "t1", AGAIN.encode())
        await until(lambda: arrivals.last(AGAIN.encode()) == 5)
        go_on.set()
        assert (await future.wait()).outputs == "done"
        await swarm.wait_until_empty()
        assert (runs, worker.statistics().dead_letters) == (1, 0)
    assert await swarm.dead_letters() == {}


@within(30)
async def test_both_are_kept_apart_though_they_carry_the_same(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of the one that runs is renewed: it does not come again beside the other one."""
    swarm.configure(ack_wait=ACK_WAIT)
    arrivals = Arrivals(monkeypatch)
    go_on = trio.Event()

    async def work(message: Message) -> str:
        await go_on.wait()
        return "done"

    data = AGAIN.encode()
    async with swarm.worker(max_deliveries=2) as worker, swarm.outbox() as outbox:
        await worker.handle("coder", work)
        await outbox.store(NewTask("coder", "t1", data))
        await until(lambda: arrivals.last(data) == 1)
        await swarm.store_again("coder", "t1", data)
        await until(lambda: arrivals.last(data) == 4)
        assert arrivals.numbers[data] == [1, 1, 2, 3, 4]
        go_on.set()
        await swarm.wait_until_empty()
        assert worker.statistics().succeeded == 1
    assert await swarm.dead_letters() == {}


@within(30)
async def test_other_worker_that_gets_what_was_put_off(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may run it beside the first; but it does not make it a dead letter."""
    swarm.configure(ack_wait=ACK_WAIT)
    arrivals = Arrivals(monkeypatch)
    started = trio.Event()

    async def stick(message: Message) -> None:
        started.set()
        await trio.sleep_forever()

    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker() as a,
        swarm.worker(max_deliveries=2) as b,
    ):
        await a.handle("coder", stick)
        future = await dispatcher.start("coder", Message(id="t1"))
        await started.wait()
        await swarm.store_again("coder", "t1", AGAIN.encode())
        await until(lambda: arrivals.last(AGAIN.encode()) == 4)
        (service,) = a._standing()
        await service.intake.stop()
        await b.handle("coder", echo)
        result = await future.wait()
        assert (result.status, result.agent) == (Status.SUCCESS, b.name)
        await swarm.wait_until_empty()
    assert await swarm.dead_letters() == {}


@pytest.mark.parametrize("data", [AGAIN.encode(), b'{"version":2,"id":"t1"}'])
@within(30)
async def test_result_is_looked_for_before_a_task_is_buried(swarm: Swarm, data: bytes) -> None:
    """Its workers have died, one after another, and the last one had stored the result.

    So it is with one that is left for newer workers: it has ended.
    """
    swarm.configure(ack_wait=ACK_WAIT)
    send, receive = trio.open_memory_channel[object](10)
    result = Result(id="t1", status=Status.SUCCESS, outputs="done").encode()
    async with swarm.outbox() as outbox:
        await outbox.store(NewTask("coder", "t1", data))
        async with (
            swarm.open() as broker,
            broker.open_intake("coder", each(send.send_nowait)) as intake,
        ):
            intake.ask(3)
            for _ in range(3):
                await receive.receive()
        await outbox.store_result("t1", result)
        async with swarm.worker(max_deliveries=1) as worker:
            await worker.handle("coder", echo)
            await swarm.wait_until_empty()
            assert worker.statistics().dead_letters == 0
        assert await outbox.fetch("t1") == result
    assert await swarm.dead_letters() == {}
