"""The block of a subscription: entering, leaving, and doing it wrong; on every publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.publishers import SUCCESS, Publishers, outputs, pending, rest

if TYPE_CHECKING:
    from trio_swarmtask.results import ResultPublisher


@within(10)
async def test_leaving_the_block_by_an_exception(publisher: ResultPublisher) -> None:
    """It is the exception that comes out, and the subscription is over."""
    error = LookupError("mine")
    with pytest.raises(LookupError, match="mine") as caught:
        async with publisher.subscribe("t1") as updates:
            raise error
    assert caught.value is error
    await publisher.publish("t1", SUCCESS)
    assert await rest(updates) == []


@within(10)
async def test_leaving_the_block_by_break(publisher: ResultPublisher) -> None:
    await publisher.publish("t1", pending(1))
    async with publisher.subscribe("t1") as updates:
        async for update in updates:
            assert update.output == b"1"
            break
    await publisher.publish("t1", SUCCESS)
    assert await rest(updates) == []


@within(10)
async def test_iterating_without_entering(publisher: ResultPublisher) -> None:
    with pytest.raises(RuntimeError, match="to 't1' was not entered: write 'async with pub"):
        async for _ in publisher.subscribe("t1"):
            pytest.fail("there was something")


@within(10)
async def test_entering_twice(publisher: ResultPublisher) -> None:
    """In its block, and after it."""
    updates = publisher.subscribe("t1")
    async with updates:
        with pytest.raises(RuntimeError, match="the block of 't1' was entered before: subscribe"):
            async with updates:
                pytest.fail("it was entered")
        await publisher.publish("t1", SUCCESS)
        assert await outputs(updates) == [b"42"]
    with pytest.raises(RuntimeError, match="the block of 't1' was entered before: subscribe"):
        async with updates:
            pytest.fail("it was entered")


@within(10)
async def test_block_that_outlives_the_publisher(publishers: Publishers) -> None:
    """Its reader has ended; leaving it late is no error."""
    left = trio.Event()

    async def follow(publisher: ResultPublisher, *, task_status: trio.TaskStatus[None]) -> None:
        async with publisher.subscribe("t1") as updates:
            task_status.started()
            assert await rest(updates) == []
            await left.wait()

    async with trio.open_nursery() as nursery:
        async with publishers.open() as publisher:
            await nursery.start(follow, publisher)  # noqa: ASYNC111 - it outlives the publisher
        left.set()


@within(10)
async def test_two_tasks_that_enter_at_once(publisher: ResultPublisher) -> None:
    """One of them is in; the other has to subscribe for itself, and disturbs nobody."""
    got: list[object] = []
    updates = publisher.subscribe("t1")

    async def enter() -> None:
        try:
            async with updates:
                got.append(await outputs(updates))
        except RuntimeError as exc:
            got.append(str(exc))

    await publisher.publish("t1", SUCCESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter)
        nursery.start_soon(enter)
    assert [b"42"] in got
    assert "the block of 't1' was entered before: subscribe again" in got
    async with publisher.subscribe("t1") as again:
        assert await outputs(again) == [b"42"]
