"""A bucket whose stream an operator changes while its keys are followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.bucket_setup import config_of
from tests._helpers.nats_servers import configured
from tests._helpers.publishers import Reader, pending, success
from tests.results.test_kv_watch import bucket_of
from trio_swarmtask import BrokerError, NATSConfig
from trio_swarmtask._jetstream import _bucket as _watch
from trio_swarmtask._jetstream._bucket import NATSBucket
from trio_swarmtask._nats._requests import NoResponders
from trio_swarmtask.results import open_kv_publisher

if TYPE_CHECKING:
    from pathlib import Path

    from nats.aio.subscription import Subscription

    from tests._helpers.api_client import Raw
    from trio_swarmtask._jetstream._bucket_stream import BucketStream
    from trio_swarmtask.results import ResultPublisher
    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 0.05)


async def change(raw: Raw, **settings: Any) -> None:
    await raw.api("STREAM.UPDATE.KV_results", **{**await config_of(raw), **settings})


async def follow_anew(publisher: ResultPublisher, updates: str | None) -> None:
    """Wait until all keys are followed there."""
    watches = bucket_of(publisher).watches
    await until(lambda: all(watch.updates == updates for watch in watches.open_ones))


@within(20)
async def test_republish_is_taken_away_and_given_back(
    server: Server,
    nats_swarm: NATSSwarm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Keys are followed in the other way, and no sweep is waited for."""
    async with (
        open_kv_publisher(server.url) as publisher,
        open_kv_publisher(server.url) as other,
        nats_swarm.raw() as raw,
        trio.open_nursery() as nursery,
    ):
        reader = await nursery.start(Reader(publisher, "t1").run)
        await other.publish("t1", pending(0))
        await reader.got(1)
        republish = (await config_of(raw))["republish"]
        for number, (setting, updates) in enumerate([(None, None), (republish, "kv.results.")], 1):
            monkeypatch.setattr(_watch, "SWEEP_SECONDS", 0.05)
            bucket_of(publisher).watches.on_down()  # as after an outage: it looks at once
            await change(raw, republish=setting)
            await follow_anew(publisher, updates)
            monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)
            await other.publish("t1", pending(number))
            await reader.got(number + 1)
        await other.publish("t1", success(9))
        await reader.ended.wait()
    told = [r.getMessage() for r in caplog.records if "republish of changes" in r.getMessage()]
    assert told[0] == (
        "the stream of the bucket results was changed: its republish of changes to was "
        "kv.results., and is None"
    )
    assert len(told) == 2


@within(20)
async def test_hints_are_not_permitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then keys are looked up, now and then."""
    users = """
    authorization { users = [
      {user: all, password: all}
      {user: some, password: some, permissions: {subscribe: {deny: ["$KV.>"]}}}
    ] }
    """
    async with configured(tmp_path, users) as server:
        url = f"nats://all:all@127.0.0.1:{server.port}"
        async with (
            open_kv_publisher(url) as other,
            open_kv_publisher(NATSConfig(server.url, user="some", password="some")) as publisher,
            NATSSwarm(url).raw() as raw,
            trio.open_nursery() as nursery,
        ):
            reader = await nursery.start(Reader(publisher, "t1").run)
            await change(raw, republish=None)
            await until(lambda: "changes of t1 are not heard, and looked up alone" in caplog.text)
            await other.publish("t1", success(1))
            await reader.ended.wait()
    assert caplog.text.count("changes of t1 are not heard") == 1


@within(20)
async def test_bucket_is_deleted_while_it_is_followed(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """What is stored next makes it anew, and is heard."""
    async with (
        open_kv_publisher(server.url) as publisher,
        open_kv_publisher(server.url) as other,
        nats_swarm.raw() as raw,
        trio.open_nursery() as nursery,
    ):
        reader = await nursery.start(Reader(publisher, "t1").run)
        await raw.api("STREAM.DELETE.KV_results")
        await until(lambda: bucket_of(publisher)._stream is None)
        await other.publish("t1", success(1))
        await reader.ended.wait()


@within(20)
async def test_stream_that_has_no_leader(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next round looks again."""
    rounds = 0

    async def fail(self: NATSBucket) -> None:
        nonlocal rounds
        rounds += 1
        raise NoResponders("no leader")

    async with open_kv_publisher(server.url) as publisher, trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        monkeypatch.setattr(NATSBucket, "look", fail)
        await until(lambda: rounds == 3)
        await publisher.publish("t1", success(1))
        await reader.ended.wait()


@within(20)
async def test_key_that_is_let_go_while_it_is_followed_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays behind."""
    subscribe = _watch.NATSWatch._subscribe

    async def end_meanwhile(self: _watch.NATSWatch, stream: BucketStream) -> Subscription:
        subscription = await subscribe(self, stream)
        self.end()
        return subscription

    async with open_kv_publisher(server.url) as publisher:
        bucket = bucket_of(publisher)
        subscriptions = bucket._requests.connection.client._subs
        before = set(subscriptions)
        watch = bucket.watch("t1", print)
        assert isinstance(watch, _watch.NATSWatch)
        await watch.__aenter__()
        monkeypatch.setattr(_watch.NATSWatch, "_subscribe", end_meanwhile)
        await watch.hear_otherwise(await bucket.stream())
        assert set(subscriptions) == before


@within(10)
async def test_connection_that_is_lost_while_keys_are_followed_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is the end, and nothing to be told and passed over."""

    async def lost(*_: object) -> None:
        raise BrokerError("lost for good")

    async with open_kv_publisher(server.url) as publisher:
        bucket = bucket_of(publisher)
        watch = bucket.watch("t1", print)
        assert isinstance(watch, _watch.NATSWatch)
        await watch.__aenter__()
        with monkeypatch.context() as patch:
            patch.setattr(_watch.NATSWatch, "_subscribe", lost)
            patch.setattr(bucket._requests.connection, "lost", BrokerError("lost for good"))
            with pytest.raises(BrokerError, match="lost for good"):
                await watch.hear_otherwise(await bucket.stream())
        watch.end()
