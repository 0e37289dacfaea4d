"""A broker in memory through several runs of Trio, whose clocks begin anywhere."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from tests._helpers.brokers import Deaf, echo, until
from tests._helpers.delivery_listener import each
from trio_swarmtask import (
    MemoryBroker,
    Message,
    Status,
    open_dispatcher,
    open_idempotency,
    open_worker,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask.bus import MemoryBus
from trio_swarmtask.results import (
    BusPublisher,
    MemoryPublisher,
    Result,
    ResultNotFoundError,
    ResultPublisher,
    ResultStatus,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask._abc import Delivery

    Run = Callable[[Callable[[], Awaitable[None]]], None]

PENDING = Result(status=ResultStatus.PENDING)


@pytest.fixture(params=[(0, 0), (0, 1e6), (1e6, 0), (500, 501)])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a program on virtual time, from somewhere: it differs from one run to the next."""
    beginnings = iter(request.param)

    def run(program: Callable[[], Awaitable[None]]) -> None:
        clock = MockClock(autojump_threshold=0)
        clock.jump(next(beginnings))
        trio.run(program, clock=clock)

    return run


async def has(publisher: ResultPublisher, task_id: str) -> bool:
    try:
        await publisher.get(task_id)
    except ResultNotFoundError:
        return False
    return True


def test_entries_of_buckets(run: Run) -> None:
    broker = MemoryBroker()

    async def first() -> None:
        async with (
            open_kv_publisher(broker, bucket="hour", ttl=3600) as hour,
            open_kv_publisher(broker, bucket="ten", ttl=10) as ten,
        ):
            await hour.publish("t1", PENDING)
            await ten.publish("t1", PENDING)
        await trio.sleep(8)  # what passes while nobody has it open counts, too

    async def second() -> None:
        async with (
            open_kv_publisher(broker, bucket="hour", ttl=3600) as hour,
            open_kv_publisher(broker, bucket="ten", ttl=10) as ten,
            ten.subscribe("t1") as updates,
        ):
            began = trio.current_time()
            assert len([update async for update in updates]) == 1
            assert trio.current_time() - began == pytest.approx(2)  # it has expired
            assert not await has(ten, "t1")
            await trio.sleep(3589)
            assert await has(hour, "t1")
            await trio.sleep(2)
            assert not await has(hour, "t1")

    run(first)
    run(second)


def test_outcomes_of_keys(run: Run) -> None:
    broker = MemoryBroker()
    calls: list[str] = []

    async def pay(message: Message) -> int:
        calls.append(message.id)
        return len(calls)

    async def pay_one() -> None:
        async with (
            open_dispatcher(broker) as dispatcher,
            open_idempotency(broker) as idempotent,
            open_worker(broker) as worker,
        ):
            await worker.handle("payer", idempotent(pay))
            assert (await dispatcher.run("payer", Message(idempotency="a"))).outputs == 1

    run(pay_one)
    run(pay_one)
    assert len(calls) == 1


def test_tasks_that_are_not_due_and_results(run: Run) -> None:
    broker = MemoryBroker(result_ttl=100)

    async def first() -> None:
        async with open_dispatcher(broker) as dispatcher, open_worker(broker) as worker:
            await worker.handle("done", echo)
            await dispatcher.run("done", Message(id="done"))
            soon = datetime.now(UTC) + timedelta(seconds=60)
            await dispatcher.start("coder", Message(id="later"), not_before=soon)
            await trio.sleep(20)

    async def second() -> None:
        async with (
            open_dispatcher(broker) as dispatcher,
            open_worker(broker) as worker,
            broker.open_outbox("other", lambda _: Deaf()) as outbox,
        ):
            began = trio.current_time()
            await worker.handle("coder", echo)
            later = await dispatcher.attach("later")
            assert (await later.wait()).status == Status.SUCCESS
            assert trio.current_time() - began == pytest.approx(40, abs=1)
            await trio.sleep(39)
            assert await outbox.fetch("done") is not None
            await trio.sleep(2)
            assert await outbox.fetch("done") is None
            # The ID names the same task for two minutes, and then another one.
            task = NewTask("coder", "done", b"")
            assert not await outbox.store(task)
            await trio.sleep(20)
            assert await outbox.store(task)

    run(first)
    run(second)


