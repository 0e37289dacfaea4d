"""Results in a bucket, updated by several processes at once, and entries that are no results."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, within
from tests._helpers.publishers import FAILED, PENDING, Reader, outputs, pending, rest, success
from trio_swarmtask.results import (
    InvalidResultError,
    Result,
    ResultExistsError,
    ResultNotFoundError,
    ResultStatus,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from trio_swarmtask.results import ResultPublisher
    from trio_swarmtask.server import Server


@within(30)
async def test_updates_of_two_processes_all_apply(server: Server, nats_swarm: NATSSwarm) -> None:
    """Compare-and-set: each over the one before; `created_at` is the first one's."""
    each = 40

    async def update(publisher: ResultPublisher, first: int) -> None:
        for number in range(first, first + each):
            await publisher.publish("t1", pending(number))

    async with (
        open_kv_publisher(server.url) as one,
        open_kv_publisher(server.url) as two,
        open_kv_publisher(server.url, buffer_size=1000) as witness,
        nats_swarm.raw() as raw,
        trio.open_nursery() as nursery,
    ):
        reader = await nursery.start(Reader(witness, "t1").run)
        async with trio.open_nursery() as updates:
            for publisher, first in ((one, 0), (two, 1000), (one, 2000), (two, 3000)):
                updates.start_soon(update, publisher, first)
        await one.publish("t1", success(9999))
        await reader.ended.wait()
        state = (await raw.api("STREAM.INFO.KV_results"))["state"]
    numbers = [int(seen.output) for seen in reader.read]
    assert len(numbers) == len(set(numbers)) == 4 * each + 1
    for first in (0, 1000, 2000, 3000):
        mine = [number for number in numbers if first <= number < first + each]
        assert mine == list(range(first, first + each))
    assert len({seen.created_at for seen in reader.read}) == 1
    assert state["last_seq"] == 4 * each + 1  # nothing was stored twice


@within(30)
async def test_terminal_state_stands_in_a_race(server: Server) -> None:
    """Whoever publishes pending after the end is refused, whatever it remembers."""
    async with open_kv_publisher(server.url) as one, open_kv_publisher(server.url) as two:
        for round_number in range(10):
            task_id = f"t{round_number}"
            refused: list[str] = []

            async def update(publisher: ResultPublisher) -> None:
                try:
                    for number in range(50):
                        await publisher.publish(task_id, pending(number))  # noqa: B023 - in this round
                except ResultExistsError as exc:
                    refused.append(exc.status)  # noqa: B023 - in this round

            async with trio.open_nursery() as nursery:
                nursery.start_soon(update, one)
                nursery.start_soon(update, two)
                for _ in range(3 * round_number):
                    await trio.lowlevel.checkpoint()
                await two.publish(task_id, FAILED)
            assert refused == ["failed"] * 2
            assert (await one.get(task_id)).status == (await two.get(task_id)).status == "failed"


@within(30)
async def test_first_results_of_many_processes(server: Server) -> None:
    """One of them is the first, and all see its `created_at`."""
    async with AsyncExitStack() as stack:
        publishers = [
            await stack.enter_async_context(open_kv_publisher(server.url)) for _ in range(5)
        ]
        async with trio.open_nursery() as nursery:
            for publisher in publishers:
                nursery.start_soon(publisher.publish, "t1", PENDING)
        created = {(await publisher.get("t1")).created_at for publisher in publishers}
        assert len(created) == 1
        for publisher in publishers:
            await publisher.publish("t1", PENDING)
            assert {(await publisher.get("t1")).created_at} == created


@within(30)
async def test_many_tasks_in_turn(server: Server) -> None:
    """More than a publisher remembers, if it remembers any: each keeps its own times."""
    ids = [f"t{number}" for number in range(1200)]

    async def publish_all(result: Result) -> None:
        limit = trio.CapacityLimiter(100)

        async def publish(task_id: str) -> None:
            async with limit:
                await publisher.publish(task_id, result)

        async with trio.open_nursery() as nursery:
            for task_id in ids:
                nursery.start_soon(publish, task_id)

    async with open_kv_publisher(server.url) as publisher:
        await publish_all(pending(1))
        first = {result.task_id: result.created_at for result in await publisher.list()}
        assert set(first) == set(ids)
        for result in (pending(2), FAILED):
            await publish_all(result)
            listed = await publisher.list()
            assert {one.output for one in listed} == {result.output}
            assert {one.task_id: one.created_at for one in listed} == first


