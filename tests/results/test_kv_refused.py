"""Results in a bucket when the server refuses, or answers in the wrong moment."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.bucket_setup import config_of, make_bucket
from tests._helpers.nats_servers import configured
from tests._helpers.proxy import open_proxy
from tests._helpers.publishers import outputs, pending, success
from trio_swarmtask import BrokerError, NATSConfig
from trio_swarmtask._jetstream import _api, _bucket as _watch
from trio_swarmtask._jetstream._api import APIError
from trio_swarmtask._jetstream._bucket import NATSBucket
from trio_swarmtask.results import ResultNotFoundError, ResultPublisher, open_kv_publisher
from trio_swarmtask.results._in_bucket import KVPublisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_swarmtask.server import Server

USERS = """
authorization { users = [
  {user: all, password: all}
  {user: some, password: some, permissions: {%s}}
] }
"""


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of the slow sweep alone, but where it says so."""
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)


def bucket_of(publisher: ResultPublisher) -> NATSBucket:
    assert isinstance(publisher, KVPublisher)
    assert isinstance(publisher._bucket, NATSBucket)
    return publisher._bucket


@asynccontextmanager
async def permitting(
    directory: Path, permissions: str
) -> AsyncIterator[tuple[NATSConfig, ResultPublisher]]:
    """A config of the user with these permissions, and a publisher that may do all."""
    async with (
        configured(directory, USERS % permissions) as server,
        open_kv_publisher(f"nats://all:all@127.0.0.1:{server.port}") as publisher,
    ):
        yield NATSConfig(server.url, user="some", password="some", connect_timeout=2), publisher


@pytest.mark.parametrize(
    ("permissions", "named"),
    [
        ('publish: {deny: ["$JS.API.STREAM.NAMES"]}', r"publish to \$JS\.API\.STREAM\.NAMES"),
        ('publish: {deny: ["$KV.>"]}', r"publish to \$KV\.results\.t1"),
        ('subscribe: {deny: ["kv.>"]}', r"subscribe to kv\.results\.t1"),
        (
            'publish: {deny: ["$JS.API.DIRECT.GET.*.>"]}',
            r"publish to \$JS\.API\.DIRECT\.GET\.KV_results\.\$KV\.results\.t1",
        ),
    ],
)
@within(20)
async def test_permission_that_is_missing(tmp_path: Path, permissions: str, named: str) -> None:
    """Is named by a bare error, and nothing is stored."""
    async with permitting(tmp_path, permissions) as (config, full):
        with pytest.raises(BrokerError, match=rf"does not permit this user to {named}"):
            async with open_kv_publisher(config) as publisher, publisher.subscribe("t1"):
                await publisher.publish("t1", pending(1))
        with pytest.raises(ResultNotFoundError, match="'t1'"):
            await full.get("t1")


@within(20)
async def test_sweep_that_is_not_permitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of, and what is stored is heard of all the same."""
    deny = 'publish: {deny: ["$JS.API.DIRECT.GET.KV_results"]}'
    async with (
        permitting(tmp_path, deny) as (config, full),
        open_kv_publisher(config) as publisher,
        publisher.subscribe("t1") as updates,
    ):
        bucket_of(publisher).watches.on_down()
        await until(lambda: "changes that were missed can't be looked up" in caplog.text)
        await full.publish("t1", success(1))
        assert await outputs(updates) == [b"1"]


@within(30)
async def test_lost_for_good_in_the_middle_of_a_sweep(server: Server) -> None:
    async with open_proxy(server.port) as proxy:
        config = NATSConfig(proxy.url, reconnect_timeout=0.3)
        with pytest.raises(BrokerError, match=r"lost .* for good: no server for 0\.3 seconds"):
            async with open_kv_publisher(config) as publisher, publisher.subscribe("t1") as updates:
                bucket = bucket_of(publisher)
                proxy.freeze()
                bucket.watches.on_down()
                await until(lambda: bucket._requests._waiting)
                proxy.cut(for_good=True)
                await anext(updates)


@within(20)
async def test_bucket_that_is_full(
    server: Server, nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """Publishing waits, with one warning, until there is room."""
    done = trio.Event()

    async def publish(publisher: ResultPublisher) -> None:
        await publisher.publish("t2", success(2))
        done.set()

    async with nats_swarm.raw() as raw:
        config = await make_bucket(raw, max_msgs=1, discard="new")
        async with open_kv_publisher(server.url) as publisher, trio.open_nursery() as nursery:
            await publisher.publish("t1", success(1))
            nursery.start_soon(publish, publisher)
            await until(lambda: "could not store t2, trying again" in caplog.text)
            assert not done.is_set()
            await raw.api("STREAM.UPDATE.KV_results", **{**config, "max_msgs": 2})
            await done.wait()
    assert caplog.text.count("could not store t2") == 1


@within(20)
async def test_somebody_else_s_bucket_that_is_deleted(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """Its place takes one of ours, with all that we need."""
    async with nats_swarm.raw() as raw:
        await make_bucket(raw)
        async with open_kv_publisher(server.url) as publisher:
            await publisher.publish("t1", pending(1))
            await raw.api("STREAM.DELETE.KV_results")
            with pytest.raises(ResultNotFoundError, match="'t1'"):
                await publisher.get("t1")
            await publisher.publish("t1", success(2))
            assert (await config_of(raw))["allow_direct"] is True
            assert (await publisher.get("t1")).output == b"2"


@within(20)
async def test_refusal_that_passes(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up at a leader that is not ready yet is tried again."""
    call, refusals = _api.call, [1, 2]

    async def refuse(requests: Any, request: str, **body: object) -> dict[str, Any]:  # noqa: ANN401 - handed on
        if refusals:
            refusals.pop()
            raise APIError(503, 10008, "JetStream system temporarily unavailable")
        return await call(requests, request, **body)

    async with nats_swarm.raw() as raw:
        await make_bucket(raw)
        async with open_kv_publisher(server.url) as publisher:
            await publisher.publish("t1", success(1))
            monkeypatch.setattr(_api, "call", refuse)
            assert (await publisher.get("t1")).output == b"1"
            assert refusals == []


@within(20)
async def test_bucket_that_is_gone_when_it_is_looked_at(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url) as publisher:
        await raw.api("STREAM.DELETE.KV_results")
        assert await bucket_of(publisher).look() is None
