"""The fast ways in and out, piece by piece: what is read and written without nats-py's help."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from msgspec import structs
from nats.aio.transport import TcpTransport

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.proxy import open_proxy
from tests._helpers.stream_setup import REPUBLISH, make
from trio_swarmtask import (
    InvalidMessageError,
    Message,
    NATSConfig,
    Status,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._nats import _client, _connection, _versions
from trio_swarmtask._nats._connection import Connection, open_connection
from trio_swarmtask._nats._requests import open_requests
from trio_swarmtask._worker import _capability as _service

if TYPE_CHECKING:
    from trio_swarmtask._nats._protocol import Incoming
    from trio_swarmtask.server import Server


fast = pytest.mark.skipif(
    not _versions.is_known("nats-py"),
    reason="a nats-py that is not known reads and writes by itself",
)


@fast
@within(20)
async def test_what_the_server_would_not_take_is_not_sent(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        limit = raw.connection.client.max_payload
        with pytest.raises(InvalidMessageError, match=rf"{limit + 1} bytes on x: the server takes"):
            raw.connection.publish("x", b"x" * (limit + 1))
        with pytest.raises(InvalidMessageError, match="a header of more than one line"):
            raw.connection.publish("x", headers={"a": "b\r\nPUB y 0\r\n"})
        await raw.requests.echo()


@within(20)
async def test_largest_that_is_taken_is_one_size(nats_swarm: NATSSwarm) -> None:
    """By whatever way it goes: what fits at first, and not with the headers of a second try."""
    limit = 1024 * 1024

    async def answer(message: Message) -> str:
        return "x" * int(message.inputs["size"])

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", answer)
        result = await dispatcher.run("coder", Message(inputs={"size": "1"}))
        now = datetime.now(UTC)
        large = Message(submitted_by="me", created_at=now, submitted_at=now, inputs={"a": ""})
        room = limit - len(structs.replace(large, id=result.id).encode())
        large.inputs["a"] = "x" * (room - 120)
        for call in (dispatcher.run, dispatcher.start):
            with pytest.raises(InvalidMessageError, match=r"larger than the \d+ that the"):
                await call("coder", large)
        size = str(limit - len(result.encode()) - 10)
        too_large = await dispatcher.run("coder", Message(inputs={"size": size}))
        assert "larger than" in too_large.error


@within(20)
async def test_header_that_is_not_ascii(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        heard: list[Incoming] = []
        raw.connection.subscribe("x", heard.append)
        raw.connection.publish("x", b"data", headers={"a": "é", "b": "c"})
        await raw.requests.echo()
        (message,) = heard
        assert message.headers == {"a": "é", "b": "c"}
        assert [message.header(name) for name in (b"a", b"b", b"c")] == ["é", "c", ""]
        assert message.data == b"data"


@fast
@within(20)
async def test_more_than_the_system_takes_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits at the transport, counts as unsent, and arrives whole and in order."""
    monkeypatch.setattr(_connection, "_HIGH_WATER", 1 << 20)
    size, count = 1 << 19, 40
    heard: list[tuple[int, bytes]] = []
    async with (
        open_proxy(server.port) as proxy,
        open_connection(NATSConfig(proxy.url)) as connection,
        trio.open_nursery() as nursery,
        open_requests(connection, nursery) as requests,
    ):

        def hear(message: Incoming) -> None:
            heard.append((len(message.data), message.data[:9]))

        connection.subscribe("x", hear)
        await requests.echo()
        proxy.freeze()
        for number in range(count):
            connection.publish("x", b"%09d" % number + b"x" * size)
        await until(lambda: connection.client.has_backlog)
        assert connection.is_congested
        proxy.thaw()
        await connection.wait_room()
        await until(lambda: len(heard) == count)
        assert heard == [(size + 9, b"%09d" % number) for number in range(count)]
        assert not connection.is_congested
        nursery.cancel_scope.cancel()