BAD = [b"", b"not JSON", b"\xff", b"{}", b'{"TaskID":"t9","Status":"success"}']


@pytest.mark.parametrize("data", BAD)
@within(20)
async def test_malformed_entry(
    server: Server, nats_swarm: NATSSwarm, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """`list` logs and skips it, `get` refuses it, a subscriber waits for a better one."""
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url) as publisher:
        await publisher.publish("good", success(1))
        await raw.store("$KV.results.bad", data)
        with pytest.raises(InvalidResultError, match=r"not a result|a result of task 't9' where"):
            await publisher.get("bad")
        assert caplog.records == []
        assert [result.task_id for result in await publisher.list()] == ["good"]
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("trio_swarmtask.results", logging.ERROR)
        assert record.getMessage().startswith("skipped entry 'bad' of the bucket: ")
        async with publisher.subscribe("bad") as updates:
            await publisher.publish("bad", pending(2))
            assert (await publisher.get("bad")).output == b"2"
            await raw.store("$KV.results.bad", data)
            await publisher.publish("bad", success(3))
            assert await outputs(updates) == [b"2", b"3"]
        await raw.store("$KV.results.bad", data)
        await publisher.delete("bad")
        with pytest.raises(ResultNotFoundError, match="'bad'"):
            await publisher.get("bad")


@within(20)
async def test_malformed_update_is_logged_once_for_several_subscribers(
    server: Server, nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        nats_swarm.raw() as raw,
        open_kv_publisher(server.url) as publisher,
        publisher.subscribe("t1") as one,
        publisher.subscribe("t1") as two,
    ):
        await publisher.publish("t1", pending(1))
        await raw.store("$KV.results.t1", b"not JSON")
        await raw.store("$KV.results.t1", b'{"Status":"success","Output":"Mg=="}')
        assert await outputs(one) == await outputs(two) == [b"1", b"2"]
    assert len(caplog.records) == 1


@within(20)
async def test_strange_message_where_updates_are_heard(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """Published by anybody, not by the stream: it tells nobody anything."""
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url) as publisher:
        updates_on = (await raw.api("STREAM.INFO.KV_results"))["config"]["republish"]["dest"]
        subject = updates_on.removesuffix(">") + "t1"
        async with publisher.subscribe("t1") as updates:
            raw.connection.publish(subject, b'{"Status":"success"}')
            await raw.requests.echo()
            await publisher.publish("t1", pending(1))
            raw.connection.publish(subject, b'{"Status":"success"}')
            await raw.requests.echo()
            await publisher.publish("t1", success(2))
            assert await outputs(updates) == [b"1", b"2"]


@within(20)
async def test_entry_of_a_key_that_is_no_task_id(server: Server, nats_swarm: NATSSwarm) -> None:
    """As a bucket that others use too may have: it disturbs nobody."""
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url) as publisher:
        await raw.store("$KV.results.a.b", b'{"Status":"success"}')
        await publisher.publish("t1", success(1))
        assert [result.task_id for result in await publisher.list()] == ["t1"]


@within(20)
async def test_entry_of_go_s(server: Server, nats_swarm: NATSSwarm) -> None:
    """Stored by a plain client, it is got, listed, followed and updated."""
    data: Any = b'{"TaskID":"t1","Status":"pending","CreatedAt":"2026-04-19T10:20:30.123456789Z"}'
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url) as publisher:
        await raw.store("$KV.results.t1", data)
        got = await publisher.get("t1")
        assert got.created_at is not None
        assert got.created_at.isoformat() == "2026-04-19T10:20:30.123457+00:00"
        assert await publisher.list() == [got]
        async with publisher.subscribe("t1") as updates:
            await publisher.publish("t1", Result(status=ResultStatus.SUCCESS))
            assert [update.created_at for update in await rest(updates)] == [got.created_at] * 2
