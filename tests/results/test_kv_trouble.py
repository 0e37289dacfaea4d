"""Results in a bucket whose stream goes away, whose connection is shared, and in great numbers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, within
from tests._helpers.bucket_setup import config_of, make_bucket, streams_of
from tests._helpers.proxy import open_proxy
from tests._helpers.publishers import Reader, outputs, pending, success
from trio_swarmtask import Message, Status, open_broker, open_dispatcher, open_worker
from trio_swarmtask._jetstream import _bucket as _watch
from trio_swarmtask.results import (
    ResultFilter,
    ResultNotFoundError,
    ResultPublisher,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of the slow sweep alone, but where it says so."""
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)


@within(30)
async def test_stream_that_is_deleted(server: Server, nats_swarm: NATSSwarm) -> None:
    """There is nothing then; the next publish makes it again as it was."""
    async with (
        nats_swarm.raw() as raw,
        open_kv_publisher(server.url) as publisher,
        open_kv_publisher(server.url) as other,
    ):
        await publisher.publish("t1", pending(1))
        await other.publish("t2", success(2))
        before = await config_of(raw)
        for call in (publisher.get, publisher.delete):
            await raw.api("STREAM.DELETE.KV_results")
            with pytest.raises(ResultNotFoundError, match="'t1'"):
                await call("t1")
            await publisher.publish("t1", pending(1))
            assert await config_of(raw) == before
        await raw.api("STREAM.DELETE.KV_results")
        assert await publisher.list() == []
        await other.publish("t1", pending(2))
        await raw.api("STREAM.DELETE.KV_results")
        await publisher.publish("t1", pending(3))
        assert (await other.get("t1")).output == b"3"
        assert await config_of(raw) == before