@fast
@within(20)
async def test_write_that_fails_is_told_and_the_next_one_is_made(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(client: _client.Client) -> bool:
        monkeypatch.undo()
        raise LookupError("mine")

    async with nats_swarm.raw() as raw:
        monkeypatch.setattr(_client.Client, "write_held", fail)
        await raw.requests.echo()
    assert "writing to the connection failed" in caplog.text


@within(20)
async def test_attempt_to_connect_that_swallows_its_cancellation(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `asyncio.wait_for` may before Python 3.12. Else it opens a socket that nobody closes."""
    trying = trio.Event()
    attempts_ended: list[bool] = []
    abort = _client.Client.abort

    def note(client: _client.Client) -> None:
        task = client._reconnection_task
        attempts_ended.append(task is None or task.done())
        abort(client)

    async def swallow(transport: TcpTransport, *args: object, **options: object) -> None:
        trying.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:  # noqa: ASYNC103 - that is the point
            await asyncio.sleep(60)  # noqa: ASYNC102 - as above

    async with open_proxy(server.port) as proxy, open_connection(NATSConfig(proxy.url)):
        monkeypatch.setattr(TcpTransport, "connect", swallow)
        proxy.cut(for_good=True)
        await trying.wait()
        monkeypatch.setattr(_client.Client, "abort", note)
    assert attempts_ended == [True]


@within(20)
async def test_unknown_version_of_the_client(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads, writes and publishes by itself, which is told once, with what to do."""
    monkeypatch.setattr("nats.aio.client.__version__", "2.999.0")
    monkeypatch.setattr(_versions, "_told", set())
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        for _ in range(3):
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert dispatcher.statistics().started == 3
    told = [one.getMessage() for one in caplog.records if "not known" in one.getMessage()]
    assert len([text for text in told if text.startswith("nats-py 2.999.0 is not known")]) == 1
    assert "Install nats-py 2.16.*" in caplog.text


@within(20)
async def test_run_where_there_is_no_room_or_no_connection(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        open_proxy(server.port) as proxy,
        open_broker(proxy.url) as broker,
        open_dispatcher(broker) as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
        congested = iter([True, False, False, False])
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "is_congested", property(lambda _: next(congested)))
            await dispatcher.run("coder", Message())
        proxy.cut(for_good=True)
        connection = broker.connection  # type: ignore[attr-defined]  # of a NATSBroker
        await until(lambda: not connection.is_up)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher.run, "coder", Message())
            await trio.testing.wait_all_tasks_blocked()
            proxy.mend()
        assert dispatcher.statistics().started == 3
        assert dispatcher.statistics().resolved == 3


@within(20)
async def test_leaving_with_results_that_are_on_their_way(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """A worker waits for what it has sent; what gets no answer is given up in time."""
    nats_swarm.configure(ack_wait=1)
    async with open_proxy(server.port) as proxy, nats_swarm.dispatcher() as dispatcher:
        config = NATSConfig(proxy.url, ack_wait=1)
        with trio.fail_after(10):
            async with open_worker(config) as worker:

                async def freeze(message: Message) -> None:
                    proxy.freeze()

                await worker.handle("coder", freeze)
                future = await dispatcher.start("coder", Message())
                await until(lambda: worker._services["coder"].lanes._settling)
        proxy.thaw()
        async with nats_swarm.worker() as other:
            await other.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_results_that_wait_to_be_stored_are_not_without_limit(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_service, "_UNSETTLED", 3)
    ran: list[str] = []

    async def note(message: Message) -> None:
        ran.append(message.id)

    async with nats_swarm.raw() as raw:
        limits: dict[str, Any] = {"max_msgs": 1, "discard": "new", "republish": REPUBLISH}
        await make(raw, "ANSWERS", "done.>", **limits)
        await raw.store("done.filler", b"")
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", note, max_in_flight=1)
            futures = [await dispatcher.start("coder", Message()) for _ in range(20)]
            await until(lambda: len(ran) >= 4)
            for _ in range(20):
                await raw.requests.echo()
            assert len(ran) <= 5
            limits["max_msgs"] = 99
            await raw.api("STREAM.UPDATE.ANSWERS", name="ANSWERS", subjects=["done.>"], **limits)
            for future in futures:
                await future.wait()
    assert len(ran) == 20
