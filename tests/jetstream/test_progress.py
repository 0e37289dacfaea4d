"""Progress over a real server: its bytes, its subject, outages and refusals."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.nats_servers import configured
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    BrokerError,
    Message,
    NATSConfig,
    current_task,
    open_broker,
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
    from pathlib import Path

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


# The connection is lost, or the server does not permit it

USERS = """
authorization { users = [
  {user: all, password: all}
  {user: some, password: some, permissions: {%s}}
] }
"""


@within(10)
async def test_connection_that_is_lost_for_good(server: Server) -> None:
    """Updates end, `wait` says why; a worker with a dispatcher of its own is left as ever."""
    asked = trio.Event()

    async def handle(message: Message) -> None:
        await current_task().dispatcher()
        asked.set()
        await trio.sleep_forever()

    async def follow(dispatcher_url: NATSConfig) -> None:
        with pytest.raises(BrokerError, match="for good"):
            async with open_dispatcher(dispatcher_url) as dispatcher:
                future = await dispatcher.start("coder", Message())
                async with future.updates() as updates:
                    await asked.wait()
                    proxy.cut(for_good=True)
                    with trio.CancelScope(shield=True):
                        assert [update async for update in updates] == []
                        with pytest.raises(BrokerError, match="for good"):
                            await future.wait()
                    await trio.sleep_forever()

    async with open_proxy(server.port) as proxy, trio.open_nursery() as nursery:
        config = NATSConfig(proxy.url, reconnect_timeout=0.2)
        nursery.start_soon(follow, config)
        with pytest.raises(BrokerError, match="for good"):
            async with open_worker(config) as worker:
                await worker.handle("coder", handle)
                await trio.sleep_forever()


@within(10)
async def test_roles_on_one_connection(server: Server) -> None:
    reporter = Reporter()
    async with (
        open_broker(server.url) as broker,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        await worker.handle("coder", reporter)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as updates:
            await reporter.notes.send("one")
            assert note(await anext(updates)) == "one"
            await reporter.notes.aclose()


# Refusals


@within(10)
async def test_subscription_that_is_not_permitted(tmp_path: Path) -> None:
    """It is said each time; the task goes on."""
    users = USERS % 'subscribe: {deny: ["results.*"]}'
    async with configured(tmp_path, users) as server, AsyncExitStack() as stack:
        url = f"127.0.0.1:{server.port}"
        dispatcher = await stack.enter_async_context(open_dispatcher(f"nats://some:some@{url}"))
        future = await dispatcher.start("coder", Message(id="T-1"))
        refusal = r"not permit this user to subscribe to results\.T-1$"
        updates = future.updates()
        for _ in range(2):
            with pytest.raises(BrokerError, match=refusal):
                await anext(updates)
            with pytest.raises(BrokerError, match=refusal):
                async with future.updates():
                    pytest.fail("it was entered")
        assert future._watchers == ()
        async with open_worker(f"nats://all:all@{url}") as worker:
            await worker.handle("coder", echo)
            await future.wait()
        assert [update async for update in updates] == []


@within(10)
async def test_reports_that_are_not_permitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for a connection, and the handler goes on."""
    reporter = Reporter()
    users = USERS % 'publish: {deny: ["results.*"]}'

    def warned() -> int:
        text = "the progress of tasks is not sent"
        return sum(text in message for message in caplog.messages)

    async with configured(tmp_path, users) as server, open_proxy(server.port) as proxy:
        config = NATSConfig(proxy.url, user="some", password="some")
        url = f"nats://all:all@127.0.0.1:{server.port}"
        async with open_worker(config) as worker, open_dispatcher(url) as dispatcher:
            await worker.handle("coder", reporter)
            future = await dispatcher.start("coder", Message())
            await reporter.notes.send("refused")
            await until(lambda: warned() == 1)
            for _ in range(5):
                await reporter.notes.send("not sent")
            connection = worker._broker.connection  # type: ignore[attr-defined]  # NATSBroker's
            proxy.cut()
            await until(lambda: not connection.is_up)
            await connection.wait_up()
            await reporter.notes.send("refused again")
            await until(lambda: warned() == 2)
            await reporter.notes.aclose()
            (await future.wait()).raise_for_status()
    violations = [
        record
        for record in caplog.records
        if record.levelno == logging.ERROR and "violation" in record.getMessage()
    ]
    assert len(violations) == 2
