"""Leases: who has a task, for how long, and what comes of one that was lost, on both brokers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Message, Result, Status
from trio_swarmtask._abc import Delivery, Intake, NewTask
from trio_swarmtask._worker._capability import Service
from trio_swarmtask._worker._job import Cut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ACK_WAIT = 1.0


@asynccontextmanager
async def taking(swarm: Swarm) -> AsyncIterator[tuple[Intake, trio.MemoryReceiveChannel[Delivery]]]:
    """A worker's side without a worker: it renews nothing."""
    send, receive = trio.open_memory_channel[Delivery](10)
    async with (
        swarm.open() as broker,
        broker.open_intake("coder", each(send.send_nowait)) as intake,
    ):
        yield intake, receive


@within(30)
async def test_silent_workers_task_goes_to_another(swarm: Swarm) -> None:
    swarm.configure(ack_wait=ACK_WAIT)
    async with swarm.dispatcher() as dispatcher, taking(swarm) as (intake, deliveries):
        future = await dispatcher.start("coder", Message())
        intake.ask(1)
        dead = await deliveries.receive()
        assert (dead.task_id, dead.number) == (future.id, 1)
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            result = await future.wait()
            assert (result.status, result.attempt) == (Status.SUCCESS, 2)
            # The first result stored is the one, whoever comes late.
            late = Result(id=future.id, status=Status.FAILED, error="late")
            assert not await dead.complete(late.encode())
        stored = await swarm.stored_result(future.id)
        assert stored is not None
        assert Result.decode(stored) == result


@within(30)
async def test_long_handler_is_delivered_once(swarm: Swarm) -> None:
    swarm.configure(ack_wait=ACK_WAIT)
    runs = 0

    async def long(message: Message) -> None:
        nonlocal runs
        runs += 1
        await trio.sleep(4 * ACK_WAIT)

    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker() as a,
        swarm.worker() as b,
    ):
        await a.handle("coder", long)
        await b.handle("coder", long)
        result = await dispatcher.run("coder", Message())
    assert (result.attempt, runs) == (1, 1)


@within(30)
async def test_lease_that_cannot_be_renewed_ends_the_handler(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm.configure(ack_wait=ACK_WAIT)
    began, ended = trio.Event(), trio.Event()

    async def zombie_at_first(message: Message) -> None:
        if not began.is_set():
            began.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", zombie_at_first)
        future = await dispatcher.start("coder", Message())
        await began.wait()
        (job,) = worker._services["coder"].jobs.values()
        monkeypatch.setattr(type(job.delivery), "renew", lambda delivery: None)
        await ended.wait()
        assert (await future.wait()).attempt > 1
        assert worker.statistics().leases_lost == 1
        assert worker.statistics().given_back == 0


@within(30)
async def test_task_that_is_done_is_not_run_again(swarm: Swarm) -> None:
    swarm.configure(ack_wait=ACK_WAIT)
    runs = 0

    async def count(message: Message) -> None:
        nonlocal runs
        runs += 1

    async with swarm.dispatcher() as dispatcher, taking(swarm) as (intake, deliveries):
        future = await dispatcher.start("coder", Message())
        intake.ask(1)
        await deliveries.receive()  # its worker stores the result, and dies before the ack
        theirs = Result(id=future.id, status=Status.SUCCESS, outputs="theirs")
        await swarm.store_result(future.id, theirs.encode())
        async with swarm.worker() as worker:
            await worker.handle("coder", count)
            await swarm.wait_until_empty()
        assert (await future.wait()).outputs == "theirs"
        assert runs == 0


@within(30)
async def test_late_result_ends_a_task_that_waits_again(swarm: Swarm) -> None:
    """There is no fencing: whoever ends a task ends it for everyone."""
    swarm.configure(ack_wait=ACK_WAIT)
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(1)
        late = await deliveries.receive()
        await trio.sleep(1.5 * ACK_WAIT)  # its lease lapses, and nobody asks for it
        assert await late.complete(Result(id="t1", status=Status.SUCCESS).encode())
        await swarm.wait_until_empty()
        await outbox.store(NewTask("coder", "t2", b"data"))
        intake.ask(1)
        assert (await deliveries.receive()).task_id == "t2"


@within(30)
async def test_given_back_with_delay_comes_later(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        assert await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(3)
        first = await deliveries.receive()
        await first.give_back(0.5)
        at = trio.current_time()
        again = await deliveries.receive()
        assert trio.current_time() - at > 0.4
        assert (again.number, again.data) == (2, b"data")
        assert (await again.count_given_back(), await again.count_retries()) == (1, 0)
        await again.retry(0)
        third = await deliveries.receive()
        assert third.number == 3
        assert (await third.count_given_back(), await third.count_retries()) == (1, 1)


@within(30)
async def test_delivery_that_is_over_changes_nothing(swarm: Swarm) -> None:
    """Its task has ended, or is somebody else's by now."""
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(2)
        delivery = await deliveries.receive()
        await delivery.complete(b"{}")
        await delivery.retry(0)
        await delivery.give_back()
        await swarm.wait_until_empty()
        with pytest.raises(trio.WouldBlock):
            deliveries.receive_nowait()


@within(30)
async def test_stopped_intake_takes_nothing(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(1)
        await deliveries.receive()
        await intake.stop()
        intake.ask(5)
        await outbox.store(NewTask("coder", "t2", b"data"))
        await intake.stop()
        async with taking(swarm) as (other, others):
            other.ask(5)
            assert (await others.receive()).task_id == "t2"
        with pytest.raises(trio.WouldBlock):
            deliveries.receive_nowait()


@within(30)
async def test_no_more_arrive_than_asked_for(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        for number in range(5):
            await outbox.store(NewTask("coder", f"t{number}", b"data"))
        intake.ask(2)
        first, second = await deliveries.receive(), await deliveries.receive()
        async with taking(swarm) as (other, others):
            other.ask(9)
            rest = [(await others.receive()).task_id for _ in range(3)]
        assert sorted([first.task_id, second.task_id, *rest]) == [f"t{n}" for n in range(5)]


@within(30)
async def test_lost_task_that_comes_back_waits_for_its_handler_to_end(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled and cleans up: the same task does not begin beside it, at this worker."""
    swarm.configure(ack_wait=ACK_WAIT)
    arrivals: list[int] = []
    receive = Service.delivered
    runs, cleaned_up = 0, trio.Event()

    def note(service: Service, delivery: Delivery) -> None:
        arrivals.append(delivery.number)
        receive(service, delivery)

    async def lose_it(message: Message) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            (job,) = worker._services["coder"].jobs.values()
            job.cut_short(Cut.LOST)
            with trio.CancelScope(shield=True):
                await until(lambda: len(arrivals) > 1)
                assert runs == 1
                cleaned_up.set()
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Service, "delivered", note)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", lose_it)
        result = await dispatcher.run("coder", Message())
        assert cleaned_up.is_set()
        assert (runs, result.attempt) == (2, 3)
        await swarm.wait_until_empty()
