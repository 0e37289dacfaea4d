"""Dispatchers that are closed, or lost, while groups and maps are open, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import WAIT, Staff
from trio_swarmtask import (
    BrokerError,
    ClosedError,
    Message,
    Result,
    TaskState,
)
from trio_swarmtask._dispatcher._map import MapResults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_swarmtask import Dispatcher

SLOW = Message(inputs={"do": "wait", "clean_up": "0.3"})


async def aclose(dispatcher: Dispatcher) -> None:
    await dispatcher.aclose()


async def shut_down(dispatcher: Dispatcher) -> None:
    with pytest.raises(trio.TooSlowError, match="3 tasks were outstanding"):
        await dispatcher.shutdown(0.1)


@pytest.mark.parametrize("on_failure", ["cancel", "collect"])
@pytest.mark.parametrize("close", [aclose, shut_down])
@pytest.mark.parametrize("within_the_block", [True, False])
@within(20)
async def test_closing_cancels_the_tasks_of_an_open_group(
    swarm: Swarm, on_failure: str, close: object, within_the_block: bool
) -> None:
    """As any other way out of the block does; and the block says that it was closed."""
    assert callable(close)
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff, max_in_flight=2)

        async def close_it() -> None:
            await close(dispatcher)
            assert (staff.running, staff.clean_ups) == (0, 2)

        async with trio.open_nursery() as nursery:
            closed = pytest.RaisesExc(ClosedError, match="the dispatcher was closed")
            with pytest.RaisesGroup(closed):
                async with dispatcher.open_group(on_failure=on_failure) as group:  # type: ignore[arg-type]  # one of the two
                    futures = [await group.start("coder", SLOW) for _ in range(3)]
                    await until(lambda: staff.running == 2)
                    if within_the_block:
                        await close_it()
                    else:
                        nursery.start_soon(close_it)
        assert (staff.running, staff.clean_ups) == (0, 2)
        assert [future.state for future in futures] == [TaskState.STOPPED] * 3
        assert all(future.result.cancelled_by for future in futures)
        assert await swarm.count_tasks() == 0
        counts = group.statistics()
        assert (counts.started, counts.cancelled) == (3, 3)
        with pytest.raises(ClosedError):
            dispatcher.open_group()
        await dispatcher.aclose()
        await dispatcher.shutdown(1)


@within(20)
async def test_leaving_the_block_of_a_dispatcher_with_a_group_elsewhere(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.worker() as worker, trio.open_nursery() as nursery:
        await worker.handle("coder", staff)

        async def open_group() -> None:
            with pytest.RaisesGroup(ClosedError):
                async with dispatcher.open_group() as group:
                    await group.start("coder", SLOW)

        with trio.CancelScope() as scope:
            async with swarm.dispatcher() as dispatcher:
                nursery.start_soon(open_group)
                await until(lambda: staff.running)
                scope.cancel()
                await trio.sleep_forever()
        assert (staff.running, staff.clean_ups) == (0, 1)


@within(20)
async def test_closing_cancels_the_tasks_of_an_open_map(swarm: Swarm) -> None:
    """What came of them can be read; then it says that the dispatcher was closed."""
    staff = Staff()
    read: list[Result] = []

    def endless() -> Iterator[Message]:
        while True:
            yield SLOW

    async with swarm.dispatcher(name="boss") as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with pytest.raises(ClosedError, match="the dispatcher is closed"):
            async with dispatcher.map("coder", endless(), limit=4) as results:
                await until(lambda: staff.running == 4)
                await dispatcher.aclose()
                assert (staff.running, staff.clean_ups) == (0, 4)
                async for result in results:
                    read.append(result)  # noqa: PERF401 - an error ends it
        assert [result.cancelled_by for result in read] == ["boss"] * 4


@within(20)
async def test_closing_a_map_that_nobody_reads_on(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(ClosedError, match="the dispatcher was closed"):
            async with dispatcher.map("coder", [WAIT]) as results:
                assert isinstance(results, MapResults)
                await until(lambda: results._tasks.counts["outstanding"])
                await dispatcher.aclose()
        assert await swarm.count_tasks() == 0


@pytest.mark.parametrize("on_failure", ["cancel", "collect"])
@within(20)
async def test_closing_waits_for_the_grace_and_no_longer(swarm: Swarm, on_failure: str) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with pytest.RaisesGroup(ClosedError):
            async with dispatcher.open_group(grace=0.5, on_failure=on_failure) as group:  # type: ignore[arg-type]  # one of the two
                future = await group.start("coder", Message(inputs={"do": "wait", "clean_up": "4"}))
                await until(lambda: staff.running)
                began = trio.current_time()
                await dispatcher.aclose()
        assert 0.4 < trio.current_time() - began < 3
        assert staff.running == 1
        assert future.state == TaskState.UNCONFIRMED


@within(20)
async def test_closing_that_is_cancelled_cancels_the_tasks_all_the_same(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with pytest.RaisesGroup(ClosedError):
            async with dispatcher.open_group(on_failure="collect") as group:
                future = await group.start("coder", SLOW)
                await until(lambda: staff.running)
                async with trio.open_nursery() as nursery:  # twice at once
                    nursery.start_soon(dispatcher.aclose)
                    nursery.start_soon(dispatcher.aclose)
                    nursery.cancel_scope.cancel()
                assert (staff.running, staff.clean_ups) == (0, 1)
        assert future.state == TaskState.STOPPED


@within(20)
async def test_group_that_has_nothing_outstanding_is_not_ended(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.open_group() as group, dispatcher.open_group(on_failure="collect"):
            await group.run("coder", Message())
            await dispatcher.aclose()
            with pytest.raises(ClosedError):
                await group.run("coder", Message())


@within(20)
async def test_closing_while_a_group_is_being_cancelled(swarm: Swarm) -> None:
    """That is waited for; it was not by the closing that its tasks have ended."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with trio.open_nursery() as nursery, dispatcher.open_group() as group:
            future = await group.start("coder", SLOW)
            await until(lambda: staff.running)
            group.cancel_scope.cancel()
            nursery.start_soon(dispatcher.aclose)
        assert staff.clean_ups == 1
        assert future.state == TaskState.STOPPED


