"""Following a key of a bucket: answers and messages that cross each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.bucket_setup import make_bucket
from tests._helpers.proxy import open_proxy
from tests._helpers.publishers import Reader, pending, success
from tests.results.test_kv_refused import bucket_of
from trio_swarmtask import open_broker
from trio_swarmtask._jetstream import _bucket as _watch, _portions
from trio_swarmtask._jetstream._api import APIError
from trio_swarmtask.results import Result, ResultStatus, open_kv_publisher

if TYPE_CHECKING:
    from trio_swarmtask._abc import Entry
    from trio_swarmtask.server import Server

REPUBLISH = {"src": "$KV.results.>", "dest": "copies.of.>"}


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of the slow sweep alone."""
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)


@within(20)
async def test_subscription_left_while_its_key_is_looked_up(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes too late, and disturbs nobody."""
    reached, go_on = trio.Event(), trio.Event()
    async with nats_swarm.raw() as raw:
        await make_bucket(raw)  # without republish: a message is a hint to look
        async with open_kv_publisher(server.url) as publisher:
            bucket = bucket_of(publisher)
            get = bucket.get

            async def slow_get(key: str) -> Entry | None:
                entry = await get(key)
                reached.set()
                await go_on.wait()
                return entry

            async with publisher.subscribe("t1") as updates:
                monkeypatch.setattr(bucket, "get", slow_get)
                await raw.store("$KV.results.t1", b'{"Status":"success"}')
                await reached.wait()
            monkeypatch.setattr(bucket, "get", get)
            go_on.set()
            await trio.testing.wait_all_tasks_blocked()
            assert [update async for update in updates] == []
            assert (await publisher.get("t1")).status == "success"


@within(20)
async def test_answer_that_is_older_than_what_was_heard(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up does not take an update back that was told while it was under way."""
    reached, go_on = trio.Event(), trio.Event()
    async with (
        nats_swarm.raw() as raw,
        open_kv_publisher(server.url) as publisher,
        open_kv_publisher(server.url) as other,
        trio.open_nursery() as nursery,
    ):
        for number in (0, 1):
            await other.publish("t1", pending(number))
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(1)
        bucket = bucket_of(publisher)
        get = bucket.get

        async def slow_get(key: str) -> Entry | None:
            entry = await get(key)
            reached.set()
            await go_on.wait()
            return entry

        monkeypatch.setattr(bucket, "get", slow_get)
        raw.connection.publish("kv.results.t1", b"what makes it look")
        await reached.wait()
        await other.publish("t1", pending(2))
        await reader.got(2)
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        async with publisher.subscribe("t1") as late:
            assert (await anext(late)).output == b"2"
        await other.publish("t1", success(3))
        await reader.ended.wait()
    assert [update.output for update in reader.read] == [b"1", b"2", b"3"]


@within(20)
async def test_hint_of_a_change_that_is_refused(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without republish it is heard all the same: it is looked for a while, and tells nothing."""
    monkeypatch.setattr(_watch, "_LAST_LOOK", 0.05)
    looks: list[str] = []
    async with nats_swarm.raw() as raw:
        await make_bucket(raw)
        async with open_kv_publisher(server.url) as publisher:
            bucket = bucket_of(publisher)
            get = bucket.get

            async def counted_get(key: str) -> Entry | None:
                looks.append(key)
                return await get(key)

            async with publisher.subscribe("t1") as updates:
                monkeypatch.setattr(bucket, "get", counted_get)
                with pytest.raises(APIError, match="wrong last sequence"):
                    await raw.store(
                        "$KV.results.t1",
                        b'{"Status":"success"}',
                        {"Nats-Expected-Last-Subject-Sequence": "77"},
                    )
                (watch,) = bucket.watches.open_ones
                await until(lambda: len(looks) == 3 and not watch._following)
                await raw.store("$KV.results.t1", b'{"Status":"failed","Error":"theirs"}')
                assert [update.error async for update in updates] == ["theirs"]


@within(20)
async def test_hint_that_comes_while_subscribing(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change after the first look and before its answer is not missed."""
    async with nats_swarm.raw() as raw:
        await make_bucket(raw)
        async with (
            open_kv_publisher(server.url) as publisher,
            open_kv_publisher(server.url) as other,
            trio.open_nursery() as nursery,
        ):
            await other.publish("t1", pending(1))
            bucket = bucket_of(publisher)
            get = bucket.get

            async def stale_get(key: str) -> Entry | None:
                entry = await get(key)
                monkeypatch.setattr(bucket, "get", get)
                await other.publish("t1", success(2))
                await bucket._requests.echo()  # so the hint is here, too
                return entry

            monkeypatch.setattr(bucket, "get", stale_get)
            reader = await nursery.start(Reader(publisher, "t1").run)
            await reader.ended.wait()
    assert [update.output for update in reader.read] == [b"1", b"2"]


@pytest.mark.parametrize("settings", [{}, {"republish": REPUBLISH}], ids=["hints", "republish"])
@within(60)
async def test_leaving_the_publisher_in_the_moment_of_an_update(
    server: Server, nats_swarm: NATSSwarm, settings: dict[str, object]
) -> None:
    """Whatever is begun then about the update, nothing of it comes out of the block."""
    async with nats_swarm.raw() as raw:
        await make_bucket(raw, **settings)
    async with open_broker(server.url) as broker, open_kv_publisher(broker) as other:
        for steps in [*range(60)] * 5:
            async with trio.open_nursery() as nursery:
                async with open_kv_publisher(broker) as publisher:
                    reader = await nursery.start(Reader(publisher, "t1").run)  # noqa: ASYNC111 - it outlives the publisher
                    nursery.start_soon(other.publish, "t1", pending(steps))
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                await reader.ended.wait()


@within(20)
async def test_look_up_that_takes_several_answers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends as much as it is allowed to; the rest is asked for again."""
    monkeypatch.setattr(_portions, "_FIRST", 1000)
    monkeypatch.setattr(_portions, "_MOST", 1000)
    async with (
        open_proxy(server.port) as proxy,
        open_kv_publisher(proxy.url) as publisher,
        open_kv_publisher(server.url) as other,
        trio.open_nursery() as nursery,
    ):
        readers = [await nursery.start(Reader(publisher, f"t{number}").run) for number in range(7)]
        proxy.cut(for_good=True)
        for number in range(0, 7, 2):
            await other.publish(
                f"t{number}", Result(status=ResultStatus.SUCCESS, output=b"x" * 900)
            )
        proxy.mend()
        for reader in readers[::2]:
            await reader.ended.wait()
        assert [len(reader.read) for reader in readers] == [1, 0, 1, 0, 1, 0, 1]
        await publisher.aclose()


@within(20)
async def test_bucket_that_is_deleted_before_a_store(server: Server, nats_swarm: NATSSwarm) -> None:
    """After the look at what is there: it is made anew, as `publish` does."""
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url) as publisher:
        await raw.api("STREAM.DELETE.KV_results")
        await bucket_of(publisher).put("t1", b"data", 0)
        entry = await bucket_of(publisher).get("t1")
    assert entry is not None
    assert (entry.revision, entry.data) == (1, b"data")
