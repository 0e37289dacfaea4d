"""Getting and deleting results, and what a closed publisher says; on every publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.publishers import (
    FAILED,
    PENDING,
    SUCCESS,
    Publishers,
    Reader,
    on_heard,
    on_shared,
    rest,
)
from trio_swarmtask import SwarmTaskError
from trio_swarmtask.results import PublisherClosedError, ResultNotFoundError, ResultPublisher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@within(10)
async def test_unknown_id(publisher: ResultPublisher) -> None:
    for call in (publisher.get, publisher.delete):
        with pytest.raises(ResultNotFoundError, match=r"^there is no result of task 't1', or it"):
            await call("t1")
        with pytest.raises(KeyError) as caught:
            await call("t1")
        assert isinstance(caught.value, SwarmTaskError)
        assert isinstance(caught.value, ResultNotFoundError)
        assert caught.value.task_id == "t1"
        assert caught.value.args == ("t1",)


@within(10)
async def test_delete(publisher: ResultPublisher) -> None:
    """Of a pending one and of each that ended; the others stay."""
    for result in (PENDING, SUCCESS, FAILED):
        await publisher.publish("t1", result)
        await publisher.publish("t2", SUCCESS)
        assert await publisher.delete("t1") is None
        with pytest.raises(ResultNotFoundError, match="'t1'"):
            await publisher.get("t1")
        with pytest.raises(ResultNotFoundError, match="'t1'"):
            await publisher.delete("t1")
        assert [result.task_id for result in await publisher.list()] == ["t2"]


@on_shared
@within(10)
async def test_shared_with_another_process(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    await publisher.publish("t1", PENDING)
    assert (await other.get("t1")).status == "pending"
    assert [result.task_id for result in await other.list()] == ["t1"]
    await other.delete("t1")
    with pytest.raises(ResultNotFoundError, match="'t1'"):
        await publisher.get("t1")
    assert await publisher.list() == []
    # The publisher remembers its own update, which is gone.
    await publisher.publish("t1", SUCCESS)
    assert (await other.get("t1")).output == b"42"


@on_shared
@within(30)
async def test_deletes_and_updates_of_two_processes(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    """Each delete removes what there is, or finds nothing; each update is stored."""
    ends: list[str] = []

    async def delete(one: ResultPublisher) -> None:
        try:
            await one.delete("t1")
        except ResultNotFoundError:
            ends.append("not found")
        else:
            ends.append("deleted")

    for _ in range(20):
        ends.clear()
        await publisher.publish("t1", SUCCESS)
        async with trio.open_nursery() as nursery:
            for one in (publisher, other, publisher, other):
                nursery.start_soon(delete, one)
        assert len(ends) == 4
        assert "deleted" in ends
        with pytest.raises(ResultNotFoundError, match="'t1'"):
            await other.get("t1")
        await publisher.publish("t1", PENDING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete, other)
            for _ in range(5):
                nursery.start_soon(publisher.publish, "t1", PENDING)
        await publisher.publish("t1", SUCCESS)
        assert (await other.get("t1")).output == b"42"


@on_shared
@within(10)
async def test_buckets_are_apart(publishers: Publishers, publisher: ResultPublisher) -> None:
    async with publishers.open(bucket="another") as other, other.subscribe("t1") as updates:
        await publisher.publish("t1", SUCCESS)
        await other.publish("t1", FAILED)
        assert [update.status async for update in updates] == ["failed"]
        assert [result.status for result in await publisher.list()] == ["success"]
        await other.delete("t1")
        assert [result.status for result in await publisher.list()] == ["success"]


@on_shared
@within(10)
async def test_results_outlive_the_publisher(publishers: Publishers) -> None:
    async with publishers.open() as publisher:
        await publisher.publish("t1", SUCCESS)
        stored = await publisher.get("t1")
    async with publishers.open() as publisher:
        assert await publisher.get("t1") == stored


async def follow(publisher: ResultPublisher) -> None:
    async with publisher.subscribe("t1") as updates:
        await rest(updates)


CALLS: dict[str, Callable[[ResultPublisher], Awaitable[object]]] = {
    "publish": lambda publisher: publisher.publish("t1", PENDING),
    "get": lambda publisher: publisher.get("t1"),
    "list": lambda publisher: publisher.list(),
    "delete": lambda publisher: publisher.delete("t1"),
    "subscribe": follow,
}


@pytest.mark.parametrize("call", CALLS)
@within(10)
async def test_closed(publisher: ResultPublisher, call: str) -> None:
    await publisher.publish("t1", PENDING)
    await publisher.aclose()
    for _ in range(2):
        with pytest.raises(PublisherClosedError, match="the publisher is closed; open another"):
            await CALLS[call](publisher)
        await publisher.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await CALLS[call](publisher)


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("call", CALLS)
@within(10)
async def test_calls_that_go_on_while_the_publisher_is_closed(
    publisher: ResultPublisher, call: str, steps: int
) -> None:
    """Each ends soon: well, or by the error of a closed publisher, and by no other."""
    ends: list[str] = []

    async def act() -> None:
        try:
            await CALLS[call](publisher)
        except PublisherClosedError:
            ends.append("closed")
        except ResultNotFoundError:
            assert call == "delete"
            ends.append("not there any more")
        else:
            ends.append("done")

    await publisher.publish("t1", PENDING)
    async with publisher.subscribe("t1"), trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(act)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        await publisher.aclose()
    assert len(ends) == 50


@within(10)
async def test_bad_arguments_to_a_closed_publisher(publisher: ResultPublisher) -> None:
    """That it is closed comes first."""
    await publisher.aclose()
    with pytest.raises(PublisherClosedError):
        await publisher.get("")
    with pytest.raises(PublisherClosedError):
        publisher.subscribe("")


@within(10)
async def test_subscription_made_before_closing(publisher: ResultPublisher) -> None:
    """Entered after it, it raises; nothing is left of it."""
    updates = publisher.subscribe("t1")
    await publisher.aclose()
    with pytest.raises(PublisherClosedError, match="the publisher is closed"):
        async with updates:
            pytest.fail("it was entered")


@within(10)
async def test_publisher_is_an_async_resource(publishers: Publishers) -> None:
    """``async with`` closes it, whoever opened it."""
    async with publishers.open() as publisher:
        assert isinstance(publisher, trio.abc.AsyncResource)
        async with publisher as same:
            assert same is publisher
            await publisher.publish("t1", SUCCESS)
        with pytest.raises(PublisherClosedError, match="the publisher is closed"):
            await publisher.get("t1")


@within(10)
async def test_leaving_the_block_closes(publishers: Publishers) -> None:
    async with trio.open_nursery() as nursery:
        async with publishers.open() as publisher:
            reader = await nursery.start(Reader(publisher, "t1").run)  # noqa: ASYNC111 - it outlives the publisher
        await reader.ended.wait()
    for call in CALLS.values():
        with pytest.raises(PublisherClosedError, match="the publisher is closed"):
            await call(publisher)


@within(10)
async def test_exception_leaves_the_block_as_it_was_raised(publishers: Publishers) -> None:
    """Not in an exception group."""
    error = LookupError("mine")
    with pytest.raises(LookupError, match="mine") as caught:
        async with publishers.open() as publisher:
            await publisher.publish("t1", SUCCESS)
            raise error
    assert caught.value is error
    with pytest.raises(PublisherClosedError, match="the publisher is closed"):
        await publisher.get("t1")


@on_heard
@within(10)
async def test_closing_one_leaves_the_other(
    publishers: Publishers, publisher: ResultPublisher
) -> None:
    async with publishers.open() as other:
        await other.publish("t1", PENDING)
    async with publisher.subscribe("t2") as updates:
        await publisher.publish("t2", SUCCESS)
        assert [update.output for update in await rest(updates)] == [b"42"]