def test_deadlines_and_leases(run: Run) -> None:
    """Of a task that waits, of one that was cut off from its worker, and of a group."""
    broker = MemoryBroker(ack_wait=30)
    held: list[Delivery] = []

    async def first() -> None:
        async with (
            broker.open_outbox("own", lambda _: Deaf()) as outbox,
            broker.open_intake("coder", each(held.append)) as intake,
        ):
            await outbox.renew_group_lease("group")
            await outbox.store(NewTask("coder", "cut off", b""))
            intake.ask(1)
            assert len(held) == 1
            deadline = trio.current_time() + 50
            await outbox.store(NewTask("coder", "limited", b"", deadline=deadline))
            await trio.sleep(10)

    async def second() -> None:
        came: list[tuple[str, float, float]] = []

        def note(delivery: Delivery) -> None:
            now = trio.current_time() - began
            came.append((delivery.task_id, now, delivery.deadline - trio.current_time()))

        async with broker.open_intake("coder", each(note)) as intake:
            began = trio.current_time()
            intake.ask(2)
            await until(lambda: len(came) == 2)
            assert came == [
                ("limited", pytest.approx(0), pytest.approx(40)),
                ("cut off", pytest.approx(20), float("inf")),
            ]
            assert await intake.find_group_leases(["group"]) == []
            assert trio.current_time() - began == pytest.approx(20)

    run(first)
    run(second)


def test_schedules(run: Run) -> None:
    broker = MemoryBroker()
    at: list[float] = []

    async def note(message: Message) -> None:
        at.append(trio.current_time())

    async def first() -> None:
        async with open_dispatcher(broker) as dispatcher:
            await dispatcher.schedule("minutely", "coder", Message(), every=60)
            await dispatcher.schedule("never", "coder", Message(), cron="0 0 0 29 2 *")
        await trio.sleep(40)

    async def second() -> None:
        async with open_worker(broker) as worker:
            began = trio.current_time()
            await worker.handle("coder", note)
            await until(lambda: len(at) == 3)
            assert [time - began for time in at] == pytest.approx([20, 80, 140], abs=1)

    run(first)
    run(second)


def test_bus_and_publishers(run: Run) -> None:
    """Have no times, and go on as well."""
    bus = MemoryBus()
    publishers = (BusPublisher(bus), MemoryPublisher())
    heard: list[Any] = []

    async def use() -> None:
        async with bus.listen("results.t1", heard.append):
            for publisher in publishers:
                async with publisher.subscribe("t1") as updates:
                    await publisher.publish("t1", PENDING)
                    assert (await anext(updates)).status is ResultStatus.PENDING
                assert await has(publisher, "t1")

    run(use)
    run(use)
    assert len(heard) == 2


def test_two_runs_at_once() -> None:
    """Are refused; one after the other is fine, however the first one has ended."""
    broker = MemoryBroker()
    opened, done = threading.Event(), threading.Event()

    async def first() -> None:
        async with open_dispatcher(broker):
            opened.set()
            await trio.to_thread.run_sync(done.wait)
            raise KeyboardInterrupt

    def run_first() -> None:
        with pytest.raises(KeyboardInterrupt):
            trio.run(first)

    async def use() -> None:
        async with (
            open_dispatcher(broker) as dispatcher,
            open_worker(broker) as worker,
            open_kv_publisher(broker),
        ):
            await worker.handle("coder", echo)
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS

    thread = threading.Thread(target=run_first)
    thread.start()
    assert opened.wait(10)
    for opening in (open_dispatcher, open_kv_publisher):

        async def use_beside() -> None:
            async with opening(broker):  # noqa: B023 - run in this round
                pytest.fail("it was opened")

        with pytest.raises(RuntimeError, match=r"used by another trio\.run that has not ended"):
            trio.run(use_beside)
    done.set()
    thread.join(10)
    trio.run(use)
