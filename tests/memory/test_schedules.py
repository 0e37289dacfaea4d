"""What only the memory broker can show of tasks for later, and again: hours pass in no time."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import until
from tests._helpers.handlers import Waiting
from trio_swarmtask import (
    ClosedError,
    MemoryBroker,
    Message,
    TaskState,
    open_dispatcher,
    open_worker,
)

if TYPE_CHECKING:
    from trio.testing import MockClock


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


class Recorder:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.times: list[float] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.times.append(trio.current_time())


async def test_days_pass(autojump_clock: MockClock) -> None:
    handler = Recorder()
    broker = MemoryBroker(ack_wait=86400)
    async with open_dispatcher(broker) as boss, open_worker(broker) as worker:
        await worker.handle("coder", handler)
        began = trio.current_time()
        await boss.schedule("nightly", "coder", Message(), cron="0 0 3 * * *")
        await boss.start("coder", Message(), not_before=in_seconds(5 * 86400))
        await until(lambda: len(handler.messages) == 6)
        assert trio.current_time() - began == pytest.approx(5 * 86400, abs=86400)
    nights = [message for message in handler.messages if message.id.startswith("nightly-")]
    times = [message.submitted_at for message in nights]
    for time, following in itertools.pairwise(times):
        assert time is not None
        assert (time.hour, time.minute, time.second, time.microsecond) == (3, 0, 0, 0)
        assert following is not None
        assert following - time == timedelta(days=1)


async def test_interval_is_exact(autojump_clock: MockClock) -> None:
    handler = Recorder()
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher, open_worker(broker) as worker:
        await worker.handle("coder", handler)
        began = trio.current_time()
        await dispatcher.schedule("tick", "coder", Message(), every=7)
        await until(lambda: len(handler.messages) == 3)
    assert [time - began for time in handler.times] == [7, 14, 21]


async def test_what_was_missed_is_made_up_for(autojump_clock: MockClock) -> None:
    """Each firing has the ID and the time that it would have had."""
    handler = Recorder()
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher:
        await dispatcher.schedule("tick", "coder", Message(), every=60)
        await dispatcher.schedule("tock", "coder", Message(), every=150)
        await trio.sleep(310)
        async with open_worker(broker) as worker:
            await worker.handle("coder", handler)
            await until(lambda: len(handler.messages) == 7)
    ids = sorted(message.id for message in handler.messages)
    assert ids[5:] == [task_id for task_id in ids if task_id.startswith("tock-")]
    numbers = [int(task_id.removeprefix("tick-")) for task_id in ids[:5]]
    assert [number - numbers[0] for number in numbers] == [0, 60_000, 120_000, 180_000, 240_000]


async def test_firing_that_was_cancelled_before_anybody_looked(autojump_clock: MockClock) -> None:
    handler = Recorder()
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher, open_worker(broker) as worker:
        await worker.handle("coder", handler)
        await dispatcher.schedule("tick", "coder", Message(), every=60)
        await until(lambda: handler.messages)
        await worker.aclose()
        first = int(handler.messages[0].id.removeprefix("tick-"))
        future = await dispatcher.attach(f"tick-{first + 60_000}")
        await trio.sleep(130)
        await future.cancel()
        async with open_worker(broker) as other:
            await other.handle("coder", handler)
            await until(lambda: len(handler.messages) == 2)
    assert handler.messages[1].id == f"tick-{first + 120_000}"


async def test_full_broker_takes_no_firing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    broker = MemoryBroker(max_tasks=2)
    async with open_dispatcher(broker) as dispatcher:
        await dispatcher.schedule("tick", "coder", Message(), every=60)
        await trio.sleep(200)
        assert await dispatcher.unschedule("tick")
    assert broker._store.room.count == 2
    assert caplog.text.count("no room for task tick-") == 1


async def test_start_waits_for_room_and_is_due_then(autojump_clock: MockClock) -> None:
    handler = Recorder()
    broker = MemoryBroker(max_tasks=1)
    async with open_dispatcher(broker) as dispatcher, open_worker(broker) as worker:
        await worker.handle("coder", handler)
        began = trio.current_time()
        await dispatcher.start("coder", Message(), not_before=in_seconds(100))
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(50))
        await future.wait()
    assert trio.current_time() - began == pytest.approx(100, abs=5)


async def test_same_id_is_known_for_as_long_as_it_waits(autojump_clock: MockClock) -> None:
    """Longer than the two minutes for which any ID is known."""
    handler = Recorder()
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher, open_worker(broker) as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message(id="t"), not_before=in_seconds(1000))
        await trio.sleep(500)
        await dispatcher.start("coder", Message(id="t"), not_before=in_seconds(1))
        await future.wait()
        assert broker._store.room.count == 0
    assert len(handler.messages) == 1


async def test_tasks_that_came_due_before_and_after_the_first_worker(
    autojump_clock: MockClock,
) -> None:
    """That nobody ever had one is known of the tasks that are younger than the worker."""
    broker, handler = MemoryBroker(), Waiting()
    async with open_dispatcher(broker) as dispatcher:
        running, before, after = [
            await dispatcher.start("coder", Message(), not_before=in_seconds(seconds))
            for seconds in (60, 70, 180)
        ]
        await trio.sleep(120)
        async with open_worker(broker) as worker:
            await worker.handle("coder", handler, max_in_flight=1)
            await trio.sleep(120)
            for future in (before, after, running):
                await future.cancel()
    assert handler.calls == 1
    assert (before.state, after.state) == (TaskState.UNCONFIRMED, TaskState.STOPPED)


async def test_cron_that_comes_no_more(autojump_clock: MockClock) -> None:
    """For five years from its last day: it stands still, and can be replaced."""
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher:
        # 2096 is followed by 2104: 2100 is no leap year.
        await dispatcher.schedule("leap", "coder", Message(), cron="0 0 0 29 2 *")
        await trio.sleep((datetime(2097, 1, 1, tzinfo=UTC) - datetime.now(UTC)).total_seconds())
        assert len(await dispatcher.schedules()) == 1
        fired = broker._store.room.count
        assert fired > 5
        await trio.sleep(10 * 366 * 86400)
        await dispatcher.schedule("leap", "coder", Message(), every=60)
        assert broker._store.room.count == fired
        await trio.sleep(90)
        await dispatcher.unschedule("leap")
        assert broker._store.room.count == fired + 1


async def test_closed_dispatcher(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_dispatcher(broker) as dispatcher:
        await dispatcher.aclose()
        with pytest.raises(ClosedError):
            await dispatcher.schedule("tick", "coder", Message(), every=60)
        with pytest.raises(ClosedError):
            await dispatcher.unschedule("tick")
        with pytest.raises(ClosedError):
            await dispatcher.schedules()
