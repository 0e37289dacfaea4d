"""Publishing to a bucket when a request, or the answer to it, is lost on the way."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.proxy import Proxy, open_proxy
from tests._helpers.publishers import FAILED, PENDING, pending, success
from tests.results.test_kv_refused import bucket_of
from trio_swarmtask.results import (
    Result,
    ResultExistsError,
    ResultNotFoundError,
    ResultPublisher,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask.server import Server


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with open_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
async def publisher(proxy: Proxy) -> AsyncIterator[ResultPublisher]:
    """One behind the proxy."""
    async with open_kv_publisher(proxy.url) as publisher:
        yield publisher


@pytest.fixture
async def other(server: Server) -> AsyncIterator[ResultPublisher]:
    """Another process, whose connection stays."""
    async with open_kv_publisher(server.url) as other:
        yield other


@asynccontextmanager
async def losing_a_request(proxy: Proxy, publisher: ResultPublisher) -> AsyncIterator[None]:
    """What is asked for first in the block never reaches the server."""
    requests = bucket_of(publisher)._requests

    async def lose() -> None:
        await until(lambda: requests._waiting)
        proxy.cut()
        proxy.thaw()

    async with trio.open_nursery() as nursery:
        proxy.freeze()
        nursery.start_soon(lose)
        await trio.testing.wait_all_tasks_blocked()
        yield


@pytest.mark.parametrize("known", [False, True], ids=["new here", "known"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (pending(1), pending(2)),
        (pending(1), success(2)),
        (success(1), success(2)),
        (FAILED, success(2)),
    ],
    ids=["pending pending", "pending success", "success success", "failed success"],
)
@within(30)
async def test_request_that_was_lost(
    proxy: Proxy,
    publisher: ResultPublisher,
    other: ResultPublisher,
    old: Result,
    new: Result,
    known: bool,
) -> None:
    """It is sent again, over what was there before: that was no answer to it."""
    if known:
        await publisher.publish("t1", PENDING)
    await other.publish("t1", old)
    created = (await other.get("t1")).created_at
    async with losing_a_request(proxy, publisher):
        await publisher.publish("t1", new)
    got = await other.get("t1")
    assert (got.output, got.created_at) == (b"2", created)


@pytest.mark.parametrize("known", [False, True], ids=["new here", "known"])
@within(30)
async def test_refusal_after_a_request_that_was_lost(
    proxy: Proxy, publisher: ResultPublisher, other: ResultPublisher, known: bool
) -> None:
    """A pending result over an end is refused, however often it had to be sent."""
    if known:
        await publisher.publish("t1", PENDING)
    await other.publish("t1", success(1))
    async with losing_a_request(proxy, publisher):
        with pytest.raises(ResultExistsError, match="'t1' has ended with success"):
            await publisher.publish("t1", pending(2))
    assert (await other.get("t1")).output == b"1"


@within(30)
async def test_request_that_was_lost_over_a_malformed_entry(
    proxy: Proxy, publisher: ResultPublisher, other: ResultPublisher, nats_swarm: NATSSwarm
) -> None:
    async with nats_swarm.raw() as raw:
        await raw.store("$KV.results.t1", b"not JSON")
    async with losing_a_request(proxy, publisher):
        await publisher.publish("t1", success(2))
    assert (await other.get("t1")).output == b"2"


@within(30)
async def test_request_that_was_lost_over_a_deleted_one(
    proxy: Proxy, publisher: ResultPublisher, other: ResultPublisher
) -> None:
    """Whose marker is still there."""
    await other.publish("t1", success(1))
    await other.delete("t1")
    async with losing_a_request(proxy, publisher):
        await publisher.publish("t1", success(2))
    assert (await other.get("t1")).output == b"2"


@within(30)
async def test_delete_that_was_lost(
    proxy: Proxy, publisher: ResultPublisher, other: ResultPublisher
) -> None:
    """The look-up, or the delete: it is sent again; and what is not there is not found."""
    await other.publish("t1", success(1))
    async with losing_a_request(proxy, publisher):
        await publisher.delete("t1")
    async with losing_a_request(proxy, publisher):
        with pytest.raises(ResultNotFoundError, match="'t1'"):
            await publisher.delete("t1")


@within(30)
async def test_answer_that_was_lost(
    proxy: Proxy, publisher: ResultPublisher, other: ResultPublisher, nats_swarm: NATSSwarm
) -> None:
    """The result was stored: it is neither stored again, nor an error."""
    for number, result in enumerate((pending(0), pending(1), success(2))):
        cuts = proxy.cuts
        proxy.cut_at_answer(b'"seq":')
        await publisher.publish("t1", result)
        assert proxy.cuts == cuts + 1
        assert (await other.get("t1")).output == b"%d" % number
    async with nats_swarm.raw() as raw:
        assert (await raw.api("STREAM.INFO.KV_results"))["state"]["last_seq"] == 3
    proxy.cut_at_answer(b'"seq":')
    await publisher.delete("t1")
    with pytest.raises(ResultNotFoundError, match="'t1'"):
        await publisher.get("t1")
