"""Corners of a worker that no broker brings about at will."""

from __future__ import annotations

import contextvars
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from tests._helpers.brokers import echo, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import (
    BrokerError,
    ClosedError,
    MemoryBroker,
    Message,
    Status,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._abc import Broker
from trio_swarmtask._memory._queue import _MemoryDelivery
from trio_swarmtask._statistics import Tally
from trio_swarmtask._worker._job import Job
from trio_swarmtask._worker._lanes import Lanes
from trio_swarmtask._worker._retry import NO_RETRY
from trio_swarmtask._worker._runner import JobRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_swarmtask._abc import Delivery, DeliveryListener, Intake, Outbox, ResultListener


async def stick(message: Message) -> None:
    await trio.sleep_forever()


async def test_broker_that_refuses_before_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the worker's block, and the task goes back."""

    async def refuse(delivery: Delivery) -> bool:
        raise BrokerError("not permitted to look")

    monkeypatch.setattr(_MemoryDelivery, "is_done", refuse)
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher:
        future = await dispatcher.start("coder", Message())
        async with open_worker(broker) as worker:
            await worker.handle("coder", stick)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        with pytest.raises(BrokerError, match="not permitted to look"):
            async with open_worker(broker) as worker:
                await worker.handle("coder", echo)
                await trio.sleep_forever()
        monkeypatch.undo()
        async with open_worker(broker) as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS


async def test_give_back_that_fails_is_told_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(delivery: Delivery, delay: float = 0, *, in_order: bool = True) -> None:
        raise BrokerError("gone")

    monkeypatch.setattr(_MemoryDelivery, "give_back", fail)
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher, open_worker(broker) as worker:
        await worker.handle("coder", stick)
        await dispatcher.start("coder", Message())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.TooSlowError):
            await worker.shutdown(0)
        assert worker.statistics().given_back == 0
    assert "could not give back task" in caplog.text


async def test_lanes_that_are_idle_end_with_their_nursery() -> None:
    class Runner:
        tally = Tally()

        async def handle(self, handler: object, job: Job) -> None:
            pass

        def settle_soon(self, job: Job, on_settled: Callable[[Job], None]) -> bool:
            return False

        async def settle(self, job: Job) -> None:
            pass

    runner: Any = Runner()
    settled: list[Job] = []
    async with trio.open_nursery() as nursery:
        context = contextvars.copy_context()
        lanes = Lanes(runner, echo, nursery, context, 1, lambda: None, settled.append)
        for _ in range(2):
            lanes.start(Job(None, NO_RETRY))  # type: ignore[arg-type]  # a stand-in
        await trio.testing.wait_all_tasks_blocked()
        assert len(lanes._idle) == 1  # no more than may run at once
        nursery.cancel_scope.cancel()
    assert lanes._idle == []
    assert len(settled) == 2


class SlowBroker(Broker):
    """Its consumers never stand."""

    def open_outbox(self, key: str, make_listener: Callable[[Outbox], ResultListener]) -> NoReturn:
        raise NotImplementedError

    @asynccontextmanager
    async def open_intake(
        self, capability: str, make_listener: Callable[[Intake], DeliveryListener]
    ) -> AsyncIterator[Intake]:
        await trio.sleep_forever()
        yield  # type: ignore[misc]  # it makes this a generator

    def open_bucket(self, name: str, ttl: float) -> NoReturn:
        raise NotImplementedError


@within(5)
async def test_handle_that_waits_ends_when_the_worker_closes() -> None:
    async def handle() -> None:
        with pytest.raises(ClosedError, match="the worker is closed"):
            await worker.handle("coder", echo)

    async with trio.open_nursery() as nursery, open_worker(SlowBroker()) as worker:
        nursery.start_soon(handle)
        await trio.testing.wait_all_tasks_blocked()
        await worker.aclose()
    assert worker.statistics().capabilities == 0


def test_lease_lost_between_the_rounds_of_renewal() -> None:
    """One lapses, the other one lives on; a lost one is left alone while it cleans up."""

    async def main() -> None:
        broker = MemoryBroker(ack_wait=30)
        cleaned_up = trio.Event()

        async def work(message: Message) -> str:
            if message.id == "a" and not lost.is_set():
                lost.set()
                (job,) = (
                    job for job in worker._services["coder"].jobs.values() if job.message is message
                )
                job.delivery._task.holder = None  # renewals change nothing now
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.move_on_after(100, shield=True):
                        await trio.sleep(50)
                        cleaned_up.set()
            await trio.sleep(60)
            return message.id

        lost = trio.Event()
        async with open_dispatcher(broker) as dispatcher, open_worker(broker) as worker:
            await worker.handle("coder", work, max_in_flight=2)  # or the lost one comes back here
            await trio.sleep(5)  # the rounds are at 10, 20, 30; the lease ends at 35
            await dispatcher.start("coder", Message(id="a"))
            b = await dispatcher.start("coder", Message(id="b"))
            assert (await b.wait()).attempt == 1
            await cleaned_up.wait()
            assert trio.current_time() - began == 85
            assert worker.statistics().leases_lost == 1
            await worker.shutdown(100)

    began = 0.0
    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_late_settling_of_another_workers_task_changes_nothing() -> None:
    broker = MemoryBroker(ack_wait=10)
    deliveries: list[Delivery] = []
    async with open_dispatcher(broker) as dispatcher:
        await dispatcher.start("coder", Message())
        async with broker.open_intake("coder", each(deliveries.append)) as intake:
            intake.ask(1)
            (late,) = deliveries
            late._task.holder = None  # type: ignore[attr-defined]  # its lease lapsed
            until = late.lease_until
            late.renew()
            assert late.lease_until == until
            await late.give_back()
            assert await late.count_given_back() == 0
    assert repr(broker) == "<MemoryBroker, 1 tasks, 0 results>"


class Panic(BaseException):
    """As compiled code raises it."""


async def test_fault_of_the_library_gives_the_other_tasks_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes out of no handler at all ends the nursery, and not what follows on that."""
    settle = JobRunner.settle

    async def panic(runner: JobRunner, job: Job) -> None:
        if job.message is not None and job.message.inputs:
            raise Panic
        await settle(runner, job)

    def refuse(runner: JobRunner, job: Job, on_settled: Callable[[Job], None]) -> bool:
        return False

    async def handle(message: Message) -> None:
        if not message.inputs:
            await trio.sleep_forever()

    monkeypatch.setattr(JobRunner, "settle", panic)
    monkeypatch.setattr(JobRunner, "settle_soon", refuse)
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher:
        futures = [await dispatcher.start("coder", Message()) for _ in range(3)]
        with pytest.RaisesGroup(Panic, flatten_subgroups=True):
            async with open_worker(broker) as worker:
                await worker.handle("coder", handle)
                await dispatcher.start("coder", Message(inputs={"bad": "1"}))
                await trio.sleep_forever()
        monkeypatch.undo()
        async with open_worker(broker) as other:
            await other.handle("coder", echo)
            with trio.fail_after(5):  # long before the leases lapse
                for future in futures:
                    assert (await future.wait()).attempt == 2
