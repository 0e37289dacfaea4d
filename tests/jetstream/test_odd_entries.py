"""Entries of buckets that nobody should have put there, and updates that no stream has told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.malformed import ZOO
from tests._helpers.plain_nats import open_plain_client
from tests._helpers.proxy import open_proxy
from trio_swarmtask import Message, open_dispatcher, open_idempotency, open_worker
from trio_swarmtask._idempotency import Claim, _hash
from trio_swarmtask._jetstream import _bucket as _watch
from trio_swarmtask._jetstream._bucket import NATSBucket
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._protocol import Incoming
from trio_swarmtask.results import Result, ResultStatus, open_kv_publisher

if TYPE_CHECKING:
    from trio_swarmtask._abc import Entry
    from trio_swarmtask.server import Server

HASH = _hash("payer", "order-17")
ODD = {name: data for name, data in ZOO.items() if data}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects at once, and looks up nothing by the slow sweep alone."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)


@pytest.mark.parametrize("name", ["not UTF-8 in a value", "deep lists that end", "a large float"])
@within(20)
async def test_odd_entry_that_is_found_after_an_outage(server: Server, name: str) -> None:
    """No block ends, and whoever waits for the key goes on."""
    calls: list[str] = []

    async def pay(message: Message) -> int:
        calls.append(message.id)
        return len(calls)

    async with (
        open_proxy(server.port) as proxy,
        open_idempotency(server.url) as outside,
        open_idempotency(proxy.url) as idempotent,
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await outside._claims.put(HASH, Claim(HASH, "elsewhere").data, 0)
        await worker.handle("payer", idempotent(pay))
        future = await dispatcher.start("payer", Message(idempotency="order-17"))
        bucket = idempotent._outcomes
        await until(lambda: any(one.told[0] for one in bucket.watches.open_ones))  # type: ignore[attr-defined]  # the one of a server
        proxy.cut(for_good=True)
        connection = bucket._connection  # type: ignore[attr-defined]  # as above
        await until(lambda: not connection.is_up)
        entry = await outside._outcomes.get(HASH)
        assert entry is not None
        await outside._outcomes.put(HASH, ODD[name], entry.revision)
        proxy.mend()
        assert (await future.wait()).outputs == 1


FORGED = {
    "nothing": b"",
    "of another key": b"Nats-Subject: $KV.results.t2\r\nNats-Sequence: 1000\r\n",
    "of another bucket": b"Nats-Subject: $KV.other.t1\r\nNats-Sequence: 1000\r\n",
    "without a number": b"Nats-Subject: $KV.results.t1\r\n",
    "with an odd number": b"Nats-Subject: $KV.results.t1\r\nNats-Sequence: 1e3\r\n",
    "with a negative number": b"Nats-Subject: $KV.results.t1\r\nNats-Sequence: -1\r\n",
    "with a huge number": b"Nats-Subject: $KV.results.t1\r\nNats-Sequence: %b\r\n" % (b"9" * 30),
    "not UTF-8": b"Nats-Subject: $KV.results.\xff\r\nNats-Sequence: \xff\r\n",
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
@within(20)
async def test_update_that_is_not_of_the_stream(server: Server, headers: bytes) -> None:
    """It is a reason to look at most, and nothing is believed of it."""
    data = b'{"TaskID":"t1","Status":"success","Output":"Zm9yZ2Vk"}'
    async with (
        open_plain_client(server.port) as client,
        open_kv_publisher(server.url) as publisher,
        publisher.subscribe("t1") as updates,
    ):
        block = b"NATS/1.0\r\n" + headers + b"\r\n" if headers else b""
        await client.publish("kv.results.t1", data, block)
        await client.publish("kv.results.t1", b"\xff", block)
        await client.flush()
        await publisher.publish("t1", Result(status=ResultStatus.PENDING, output=b"1"))
        assert (await anext(updates)).output == b"1"
        await client.publish("kv.results.t1", data, block)
        await client.flush()
        await publisher.publish("t1", Result(status=ResultStatus.SUCCESS, output=b"2"))
        assert [update.output async for update in updates] == [b"2"]


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
@within(20)
async def test_odd_record_of_a_bucket(server: Server, nats_swarm: NATSSwarm, data: bytes) -> None:
    """It is passed over by who follows and lists, and replaced by who publishes."""
    async with (
        nats_swarm.raw() as raw,
        open_kv_publisher(server.url) as publisher,
        publisher.subscribe("t1") as updates,
        trio.open_nursery() as nursery,
    ):
        await raw.store("$KV.results.t1", data)
        assert await publisher.list() == []
        nursery.start_soon(publisher.publish, "t1", Result(status=ResultStatus.SUCCESS))
        assert [update.status async for update in updates] == ["success"]


@within(20)
async def test_update_that_comes_twice(server: Server) -> None:
    """It is no reason to look."""
    async with open_idempotency(server.url) as idempotent:
        bucket = idempotent._outcomes
        assert isinstance(bucket, NATSBucket)
        await bucket.put("t1", b"1", 0)
        told: list[Entry] = []
        async with bucket.watch("t1", told.append):
            await until(lambda: told)
            (watch,) = bucket.watches.open_ones
            where = f"Nats-Subject: {bucket.prefix}t1\r\nNats-Sequence: {told[0].revision}\r\n"
            head = f"NATS/1.0\r\n{where}Nats-Time-Stamp: {told[0].stored_at}\r\n\r\n"
            watch._on_update(Incoming(b"x", None, head.encode(), b"1"))
            assert not watch._hinted
            assert len(told) == 1


@within(20)
async def test_entries_that_were_not_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies before a page is not of it, and a page that is empty is the last."""
    async with open_idempotency(server.url) as idempotent:
        bucket = idempotent._outcomes
        assert isinstance(bucket, NATSBucket)
        await bucket.put("t1", b"1", 0)
        stream = await bucket.stream()
        page = await bucket._page(stream, 0)
        assert [entry.key for entry in page.entries] == ["t1"]
        fetch = bucket._portions.fetch

        async def fetch_all(*args: Any, **which: Any) -> bool:
            await fetch(*args, **{**which, "seq": 1})
            return True

        monkeypatch.setattr(bucket._portions, "fetch", fetch_all)
        page = await bucket._page(stream, page.last)
        assert (list(page.entries), page.more) == ([], False)
