"""Every call is a checkpoint, and a cancelled one has no effect; on every publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_checkpoints

from tests._helpers.brokers import within
from tests._helpers.publishers import (
    FAILED,
    PENDING,
    SUCCESS,
    Publishers,
    Reader,
    pending,
    rest,
    success,
)
from trio_swarmtask.results import PublisherClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask.results import ResultPublisher


async def enter(publisher: ResultPublisher) -> None:
    async with publisher.subscribe("t1"):
        pass


CALLS: dict[str, Callable[[ResultPublisher], Awaitable[object]]] = {
    "publish": lambda publisher: publisher.publish("t1", SUCCESS),
    "get": lambda publisher: publisher.get("t1"),
    "list": lambda publisher: publisher.list(),
    "delete": lambda publisher: publisher.delete("t1"),
    "subscribe": enter,
}


@pytest.mark.parametrize("call", [*CALLS, "aclose"])
@within(10)
async def test_checkpoint(publisher: ResultPublisher, call: str) -> None:
    await publisher.publish("t1", PENDING)
    with assert_checkpoints():
        await CALLS.get(call, lambda publisher: publisher.aclose())(publisher)


@within(10)
async def test_next_update_is_a_checkpoint(publisher: ResultPublisher) -> None:
    """Also where there is something to give, and at the end."""
    await publisher.publish("t1", SUCCESS)
    async with publisher.subscribe("t1") as updates:
        with assert_checkpoints():
            await anext(updates)
        with assert_checkpoints():
            assert await anext(updates, None) is None


@pytest.mark.parametrize("call", CALLS)
@within(10)
async def test_call_in_a_cancelled_scope(publisher: ResultPublisher, call: str) -> None:
    """Raises `trio.Cancelled`, and nothing has changed."""
    await publisher.publish("t1", pending(1))
    before = await publisher.get("t1")
    async with publisher.subscribe("t1") as updates:
        assert await anext(updates) == before
        with trio.CancelScope() as scope:
            scope.cancel()
            await CALLS[call](publisher)
        assert scope.cancelled_caught
        assert await publisher.get("t1") == before
        # Nor does anybody hear of it; and the publisher works on.
        await publisher.publish("t1", success(2))
        assert [update.output for update in await rest(updates)] == [b"2"]


@within(10)
async def test_next_update_in_a_cancelled_scope(publisher: ResultPublisher) -> None:
    """Takes nothing out of the buffer; nor does giving up the wait."""
    await publisher.publish("t1", pending(1))
    async with publisher.subscribe("t1") as updates:
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(updates)
        assert scope.cancelled_caught
        assert (await anext(updates)).output == b"1"
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await anext(updates)
                pytest.fail("there was something")

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await publisher.publish("t1", success(2))
        assert [update.output for update in await rest(updates)] == [b"2"]


@within(10)
async def test_aclose_in_a_cancelled_scope_closes(publisher: ResultPublisher) -> None:
    """As any `trio.abc.AsyncResource` does."""
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        with trio.CancelScope() as scope:
            scope.cancel()
            await publisher.aclose()
        assert scope.cancelled_caught
        await reader.ended.wait()
    with pytest.raises(PublisherClosedError, match="the publisher is closed"):
        await publisher.get("t1")


@within(20)
async def test_subscribers_that_give_up_at_any_moment(publishers: Publishers) -> None:
    """Those who come beside them lose nothing, whoever opened what all of them hear by."""
    async with publishers.open() as publisher:
        for steps in range(12):
            task_id = f"t{steps}"
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()

                async def give_up() -> None:
                    with scope:  # noqa: B023 - in this round
                        async with publisher.subscribe(task_id) as updates:  # noqa: B023 - in this round
                            await rest(updates)

                nursery.start_soon(give_up)
                nursery.start_soon(nursery.start, Reader(publisher, task_id).run)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                reader = await nursery.start(Reader(publisher, task_id).run)
                await publisher.publish(task_id, FAILED)
            assert [update.error for update in reader.read] == ["disk full"]


@within(20)
async def test_publishes_that_give_up_at_any_moment(publishers: Publishers) -> None:
    """Each has been stored, or it has not; the next one works."""
    async with publishers.open(buffer_size=100) as publisher:
        for steps in range(12):
            task_id = f"t{steps}"
            async with trio.open_nursery() as nursery:
                reader = await nursery.start(Reader(publisher, task_id).run)
                scope = trio.CancelScope()

                async def give_up() -> None:
                    with scope:  # noqa: B023 - in this round
                        await publisher.publish(task_id, pending(1))  # noqa: B023 - in this round

                nursery.start_soon(give_up)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                await publisher.publish(task_id, pending(2))
                await publisher.publish(task_id, success(3))
            read = [update.output for update in reader.read]
            assert read in ([b"1", b"2", b"3"], [b"2", b"3"])