@within(20)
async def test_closing_waits_for_what_is_being_stopped(swarm: Swarm) -> None:
    """Its result is there: no task is outstanding, but a handler is cleaning up."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            future = await group.start("coder", SLOW)
            await until(lambda: staff.running)
            await future.cancel()
            await dispatcher.shutdown(1)
            assert (staff.running, staff.clean_ups) == (0, 1)
        assert future.state == TaskState.STOPPED


@pytest.mark.parametrize("on_failure", ["cancel", "collect"])
@within(20)
async def test_server_that_is_lost_for_good(swarm: Swarm, on_failure: str) -> None:
    """Nobody can be told; the block says so, once, and the futures that they have no result."""
    async with swarm.dispatcher() as dispatcher:
        with pytest.RaisesGroup(pytest.RaisesExc(BrokerError, match="gone")):
            async with dispatcher.open_group(on_failure=on_failure) as group:  # type: ignore[arg-type]  # one of the two
                futures = [await group.start("coder", Message()) for _ in range(3)]
                dispatcher._core.futures.broker_lost(BrokerError("gone"))
        for future in futures:
            assert future.state == TaskState.OUTSTANDING
            with pytest.raises(BrokerError, match="gone"):
                _ = future.result
        assert group.statistics().failed == 3


@within(20)
async def test_server_that_is_lost_under_a_map(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(BrokerError, match="gone"):
            async with dispatcher.map("coder", [Message()] * 2):
                await until(lambda: dispatcher.statistics().started == 2)
                dispatcher._core.futures.broker_lost(BrokerError("gone"))


@within(20)
async def test_task_without_a_group_goes_on_when_its_dispatcher_is_closed(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        future = await dispatcher.start("coder", WAIT)
        await until(lambda: staff.running)
        await dispatcher.aclose()
        assert future.state == TaskState.OUTSTANDING
        assert staff.running == 1
        async with swarm.dispatcher() as other:
            await (await other.attach(future.id)).cancel()
            await until(lambda: staff.running == 0)
