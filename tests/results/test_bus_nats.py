"""The publisher on the bus of a real server: what Go agents send and read, and outages."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.nats_servers import kill, restarted
from tests._helpers.publishers import FAILED, Reader, outputs, pending, rest, success
from trio_swarmtask import BrokerError, NATSConfig
from trio_swarmtask._nats._bus import NATSBus
from trio_swarmtask.bus import open_nats_bus
from trio_swarmtask.results import (
    BusPublisher,
    PublisherClosedError,
    Result,
    ResultStatus,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask.bus import MessageBus
    from trio_swarmtask.server import Server

WIRE = Path(__file__).parents[1] / "wire"
FIELDS = ["TaskID", "Status", "Output", "Error", "Metadata", "CreatedAt", "UpdatedAt"]


@asynccontextmanager
async def open_publisher(server: Server | str) -> AsyncIterator[BusPublisher]:
    url = server if isinstance(server, str) else server.url
    async with open_nats_bus(url) as bus, BusPublisher(bus) as publisher:
        yield publisher


async def down(bus: MessageBus) -> None:
    """Wait until the bus knows of an outage; what is sent before that is lost without a word."""
    assert isinstance(bus, NATSBus)
    await until(lambda: not bus._connection.is_up)


@pytest.mark.parametrize("end", ["stored-success", "stored-failed"])
@within(20)
async def test_go_agent_is_followed(server: Server, nats_swarm: NATSSwarm, end: str) -> None:
    """A plain client plays Go's envelopes on ``results.<id>``."""
    data = (WIRE / f"{end}.json").read_bytes()
    task_id = json.loads(data)["TaskID"]
    first = (WIRE / "stored-pending.json").read_bytes().replace(b"t-1", task_id.encode())
    async with nats_swarm.raw() as raw, open_publisher(server) as publisher:
        async with publisher.subscribe(task_id) as updates:
            for envelope in (first, data, first):
                raw.connection.publish(f"results.{task_id}", envelope)
            got = await rest(updates)
        stored = await publisher.get(task_id)
    assert [update.task_id for update in got] == [task_id] * 2
    assert got[0].status is ResultStatus.PENDING
    assert got[1] == stored
    if end == "stored-success":
        assert (got[1].output, got[1].metadata) == (b'{"answer": 42}', {"model": "m"})
    else:
        assert (got[1].status, got[1].error) == ("failed", "disk full")
    assert got[1].created_at == got[0].created_at


@within(20)
async def test_go_agent_can_read_what_is_published(server: Server, nats_swarm: NATSSwarm) -> None:
    """A plain subscriber on ``results.*`` gets Go's fields, of the types that Go takes."""
    async with nats_swarm.raw() as raw, open_publisher(server) as publisher:
        send, receive = trio.open_memory_channel[tuple[str, bytes]](10)
        raw.connection.subscribe(
            "results.*", lambda message: send.send_nowait((message.subject, message.data))
        )
        await raw.requests.echo()
        await publisher.publish("t1", Result(status=ResultStatus.PENDING))
        full = Result(
            status=ResultStatus.SUCCESS, output=b"\0\xff", error="é", metadata={"model": "m"}
        )
        await publisher.publish("t1", full)
        heard = [await receive.receive() for _ in range(2)]
        stored = await publisher.get("t1")
    assert [subject for subject, _ in heard] == ["results.t1"] * 2
    blank, filled = [json.loads(data) for _, data in heard]
    assert list(blank) == list(filled) == FIELDS
    assert blank["CreatedAt"].endswith("Z")
    assert {name: blank[name] for name in FIELDS[:5]} == {
        "TaskID": "t1",
        "Status": "pending",
        "Output": None,
        "Error": "",
        "Metadata": None,
    }
    assert {name: filled[name] for name in FIELDS[:5]} == {
        "TaskID": "t1",
        "Status": "success",
        "Output": "AP8=",
        "Error": "é",
        "Metadata": {"model": "m"},
    }
    assert filled["CreatedAt"] == blank["CreatedAt"]
    assert stored.updated_at is not None
    assert filled["UpdatedAt"] == stored.updated_at.isoformat().replace("+00:00", "Z")


