"""Results in a bucket while the server, or the way to it, goes and comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.bucket_setup import make_bucket
from tests._helpers.nats_servers import kill, restarted
from tests._helpers.proxy import open_proxy
from tests._helpers.publishers import Reader, outputs, pending, success
from trio_swarmtask import BrokerError, ClosedError, NATSConfig, open_broker
from trio_swarmtask._jetstream import _bucket as _watch
from trio_swarmtask.results import PublisherClosedError, ResultNotFoundError, open_kv_publisher
from trio_swarmtask.results._in_bucket import KVPublisher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask.results import ResultPublisher
    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of the slow sweep alone."""
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
@within(60)
async def test_ten_subscriptions_and_a_server_that_is_restarted(
    server: Server, nats_swarm: NATSSwarm, foreign: bool
) -> None:
    """The ends are published at once after it: all ten end with the terminal state."""
    if foreign:
        async with nats_swarm.raw() as raw:
            await make_bucket(raw)
    async with open_kv_publisher(server.url) as publisher, trio.open_nursery() as nursery:
        readers = []
        for number in range(10):
            await publisher.publish(f"t{number}", pending(number))
            readers.append(await nursery.start(Reader(publisher, f"t{number}").run))
        for reader in readers:
            await reader.got(1)
        kill(server)
        async with restarted(server) as again:
            async with open_kv_publisher(again.url) as other:
                for number in range(10):
                    await other.publish(f"t{number}", success(100 + number))
            for reader in readers:
                await reader.ended.wait()
            for number, reader in enumerate(readers):
                assert reader.read[0].output == b"%d" % number
                assert reader.read[-1].output == b"%d" % (100 + number)
                assert len(reader.read) == 2
            # And what comes then is heard as before.
            async with publisher.subscribe("t10") as updates:
                await publisher.publish("t10", success(110))
                assert await outputs(updates) == [b"110"]


@within(60)
async def test_ends_published_by_the_same_publisher_after_a_restart(server: Server) -> None:
    async with open_kv_publisher(server.url) as publisher, trio.open_nursery() as nursery:
        readers = [await nursery.start(Reader(publisher, f"t{n}").run) for n in range(10)]
        for number in range(10):
            await publisher.publish(f"t{number}", pending(number))
        for reader in readers:
            await reader.got(1)  # else the kill may be quicker than what tells of the update
        kill(server)
        for number in range(10):
            nursery.start_soon(publisher.publish, f"t{number}", success(100 + number))
        async with restarted(server):
            for reader in readers:
                await reader.ended.wait()
    for number, reader in enumerate(readers):
        assert [update.output for update in reader.read] == [b"%d" % number, b"%d" % (100 + number)]


@within(30)
async def test_results_outlive_the_server(server: Server) -> None:
    async with open_kv_publisher(server.url) as publisher:
        await publisher.publish("t1", success(1))
        before = await publisher.get("t1")
        kill(server)
        async with restarted(server):
            assert await publisher.get("t1") == before
            assert await publisher.list() == [before]


async def enter(publisher: ResultPublisher) -> None:
    async with publisher.subscribe("t1"):
        pass


CALLS: dict[str, Callable[[ResultPublisher], Awaitable[object]]] = {
    "publish": lambda publisher: publisher.publish("t1", success(2)),
    "get": lambda publisher: publisher.get("t1"),
    "list": lambda publisher: publisher.list(),
    "delete": lambda publisher: publisher.delete("t1"),
    "subscribe": enter,
}


@pytest.mark.parametrize("call", CALLS)
@within(30)
async def test_call_waits_through_an_outage(server: Server, call: str) -> None:
    """Given up before, it leaves nothing."""
    done = trio.Event()

    async def act() -> None:
        await CALLS[call](publisher)
        done.set()

    async with open_kv_publisher(server.url) as publisher, trio.open_nursery() as nursery:
        await publisher.publish("t1", pending(1))
        kill(server)
        with trio.move_on_after(0.2) as scope:
            await CALLS[call](publisher)
        assert scope.cancelled_caught
        nursery.start_soon(act)
        with trio.move_on_after(0.2):
            await done.wait()
        assert not done.is_set()
        async with restarted(server):
            await done.wait()
            if call == "delete":
                with pytest.raises(ResultNotFoundError, match="'t1'"):
                    await publisher.get("t1")
            else:
                got = await publisher.get("t1")
                assert got.output == (b"2" if call == "publish" else b"1")


@pytest.mark.parametrize("call", CALLS)
@within(30)
async def test_closing_ends_what_waits_in_an_outage(server: Server, call: str) -> None:
    """Also with a connection that is shared and so stays, waiting for the server."""
    closed = trio.Event()

    async def act() -> None:
        with pytest.raises(PublisherClosedError, match="the publisher"):
            await CALLS[call](publisher)
        closed.set()

    async with (
        open_broker(server.url) as broker,
        open_kv_publisher(broker) as publisher,
        trio.open_nursery() as nursery,
    ):
        reader = await nursery.start(Reader(publisher, "t2").run)
        kill(server)
        nursery.start_soon(act)
        with trio.move_on_after(0.2):
            await closed.wait()
        assert not closed.is_set()
        await publisher.aclose()
        await closed.wait()
        await reader.ended.wait()


