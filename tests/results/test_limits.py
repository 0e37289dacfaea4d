"""Results that are too large, and results that expire."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.publishers import (
    PENDING,
    KVPublishers,
    Publishers,
    Reader,
    on_shared,
    outputs,
    pending,
    rest,
    success,
)
from trio_swarmtask import MemoryBroker
from trio_swarmtask.results import (
    InvalidResultError,
    Result,
    ResultNotFoundError,
    ResultPublisher,
    ResultStatus,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEPT = 1  # seconds; the shortest that there is


async def refuse(publisher: ResultPublisher, fields: dict[str, Any]) -> None:
    """Before anything is sent: nobody hears of it, and the publisher works on."""
    async with publisher.subscribe("t1") as updates:
        await publisher.publish("t1", pending(1))
        for status in (ResultStatus.PENDING, ResultStatus.SUCCESS):
            with pytest.raises(InvalidResultError, match=r"'t1' has \d+ bytes, more than the \d+"):
                await publisher.publish("t1", Result(status=status, **fields))
        assert (await publisher.get("t1")).output == b"1"
        await publisher.publish("t1", success(2))
        assert await outputs(updates) == [b"1", b"2"]


@pytest.mark.parametrize("variant", ["bus-nats", "kv-nats"])
@pytest.mark.parametrize("field", ["output", "error", "metadata"])
@within(20)
async def test_too_large_for_the_server(publisher: ResultPublisher, field: str) -> None:
    large = "x" * (1024 * 1024)
    values: dict[str, Any] = {"output": large.encode(), "error": large, "metadata": {"a": large}}
    await refuse(publisher, {field: values[field]})


@within(10)
async def test_too_large_for_a_memory_broker(virtual_time: None) -> None:
    async with open_kv_publisher(MemoryBroker(max_payload=1000)) as publisher:
        await refuse(publisher, {"output": b"x" * 700})


@pytest.mark.parametrize("variant", ["memory", "bus-memory"])
@within(10)
async def test_no_limit_in_memory(publisher: ResultPublisher) -> None:
    large = Result(status=ResultStatus.SUCCESS, output=b"x" * (4 * 1024 * 1024))
    await publisher.publish("t1", large)
    assert (await publisher.get("t1")).output == large.output


@pytest.mark.parametrize("variant", ["bus-nats", "kv-nats"])
@within(20)
async def test_as_large_as_it_may_be(publisher: ResultPublisher) -> None:
    """The limit that the error names is exact: one byte more is refused, so much is not."""
    task_id, limit = "x" * 128, 0
    with pytest.raises(InvalidResultError, match="more than the") as caught:
        await publisher.publish(task_id, Result(status=ResultStatus.SUCCESS, error="x" * 2_000_000))
    limit = int(str(caught.value).split("more than the ")[1].split()[0])
    size = int(str(caught.value).split(" has ")[1].split()[0])
    room = limit - (size - 2_000_000) - 50  # a time may be shorter by its microseconds
    async with publisher.subscribe(task_id) as updates:
        await publisher.publish(task_id, Result(status=ResultStatus.SUCCESS, error="x" * room))
        assert [len(update.error) for update in await rest(updates)] == [room]
    await publisher.list()


@pytest.fixture
async def short(publishers: Publishers) -> AsyncIterator[ResultPublisher]:
    """A publisher whose results expire soon."""
    assert isinstance(publishers, KVPublishers)
    async with publishers.open(ttl=KEPT) as publisher:
        yield publisher


async def gone(publisher: ResultPublisher, task_id: str) -> None:
    """Wait until a result has expired, of which nobody tells once its task has ended."""
    with suppress(ResultNotFoundError):
        while await publisher.get(task_id):  # noqa: ASYNC110 - there is no event
            await trio.sleep(0.05)


@on_shared
@within(20)
async def test_expired(short: ResultPublisher) -> None:
    """It is not found, not listed, can't be deleted; and publishing begins anew."""
    long_ago = datetime(2026, 4, 19, tzinfo=UTC)
    await short.publish("t1", Result(status=ResultStatus.SUCCESS, created_at=long_ago))
    await short.publish("t2", Result(status=ResultStatus.PENDING, created_at=long_ago))
    await gone(short, "t1")
    await gone(short, "t2")
    for task_id in ("t1", "t2"):
        for call in (short.get, short.delete):
            with pytest.raises(ResultNotFoundError, match=f"{task_id!r}, or it is gone by now"):
                await call(task_id)
    assert await short.list() == []
    before = datetime.now(UTC)
    for task_id in ("t1", "t2"):
        await short.publish(task_id, PENDING)
        created = (await short.get(task_id)).created_at
        assert created is not None
        assert created >= before


@on_shared
@within(20)
async def test_expiry_ends_a_sleeping_reader(
    publishers: Publishers, short: ResultPublisher
) -> None:
    """In any process, also one that would keep its own for longer."""
    async with publishers.open() as other, trio.open_nursery() as nursery:
        await short.publish("t1", pending(1))
        readers = [await nursery.start(Reader(one, "t1").run) for one in (short, other, short)]
        await readers[0].got(1)
        for reader in readers:
            await reader.ended.wait()
    for reader in readers:
        assert [update.output for update in reader.read] == [b"1"]


@on_shared
@within(20)
async def test_update_begins_the_time_anew(short: ResultPublisher) -> None:
    """Updates that come more often than results expire keep it."""
    async with short.subscribe("t1") as updates:
        deadline = trio.current_time() + 2 * KEPT
        number = 0
        await short.publish("t1", pending(0))
        created = (await anext(updates)).created_at
        while trio.current_time() < deadline:
            # There is no event to wait for: nothing must happen.
            await trio.sleep(0.2)
            number += 1
            await short.publish("t1", pending(number))
            update = await anext(updates)
            assert (update.output, update.created_at) == (b"%d" % number, created)


async def test_no_expiry(virtual_time: None) -> None:
    """Neither after the time that is the default, nor ever."""
    async with open_kv_publisher(MemoryBroker(), ttl=math.inf) as publisher:
        await publisher.publish("t1", pending(1))
        await trio.sleep(2 * 24 * 60 * 60)
        assert (await publisher.get("t1")).output == b"1"


@on_shared
@within(20)
async def test_new_task_after_expiry_is_followed(short: ResultPublisher) -> None:
    await short.publish("t1", pending(1))
    async with short.subscribe("t1") as before:
        await rest(before)
        async with trio.open_nursery() as nursery:
            reader = await nursery.start(Reader(short, "t1").run)
            await reader.got(0)
            await short.publish("t1", pending(2))
            await short.publish("t1", success(3))
    assert [update.output for update in reader.read] == [b"2", b"3"]
