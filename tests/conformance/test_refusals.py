"""A broker that is full: tasks wait, none is lost, on both brokers."""

from __future__ import annotations

import logging

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from trio_swarmtask import ClosedError, Message, Status, Worker


def count_storing(worker: Worker) -> int:
    """Tasks whose handler has ended and whose result is not stored."""
    service = worker._services["coder"]
    return 0 if service is None else len(service.jobs) - service.running


@within(30)
async def test_start_waits_for_room(swarm: Swarm) -> None:
    await swarm.limit_tasks(2)
    async with swarm.dispatcher() as dispatcher:
        futures = [await dispatcher.start("coder", Message()) for _ in range(2)]
        with trio.move_on_after(0.5) as scope:
            await dispatcher.start("coder", Message())
        assert scope.cancelled_caught
        assert dispatcher.statistics().outstanding == 2
        async with trio.open_nursery() as nursery, swarm.worker() as worker:

            @nursery.start_soon
            async def start() -> None:
                futures.append(await dispatcher.start("coder", Message()))
                nursery.cancel_scope.cancel()

            await worker.handle("coder", echo)
            await trio.sleep_forever()
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            for future in futures:
                assert (await future.wait()).status == Status.SUCCESS


@within(30)
async def test_start_that_waits_ends_when_the_dispatcher_closes(swarm: Swarm) -> None:
    await swarm.limit_tasks(1)

    async def start() -> None:
        with pytest.raises(ClosedError, match="closed"):
            await dispatcher.start("coder", Message())
        ended.set()

    ended = trio.Event()
    async with trio.open_nursery() as nursery, swarm.dispatcher() as dispatcher:
        await dispatcher.start("coder", Message())
        nursery.start_soon(start)
        await until(lambda: dispatcher.statistics().outstanding == 2)
        await dispatcher.aclose()
        await ended.wait()


@within(30)
async def test_task_is_not_ended_until_its_result_is_stored(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    await swarm.limit_results(1)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo, max_in_flight=1)
        await dispatcher.run("coder", Message())
        await swarm.wait_until_empty()
        with caplog.at_level(logging.WARNING):
            futures = [await dispatcher.start("coder", Message()) for _ in range(2)]
            # Both handlers end, though only one place is there: storing takes none.
            await until(lambda: count_storing(worker) == 2)
        assert await swarm.count_tasks() == 2
        assert worker.statistics().succeeded == 1
        await swarm.make_room_for_results()
        for future in futures:
            assert (await future.wait()).attempt == 1
        await swarm.wait_until_empty()


@within(30)
async def test_leaving_gives_up_a_result_that_cannot_be_stored(swarm: Swarm) -> None:
    swarm.configure(ack_wait=1.0)
    await swarm.limit_results(1)
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            await dispatcher.run("coder", Message())
            future = await dispatcher.start("coder", Message())
            await until(lambda: count_storing(worker) == 1)
            left_at = trio.current_time()
        assert 0.9 < trio.current_time() - left_at < 5  # ack_wait, and a little
        assert worker.statistics().given_back == 1
        await swarm.make_room_for_results()
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS
