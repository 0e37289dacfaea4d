"""Progress over a real server: its bytes, its subject, outages and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    Message,
    current_task,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._connection import Connection
from trio_swarmtask.bus import open_nats_bus
from trio_swarmtask.results import (
    BusPublisher,
    BusPublisherConfig,
    Result,
    ResultStatus,
    publish_results,
)

if TYPE_CHECKING:
    from trio_swarmtask._nats._protocol import Incoming
    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects at once."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)


class Reporter:
    """A handler that reports each note that it is given."""

    def __init__(self) -> None:
        self.notes, self._read = trio.open_memory_channel[str](0)
        self.reported = 0

    async def __call__(self, message: Message) -> None:
        async for note in self._read:
            await current_task().report(None, note)
            self.reported += 1


def note(update: Result) -> str:
    return (update.metadata or {})["note"]


PENDING, SUCCESS, FAILED = ResultStatus


@within(10)
async def test_bytes_on_the_wire(nats_swarm: NATSSwarm) -> None:
    """Go's struct, on the subject of the Go package."""
    heard: list[Incoming] = []

    async def report(message: Message) -> None:
        await current_task().report(0.25, "a quarter")

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.worker(name="ada") as worker,
        nats_swarm.dispatcher() as dispatcher,
    ):
        raw.connection.subscribe("results.*", heard.append)
        await raw.requests.echo()
        await worker.handle("coder", report)
        await dispatcher.run("coder", Message(id="t-1"))
        await until(lambda: heard)
    (message,) = heard
    assert message.subject == "results.t-1"
    written = msgspec.json.decode(message.data)
    assert list(written) == [
        "TaskID",
        "Status",
        "Output",
        "Error",
        "Metadata",
        "CreatedAt",
        "UpdatedAt",
    ]
    assert (written["TaskID"], written["Status"], written["Output"]) == ("t-1", "pending", None)
    assert written["Metadata"] == {
        "agent": "ada",
        "attempt": "1",
        "progress": "0.25",
        "note": "a quarter",
    }
    assert written["CreatedAt"] == written["UpdatedAt"]


@pytest.mark.parametrize("prefix", ["results", "progress"])
@within(10)
async def test_bus_publisher_announces_no_report_twice(nats_swarm: NATSSwarm, prefix: str) -> None:
    """On the worker's own subjects it leaves reports to the worker; on others it has them all."""
    heard: list[tuple[str, str]] = []
    ended = trio.Event()

    def hear(message: Incoming) -> None:
        update = msgspec.json.decode(message.data)
        heard.append((update["Status"], update["Metadata"].get("note", "")))
        if update["Status"] == "success":
            ended.set()

    reporter = Reporter()
    async with (
        nats_swarm.raw() as raw,
        open_nats_bus(nats_swarm.url) as bus,
        BusPublisher(bus, BusPublisherConfig(subject_prefix=prefix)) as publisher,
        open_nats_bus(nats_swarm.url) as other_bus,
        BusPublisher(other_bus, BusPublisherConfig(subject_prefix=prefix)) as follower,
        nats_swarm.worker() as worker,
        nats_swarm.dispatcher() as dispatcher,
    ):
        raw.connection.subscribe(f"{prefix}.*", hear)
        await raw.requests.echo()
        publish_results(worker, publisher)
        await worker.handle("coder", reporter)
        future = await dispatcher.start("coder", Message(id="t-1"))
        async with follower.subscribe("t-1") as updates:
            await until(lambda: heard)  # that it has begun
            await reporter.notes.send("one")
            async for update in updates:
                if (update.metadata or {}).get("note") == "one":
                    break
            await reporter.notes.aclose()
            (ends,) = [update.status async for update in updates]
            assert ends is SUCCESS
        await future.wait()
        await ended.wait()
    assert heard == [("pending", ""), ("pending", "one"), ("success", "")]


@within(10)
async def test_report_in_an_outage_is_lost(server: Server) -> None:
    """The handler goes on, and so do the updates, when the connections are back."""
    reporter = Reporter()
    async with (
        open_proxy(server.port) as proxy,
        open_worker(proxy.url) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", reporter)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as updates:
            await reporter.notes.send("before")
            assert note(await anext(updates)) == "before"
            connection = worker._broker.connection  # type: ignore[attr-defined]  # NATSBroker's
            proxy.cut(for_good=True)
            await until(lambda: not connection.is_up)
            await reporter.notes.send("lost")
            await until(lambda: reporter.reported == 2)
            proxy.mend()
            await connection.wait_up()
            await reporter.notes.send("after")
            assert note(await anext(updates)) == "after"
            await reporter.notes.aclose()
            assert [update async for update in updates] == []


@within(10)
async def test_updates_go_on_after_an_outage(server: Server) -> None:
    reporter = Reporter()
    async with (
        open_proxy(server.port) as proxy,
        open_worker(server.url) as worker,
        open_dispatcher(proxy.url) as dispatcher,
    ):
        await worker.handle("coder", reporter)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as updates:
            proxy.cut()
            async with future.updates():  # the server listens again
                await reporter.notes.send("after")
                assert note(await anext(updates)) == "after"
                await reporter.notes.aclose()


@within(10)
async def test_reports_of_a_congested_connection_are_dropped(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a handler that reports without pause would fill the memory."""
    reporter = Reporter()
    async with nats_swarm.worker() as worker, nats_swarm.dispatcher() as dispatcher:
        await worker.handle("coder", reporter)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as updates:
            with monkeypatch.context() as patch:
                patch.setattr(Connection, "is_congested", True)
                await reporter.notes.send("dropped")
                await until(lambda: reporter.reported == 1)
            await reporter.notes.send("sent")
            assert note(await anext(updates)) == "sent"
            await reporter.notes.aclose()


@within(10)
async def test_begin_in_an_outage(server: Server) -> None:
    """It waits for the server; and ends with the future, which says why."""
    async with (
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        future = await dispatcher.start("nobody", Message())

        async def follow() -> None:
            assert [update async for update in future.updates()] == []

        proxy.cut(for_good=True)
        nursery.start_soon(follow)
        await until(lambda: future._watchers)
        await dispatcher.aclose()