@within(20)
async def test_makes_no_stream(server: Server, nats_swarm: NATSSwarm) -> None:
    async with open_publisher(server) as publisher, publisher.subscribe("t1") as updates:
        await publisher.publish("t1", success(1))
        assert await outputs(updates) == [b"1"]
    async with nats_swarm.raw() as raw:
        assert not (await raw.api("STREAM.NAMES")).get("streams")


@pytest.mark.parametrize("call", ["publish", "enter"])
@within(20)
async def test_closing_ends_what_waits_in_an_outage(server: Server, call: str) -> None:
    """The bus stays, waiting for the server."""
    closed = trio.Event()

    async def act() -> None:
        with pytest.raises(PublisherClosedError, match="the publisher"):
            if call == "publish":
                await publisher.publish("t1", pending(1))
            else:
                async with publisher.subscribe("t1"):
                    pytest.fail("it was entered")
        closed.set()

    async with open_nats_bus(server.url) as bus, trio.open_nursery() as nursery:
        publisher = BusPublisher(bus)
        kill(server)
        await down(bus)
        nursery.start_soon(act)
        with trio.move_on_after(0.3):
            await closed.wait()
        assert not closed.is_set()
        await publisher.aclose()
        await closed.wait()


@within(30)
async def test_publish_waits_through_an_outage(server: Server) -> None:
    """And subscriptions go on after it; given up, a publish leaves nothing."""
    async with (
        open_publisher(server) as publisher,
        open_publisher(server) as other,
        trio.open_nursery() as nursery,
    ):
        readers = [await nursery.start(Reader(one, "t1").run) for one in (publisher, other)]
        await publisher.publish("t1", pending(1))
        for reader in readers:
            await reader.got(1)
        kill(server)
        await down(publisher._bus)
        with trio.move_on_after(0.3) as scope:
            await publisher.publish("t1", pending(2))
        assert scope.cancelled_caught
        assert (await publisher.get("t1")).output == b"1"
        async with restarted(server):
            # At most once: the other may not be back when this is announced.
            await publisher.publish("t1", pending(3))
            await readers[0].got(2)
            while not readers[1].ended.is_set():
                await publisher.publish("t1", FAILED)
                with trio.move_on_after(0.1):
                    await readers[1].ended.wait()
    assert [update.output for update in readers[0].read[:2]] == [b"1", b"3"]
    assert readers[0].read[-1].status == readers[1].read[-1].status == "failed"


@within(20)
async def test_bus_that_is_lost_for_good(server: Server) -> None:
    """Subscriptions end with its error."""
    config = NATSConfig(server.url, reconnect_timeout=0.3)
    heard: list[str] = []

    async def follow(publisher: BusPublisher, *, task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(BrokerError, match="for good"):
            async with publisher.subscribe("t1") as updates:
                task_status.started()
                await rest(updates)
        heard.append("lost")

    async with trio.open_nursery() as nursery:
        with pytest.raises(BrokerError, match=r"lost .* for good: no server for 0\.3 seconds"):
            async with open_nats_bus(config) as bus:
                publisher = BusPublisher(bus)
                for _ in range(2):
                    await nursery.start(follow, publisher)
                kill(server)
                await trio.sleep_forever()
    assert heard == ["lost"] * 2


@within(20)
async def test_closed_bus_ends_subscriptions(server: Server) -> None:
    async with trio.open_nursery() as nursery, open_nats_bus(server.url) as bus:
        publisher = BusPublisher(bus)
        reader = await nursery.start(Reader(publisher, "t1").run)
        await bus.aclose()
        await reader.ended.wait()