@within(30)
async def test_subscription_to_a_stream_that_is_made_anew(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """Revisions count from one again; what comes then is followed all the same."""
    async with (
        nats_swarm.raw() as raw,
        open_kv_publisher(server.url) as publisher,
        open_kv_publisher(server.url) as other,
        trio.open_nursery() as nursery,
    ):
        for number in range(20):
            await other.publish("t1", pending(number))
        readers = [await nursery.start(Reader(one, "t1").run) for one in (publisher, other)]
        for reader in readers:
            await reader.got(1)
        await raw.api("STREAM.DELETE.KV_results")
        await other.publish("t1", pending(100))
        for reader in readers:
            await reader.got(2)
        await publisher.publish("t1", success(101))
        for reader in readers:
            await reader.ended.wait()
    for reader in readers:
        assert [update.output for update in reader.read] == [b"19", b"100", b"101"]


@within(30)
async def test_sweep_finds_what_no_message_told(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge by the stream's own API is silent, and somebody else's bucket may be purged so."""
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 0.05)
    async with nats_swarm.raw() as raw:
        await make_bucket(raw)
    async with (
        nats_swarm.raw() as raw,
        open_kv_publisher(server.url) as publisher,
        trio.open_nursery() as nursery,
    ):
        await publisher.publish("t1", pending(1))
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(1)
        await raw.api("STREAM.PURGE.KV_results", filter="$KV.results.t1")
        await reader.ended.wait()
    assert len(reader.read) == 1


@within(60)
async def test_1100_subscriptions_after_an_outage(server: Server) -> None:
    """More than the server looks up in one request; all find their ends."""
    async with (
        open_proxy(server.port) as proxy,
        open_kv_publisher(proxy.url) as publisher,
        open_kv_publisher(server.url) as other,
        trio.open_nursery() as nursery,
    ):
        readers = [Reader(publisher, f"t{number}") for number in range(1100)]
        async with trio.open_nursery() as starting:
            for reader in readers:
                starting.start_soon(nursery.start, reader.run)
        proxy.cut(for_good=True)
        async with trio.open_nursery() as ending:
            for number in range(1100):
                ending.start_soon(other.publish, f"t{number}", success(number))
        proxy.mend()
        for number, reader in enumerate(readers):
            await reader.ended.wait()
            assert [update.output for update in reader.read] == [b"%d" % number]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("history", [1, 3])
@within(60)
async def test_long_listing_of_somebody_else_s_bucket(
    server: Server, nats_swarm: NATSSwarm, history: int, direct: bool
) -> None:
    """More than a page; each ID once, as it was last; what was deleted is not there."""
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url) as before:
        await raw.api("STREAM.DELETE.KV_results")
        await make_bucket(raw, max_msgs_per_subject=history, allow_direct=direct)
        async with open_kv_publisher(server.url) as publisher:
            for number in range(3):
                async with trio.open_nursery() as nursery:
                    for task in range(250):
                        nursery.start_soon(publisher.publish, f"t{task:03}", pending(number))
            for task in range(10):
                await publisher.delete(f"t{task:03}")
            listed = await publisher.list()
            assert sorted(result.task_id for result in listed) == [
                f"t{task:03}" for task in range(10, 250)
            ]
            assert {result.output for result in listed} == {b"2"}
            few = await publisher.list(ResultFilter(limit=5))
            assert list(few) == list(listed[:5])
        assert len(await before.list()) == 240


@within(60)
async def test_listing_while_results_change(server: Server) -> None:
    """No ID comes twice, and none that was there all the time is missing."""
    count = 1500
    stop = trio.Event()

    async def change(publisher: ResultPublisher) -> None:
        number = 0
        while not stop.is_set():
            number = (number + 7) % count
            await publisher.publish(f"t{number:04}", pending(1))

    async with open_kv_publisher(server.url) as publisher, open_kv_publisher(server.url) as other:
        for start in range(0, count, 300):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 300):
                    nursery.start_soon(publisher.publish, f"t{number:04}", pending(0))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(change, other)
            for _ in range(5):
                ids = [result.task_id for result in await publisher.list()]
                assert sorted(ids) == [f"t{number:04}" for number in range(count)]
            stop.set()


@within(30)
async def test_shared_connection(server: Server) -> None:
    """With a dispatcher and a worker; each publisher closed for itself."""
    async with (
        open_broker(server.url) as broker,
        open_dispatcher(broker) as dispatcher,
        open_worker(broker) as worker,
        open_kv_publisher(broker) as first,
    ):
        await worker.handle("coder", echo)
        async with open_kv_publisher(broker) as second, first.subscribe("t1") as updates:
            await second.publish("t1", pending(1))
            await second.aclose()
            assert (await anext(updates)).output == b"1"
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
            await first.publish("t1", success(2))
            assert await outputs(updates) == [b"2"]
        assert (await first.get("t1")).output == b"2"


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
@pytest.mark.parametrize("by", ["aclose", "leaving"])
@within(30)
async def test_update_after_closing_disturbs_nobody(
    server: Server, nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture, foreign: bool, by: str
) -> None:
    """A subscription's block may outlive the publisher, on a connection that stays."""
    left = trio.Event()

    async def follow(publisher: ResultPublisher, *, task_status: trio.TaskStatus[None]) -> None:
        async with publisher.subscribe("t1") as updates:
            task_status.started()
            assert await outputs(updates) == [b"0"]
            await left.wait()

    async with nats_swarm.raw() as raw:
        if foreign:
            await make_bucket(raw)
    async with (
        open_broker(server.url) as broker,
        open_kv_publisher(broker) as other,
        other.subscribe("t1") as updates,
        trio.open_nursery() as nursery,
    ):
        async with open_kv_publisher(broker) as publisher:
            await publisher.publish("t1", pending(0))
            await nursery.start(follow, publisher)  # noqa: ASYNC111 - it outlives the publisher
            if by == "aclose":
                await publisher.aclose()
                await other.publish("t1", pending(1))
        if by == "leaving":
            await other.publish("t1", pending(1))
        await other.publish("t1", success(2))
        assert (await outputs(updates))[-1] == b"2"
        left.set()
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


@within(30)
async def test_nothing_is_left_of_subscriptions(server: Server, nats_swarm: NATSSwarm) -> None:
    """Neither here nor on the server, nor any consumer."""
    async with open_kv_publisher(server.url) as publisher, nats_swarm.raw() as raw:
        client = publisher._bucket._connection.client  # type: ignore[attr-defined]  # a KVPublisher
        before = len(client._subs)
        for _ in range(3):
            async with publisher.subscribe("t1"), publisher.subscribe("t1"):
                assert len(client._subs) == before + 1
            with trio.move_on_after(0) as scope:
                async with publisher.subscribe("t2"):
                    pytest.fail("it was entered")
            assert scope.cancelled_caught
        assert len(client._subs) == before
        assert publisher._topics == {}  # type: ignore[attr-defined]  # a KVPublisher
        info = await raw.api("STREAM.INFO.KV_results")
        assert info["state"]["consumer_count"] == 0
        assert await streams_of(raw) == ["KV_results"]
