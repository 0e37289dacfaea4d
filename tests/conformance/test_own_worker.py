"""A handler that closes the worker it runs in, on both brokers: it would wait for itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import MemorySwarm, Swarm, until, within
from trio_swarmtask import Message, Status
from trio_swarmtask.results import MemoryPublisher, Result, publish_results

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask import Worker

    Close = Callable[[Worker], Awaitable[None]]
    Where = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

HOWS = {
    "aclose": lambda worker: worker.aclose(),
    "shutdown": lambda worker: worker.shutdown(1),
    "shutdown, however long": lambda worker: worker.shutdown(math.inf),
}
how = pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)


async def in_the_handler(close: Callable[[], Awaitable[None]]) -> None:
    await close()


async def in_a_task_of_it(close: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_a_nursery_of_that, close)
        await trio.lowlevel.checkpoint()


async def in_a_nursery_of_that(close: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await trio.lowlevel.checkpoint()


async def in_a_thread(close: Callable[[], Awaitable[None]]) -> None:
    await trio.to_thread.run_sync(trio.from_thread.run, close)


async def in_a_thread_that_may_be_abandoned(close: Callable[[], Awaitable[None]]) -> None:
    await trio.to_thread.run_sync(trio.from_thread.run, close, abandon_on_cancel=True)


@how
@pytest.mark.parametrize("where", [in_the_handler, in_a_task_of_it])
@within(20)
async def test_handler_that_closes_its_own_worker(swarm: Swarm, how: Close, where: Where) -> None:
    """It is told at once what to do instead; the worker goes on."""
    await refused(swarm, how, where)


@how
@pytest.mark.parametrize("where", [in_a_thread, in_a_thread_that_may_be_abandoned])
@within(20)
async def test_thread_of_a_handler(how: Close, where: Where) -> None:
    """By the real clock: a virtual one does not wait for threads."""
    await refused(MemorySwarm(), how, where)


async def refused(swarm: Swarm, how: Close, where: Where) -> None:
    async def stop(message: Message) -> str:
        with pytest.raises(RuntimeError, match=r"close it from outside, .* nursery\.start") as e:
            try:
                await where(lambda: how(worker))
            except BaseExceptionGroup as group:
                raise leaf(group) from None
        return str(e.value)

    async with swarm.dispatcher() as dispatcher, swarm.worker(name="ada") as worker:
        await worker.handle("stop", stop)
        for _ in range(2):
            result = await dispatcher.run("stop", Message())
            assert result.status == Status.SUCCESS
            assert "of worker 'ada' was called in one of its own handlers" in result.outputs


def leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    (inner,) = group.exceptions
    return leaf(inner) if isinstance(inner, BaseExceptionGroup) else inner


@how
@within(20)
async def test_handler_that_has_it_closed_from_outside(swarm: Swarm, how: Close) -> None:
    """As the error says; the handler is waited for."""

    async def stop(message: Message) -> str:
        nursery.start_soon(how, worker)
        await until(worker._closing.stopping.is_set)
        return "stopped"

    async with (
        trio.open_nursery() as nursery,
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
    ):
        await worker.handle("stop", stop)
        assert (await dispatcher.run("stop", Message())).outputs == "stopped"
        await worker._closing.finished.wait()


@how
@within(20)
async def test_handler_that_closes_another_worker(swarm: Swarm, how: Close) -> None:
    """One of its own, or one beside it."""

    async def stop(message: Message) -> str:
        async with swarm.worker() as own:
            await how(own)
        await how(beside)
        return "stopped"

    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
        swarm.worker() as beside,
    ):
        await worker.handle("stop", stop)
        assert (await dispatcher.run("stop", Message())).outputs == "stopped"
        assert beside._closing.finished.is_set()


@how
@within(20)
async def test_publisher_that_closes_the_worker_it_announces_for(
    swarm: Swarm, how: Close, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker waits for its announcements, too: this one fails, which is logged."""

    class Publisher(MemoryPublisher):  # type: ignore[misc]  # final, but for this
        async def publish(self, task_id: str, result: Result) -> None:
            await how(worker)

    async def done(message: Message) -> None: ...

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        publish_results(worker, Publisher())
        await worker.handle("coder", done)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert not worker._closing.stopping.is_set()
    assert "was called in one of its own handlers" in caplog.text
