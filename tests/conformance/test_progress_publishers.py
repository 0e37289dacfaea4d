"""Progress, as a publisher of results shows it, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tests._helpers.brokers import Swarm, until, within
from tests.conformance.test_progress import Steps, notes
from trio_swarmtask import (
    MemoryBroker,
    Message,
    current_task,
)
from trio_swarmtask.bus import MemoryBus
from trio_swarmtask.results import (
    BusPublisher,
    MemoryPublisher,
    Result,
    ResultPublisher,
    ResultStatus,
    _bridge,
    open_kv_publisher,
    publish_results,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest


async def publish_steps(
    swarm: Swarm, publisher: ResultPublisher, handler: Callable[[Message], Awaitable[object]]
) -> list[Result]:
    """What those who follow by ``publisher`` hear of a task."""
    async with (
        publisher.subscribe("t-1") as updates,
        swarm.worker(name="ada") as worker,
        swarm.dispatcher() as dispatcher,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", handler)
        await dispatcher.run("coder", Message(id="t-1"))
        return [update async for update in updates]


@within(10)
async def test_publisher_shows_progress(swarm: Swarm) -> None:
    """Between the beginning and the end, which are announced as ever."""
    told = trio.Event()

    async def handle(message: Message) -> str:
        await current_task().report(0.5, "half way")
        await told.wait()
        return "done"

    class Publisher(MemoryPublisher):  # type: ignore[misc]  # final, but for this
        async def publish(self, task_id: str, result: Result) -> None:
            await super().publish(task_id, result)
            if (result.metadata or {}).get("note") == "half way":
                told.set()

    begun, half_way, ended = await publish_steps(swarm, Publisher(), handle)
    assert begun.metadata == {"agent": "ada", "attempt": "1"}
    assert half_way.status is ResultStatus.PENDING
    assert half_way.metadata == {**begun.metadata, "progress": "0.5", "note": "half way"}
    assert half_way.created_at == begun.created_at
    assert ended.status is ResultStatus.SUCCESS


@within(10)
async def test_slow_publisher_gets_the_newest(swarm: Swarm) -> None:
    """And is in nobody's way, however much a handler reports."""

    async def handle(message: Message) -> None:
        for step in range(500):
            await current_task().report(step / 500, f"step {step}")

    broker = MemoryBroker() if isinstance(swarm.broker, MemoryBroker) else swarm.broker
    async with open_kv_publisher(broker) as publisher:
        *pending, ended = await publish_steps(swarm, publisher, handle)
    heard = [int(note.removeprefix("step ")) for note in notes(pending) if note]
    assert heard == sorted(set(heard))
    assert heard[-1] == 499
    assert ended.status is ResultStatus.SUCCESS


@within(10)
async def test_publisher_on_a_bus_in_memory_shows_progress(swarm: Swarm) -> None:
    """The worker's own reports don't go there."""
    steps = Steps(1)
    steps.go.set()
    async with MemoryBus() as bus, BusPublisher(bus) as publisher:
        told = await publish_steps(swarm, publisher, steps)
    assert "step 0" in notes(told)


@within(10)
async def test_publisher_that_begins_when_all_is_over(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still announces the newest report, and then the end."""
    steps, follow, over = Steps(), _bridge._Announcer.follow_task, trio.Event()
    steps.go.set()

    async def follow_late(*args: Any) -> None:
        await over.wait()
        await follow(*args)

    monkeypatch.setattr(_bridge._Announcer, "follow_task", follow_late)
    publisher = MemoryPublisher()
    async with publisher.subscribe("t-1") as updates:
        async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
            publish_results(worker, publisher)
            await worker.handle("coder", steps)
            await dispatcher.run("coder", Message(id="t-1"))
            await until(lambda: worker.statistics().in_flight == 0)
            over.set()
        assert notes([update async for update in updates]) == ["", "step 2", ""]
