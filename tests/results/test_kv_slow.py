"""A bucket over a link that breaks again and again: what has come of many entries is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, within
from tests._helpers.bucket_setup import make_bucket
from tests._helpers.publishers import Reader
from tests._helpers.slow_link import open_link
from tests.results.test_kv_watch import bucket_of
from trio_swarmtask._jetstream import _bucket as _watch
from trio_swarmtask._jetstream._portions import Portions
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._requests import NoAnswer
from trio_swarmtask.results import Result, ResultStatus, open_kv_publisher

if TYPE_CHECKING:
    from trio_swarmtask._abc import Entry
    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of the slow sweep alone."""
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)


@within(20)
async def test_end_of_an_answer_that_is_lost(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All has come: there is nothing to ask for again."""
    find = Portions.find

    async def lose_the_end(self: Portions, *args: Any) -> list[str]:
        await find(self, *args)
        raise NoAnswer("the connection was lost")

    async with open_kv_publisher(server.url) as publisher:
        bucket = bucket_of(publisher)
        await bucket.put("t1", b"data", 0)
        monkeypatch.setattr(Portions, "find", lose_the_end)
        entries: list[Entry] = []
        assert await bucket.get_some({"t1": None}, entries.append) == ()
        assert [entry.data for entry in entries] == [b"data"]


@within(20)
async def test_keys_of_a_bucket_that_was_deleted(server: Server) -> None:
    """They are gone; looking makes none."""
    async with open_kv_publisher(server.url) as publisher, NATSSwarm(server.url).raw() as raw:
        await raw.api("STREAM.DELETE.KV_results")
        missing: dict[str, None] = dict.fromkeys(["t1", "t2"])
        gone = await bucket_of(publisher).get_some(missing, print)
        assert (gone, missing) == (["t1", "t2"], {})
        assert (await raw.api("STREAM.NAMES"))["streams"] is None


@pytest.mark.parametrize("settings", [{"allow_direct": True}, {}], ids=["direct", "leader"])
@within(30)
async def test_bucket_over_connections_that_break(server: Server, settings: dict[str, Any]) -> None:
    """Listing it, and looking up what is followed."""
    swarm = NATSSwarm(server.url)
    large = Result(status=ResultStatus.SUCCESS, output=b"x" * 70_000)
    async with swarm.raw() as raw, open_link(server.port) as link:
        await make_bucket(raw, **settings)
        async with (
            open_kv_publisher(server.url) as other,
            open_kv_publisher(link.url) as publisher,
            trio.open_nursery() as nursery,
        ):
            names = [f"t{number}" for number in range(10)]
            readers = [await nursery.start(Reader(publisher, name).run) for name in names]
            link.cut(for_good=True)
            for name in names:
                await other.publish(name, large)
            link.allowance = 300_000
            link.mend()
            for reader in readers:
                await reader.ended.wait()
            assert [result.task_id for result in await publisher.list()] == names
        assert link.connections > 6