@within(30)
async def test_update_that_was_missed_is_found(server: Server) -> None:
    """Only this publisher's connection was cut; another process went on meanwhile."""
    async with (
        open_proxy(server.port) as proxy,
        open_kv_publisher(proxy.url) as publisher,
        open_kv_publisher(server.url) as other,
        trio.open_nursery() as nursery,
    ):
        await other.publish("t1", pending(1))
        await other.publish("t2", pending(1))
        readers = [await nursery.start(Reader(publisher, f"t{n}").run) for n in range(1, 5)]
        await readers[0].got(1)
        await readers[1].got(1)
        proxy.cut(for_good=True)
        await other.publish("t1", success(2))
        await other.publish("t2", pending(2))
        await other.publish("t2", pending(3))
        await other.publish("t3", pending(4))
        proxy.mend()
        await readers[0].ended.wait()
        await readers[1].got(2)
        await readers[2].got(1)
        for number in (2, 3, 4):
            await other.publish(f"t{number}", success(5))
    for reader, expected in zip(
        readers, ([b"1", b"2"], [b"1", b"3", b"5"], [b"4", b"5"], [b"5"]), strict=True
    ):
        assert [update.output for update in reader.read] == expected


@within(30)
async def test_result_deleted_in_an_outage_ends_the_subscription(server: Server) -> None:
    """With the marker still there, and with it gone: then the task may have begun anew."""
    async with (
        open_proxy(server.port) as proxy,
        open_kv_publisher(proxy.url) as publisher,
        open_kv_publisher(server.url) as other,
        trio.open_nursery() as nursery,
    ):
        await other.publish("t1", pending(1))
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(1)
        proxy.cut(for_good=True)
        await other.delete("t1")
        proxy.mend()
        await reader.ended.wait()
        assert len(reader.read) == 1


@within(30)
async def test_result_that_expired_in_an_outage_ends_the_subscription(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """And its marker is gone too."""
    async with (
        open_proxy(server.port) as proxy,
        open_kv_publisher(proxy.url, ttl=1) as publisher,
        nats_swarm.raw() as raw,
        trio.open_nursery() as nursery,
    ):
        await publisher.publish("t1", pending(1))
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(1)
        proxy.cut(for_good=True)
        while (await raw.api("STREAM.INFO.KV_results"))["state"]["messages"]:  # noqa: ASYNC110 - no event
            await trio.sleep(0.05)
        proxy.mend()
        await reader.ended.wait()
        assert len(reader.read) == 1


@within(30)
async def test_closing_while_missed_updates_are_looked_up(server: Server) -> None:
    """The look-up ends too, and nothing but `PublisherClosedError` is heard of it."""
    async with open_proxy(server.port) as proxy, open_broker(proxy.url) as broker:
        async with open_kv_publisher(broker) as publisher, trio.open_nursery() as nursery:
            assert isinstance(publisher, KVPublisher)
            await publisher.publish("t1", pending(1))
            reader = await nursery.start(Reader(publisher, "t1").run)
            await reader.got(1)
            proxy.freeze()
            publisher._bucket.watches.on_down()  # type: ignore[attr-defined]  # a NATSBucket
            await until(lambda: publisher._bucket._requests._waiting)  # type: ignore[attr-defined]  # it is the NATS one's
            await publisher.aclose()
            await reader.ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            proxy.thaw()
        async with open_kv_publisher(broker) as publisher:
            assert (await publisher.get("t1")).output == b"1"


@within(20)
async def test_look_up_that_the_end_overtakes(server: Server) -> None:
    """Whether it hears of its cancellation or of the closed requests first, is chance."""

    async def look() -> None:
        looked.set()
        raise ClosedError("the requests are closed")

    looked = trio.Event()
    async with open_kv_publisher(server.url) as publisher:
        watches = publisher._bucket.watches  # type: ignore[attr-defined]  # a NATSBucket
        watches.start(look)
        watches.end()
        await looked.wait()
        await publisher.publish("t1", pending(1))
    watches.start(look)  # does nothing: its nursery has ended


@within(30)
async def test_lost_for_good(server: Server) -> None:
    """A bare error out of the block, and out of every call that waits."""
    heard: list[str] = []

    async def expect_lost(call: Callable[[ResultPublisher], Awaitable[object]]) -> None:
        with pytest.raises(BrokerError, match=r"for good: no server for 0\.5 seconds"):
            await call(publisher)
        heard.append("lost")

    config = NATSConfig(server.url, reconnect_timeout=0.5)
    with pytest.raises(BrokerError, match=r"lost .* for good: no server for 0\.5 seconds"):
        async with open_kv_publisher(config) as publisher:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    kill(server)
                    for call in CALLS.values():
                        nursery.start_soon(expect_lost, call)
                await expect_lost(CALLS["get"])
    assert heard == ["lost"] * (len(CALLS) + 1)


@pytest.mark.parametrize("shared", [False, True])
@within(30)
async def test_block_that_only_follows_is_left_by_a_bare_error(
    server: Server, shared: bool
) -> None:
    config = NATSConfig(server.url, reconnect_timeout=0.3)
    with pytest.raises(BrokerError, match=r"lost .* for good: no server for 0\.3 seconds"):
        if shared:
            async with (
                open_broker(config) as broker,
                open_kv_publisher(broker) as publisher,
                publisher.subscribe("t1") as updates,
            ):
                kill(server)
                await anext(updates)
        else:
            async with open_kv_publisher(config) as publisher, publisher.subscribe("t1") as updates:
                kill(server)
                await anext(updates)
