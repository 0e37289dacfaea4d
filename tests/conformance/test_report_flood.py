"""A handler that reports without pause: who follows it hears of its state, and nobody is harmed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from tests.conformance.test_progress import notes
from trio_swarmtask import (
    InvalidMessageError,
    MemoryBroker,
    Message,
    Retry,
    RetryTask,
    Status,
    current_task,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask.results import MemoryPublisher, Result, ResultStatus, publish_results

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from trio_swarmtask import Future


async def flood(count: int = 1000) -> None:
    for number in range(count):
        await current_task().report(None, str(number))


@asynccontextmanager
async def following(future: Future) -> AsyncIterator[list[int]]:
    """The numbers of the reports, as they come."""
    heard: list[int] = []

    async def follow(*, task_status: trio.TaskStatus[None]) -> None:
        async with future.updates() as updates:
            task_status.started()
            async for update in updates:
                heard.extend(int(note) for note in notes([update]))

    async with trio.open_nursery() as nursery:
        await nursery.start(follow)
        yield heard


@within(20)
async def test_newest_is_heard_soon(swarm: Swarm) -> None:
    """Without another report, and without the task's end."""
    go, end = trio.Event(), trio.Event()

    async def handle(message: Message) -> None:
        await go.wait()
        await flood()
        await end.wait()

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        future = await dispatcher.start("coder", Message())
        async with following(future) as heard:
            began = trio.current_time()
            go.set()
            await until(lambda: heard and heard[-1] == 999)
            seconds = trio.current_time() - began
            assert heard[:16] == list(range(16))
            assert heard == sorted(set(heard))
            assert len(heard) <= 16 + 10 * seconds + 1
            end.set()
        assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_ten_a_second(swarm: Swarm) -> None:
    """In the long run; each is the newest of its time."""
    go = trio.Event()

    async def handle(message: Message) -> int:
        await go.wait()
        end, number = trio.current_time() + 3, 0
        while trio.current_time() < end:
            await current_task().report(None, str(number))
            number += 1
            await trio.sleep(0.005)
        return number

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        future = await dispatcher.start("coder", Message())
        async with following(future) as heard:
            go.set()
        assert heard == sorted(set(heard))
        assert 30 <= len(heard) <= 16 + 30 + 16
        assert heard[-1] == future.result.outputs - 1


async def succeed(message: Message) -> None:
    await flood()


async def fail(message: Message) -> None:
    await flood()
    raise LookupError("mine")


async def run_out_of_time(message: Message) -> None:
    await flood()
    await trio.sleep_forever()


@pytest.mark.parametrize("handler", [succeed, fail, run_out_of_time])
@within(20)
async def test_last_one_goes_out_before_the_result(swarm: Swarm, handler: object) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message(timeout=1))
        async with following(future) as heard:
            await worker.handle("coder", handler)  # type: ignore[arg-type]  # one of the above
        assert heard[-1] == 999
        assert heard == sorted(set(heard))


@within(20)
async def test_last_one_of_each_attempt(swarm: Swarm) -> None:
    async def handle(message: Message) -> None:
        await flood(100 * current_task().attempt)
        if current_task().attempt == 1:
            raise RetryTask(delay=0.2)

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message(max_attempts=2))
        async with following(future) as heard:
            await worker.handle("coder", handle, retry=Retry())
        assert 99 in heard
        assert heard[-1] == 199


async def test_nothing_is_heard_of_a_task_that_was_cancelled(autojump_clock: MockClock) -> None:
    """What was held is dropped: its end is somebody else's to tell. On virtual time, for what is
    not held is told.
    """
    broker = MemoryBroker()
    flooded, cleaned = trio.Event(), trio.Event()

    async def handle(message: Message) -> None:
        try:
            await flood()
            flooded.set()
            await trio.sleep_forever()
        finally:
            cleaned.set()

    async with (
        MemoryPublisher() as publisher,
        publisher.subscribe("t-1") as updates,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", handle)
        future = await dispatcher.start("coder", Message(id="t-1"))
        await flooded.wait()
        await future.cancel()
        await cleaned.wait()
        await until(lambda: worker.statistics().in_flight == 0)
        assert "999" not in notes([update async for update in updates])


@within(20)
async def test_too_large_report_among_many(swarm: Swarm) -> None:
    """The handler hears of it at once, though it would not have been sent yet."""

    async def handle(message: Message) -> None:
        await flood(100)
        with pytest.raises(InvalidMessageError, match="larger than"):
            await current_task().report(None, "x" * 2_000_000)

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(20)
async def test_publishers_are_told_at_the_same_pace(swarm: Swarm) -> None:
    class Publisher(MemoryPublisher):  # type: ignore[misc]  # final, but for this
        published = 0

        async def publish(self, task_id: str, result: Result) -> None:
            await super().publish(task_id, result)
            self.published += result.status is ResultStatus.PENDING

    async with Publisher() as publisher, swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        async with publisher.subscribe("t-1") as updates:
            began = trio.current_time()
            await worker.handle("coder", succeed)
            await dispatcher.run("coder", Message(id="t-1"))
            *pending, end = [update async for update in updates]
        assert end.status is ResultStatus.SUCCESS
        assert notes(pending)[-1] == "999"
        most = 1 + 16 + 16 + 10 * (trio.current_time() - began) + 1
        assert publisher.published <= most
