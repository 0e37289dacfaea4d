"""Opening a bus on a real server, sharing a connection, and other clients beside it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.buses import answer, beside
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    BrokerError,
    MemoryBroker,
    Message,
    NATSConfig,
    SwarmTaskError,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._nats import _connection, _requests
from trio_swarmtask.bus import BusClosedError, BusMessage, NoRespondersError, open_nats_bus
from trio_swarmtask.server import Server, _open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask.bus import MessageBus


async def use(bus: MessageBus) -> None:
    """A message, a request and its reply; all before it has been served by the server."""
    async with bus.subscribe("use.*") as messages:
        await bus.publish("use.it", b"1")
        assert await anext(messages) == BusMessage("use.it", b"1")
        async with beside(answer, bus, messages):
            assert (await bus.request("use.it", b"2")).data == b"[2]"


@pytest.mark.parametrize("how", ["url", "config", "environment"])
@within(20)
async def test_open(server: Server, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", server.url if how == "environment" else "nats://127.0.0.1:1")
    given: dict[str, str | NATSConfig] = {"url": server.url, "config": NATSConfig(server.url)}
    async with open_nats_bus(given.get(how)) as bus:
        await use(bus)
        assert bus.max_payload == 1 << 20


@pytest.mark.parametrize("broker", [MemoryBroker(), 5, b"nats://127.0.0.1"])
@within(20)
async def test_what_has_no_server(broker: Any) -> None:  # noqa: ANN401 - wrong on purpose
    remedy = "has no server: use MemoryBus" if isinstance(broker, MemoryBroker) else "can't be a"
    with pytest.raises(TypeError, match=f"a {type(broker).__name__} {remedy}"):
        async with open_nats_bus(broker):
            pytest.fail("it was opened")


@within(20)
async def test_no_server() -> None:
    told = r"no NATS server at nats://127\.0\.0\.1:1 within 0\.3 seconds"
    with pytest.raises(BrokerError, match=told):
        async with open_nats_bus(NATSConfig("nats://127.0.0.1:1", connect_timeout=0.3)):
            pytest.fail("it was opened")


@within(20)
async def test_shared_broker(server: Server) -> None:
    """Two buses on one connection. Leaving their blocks takes away what was theirs, and no more."""
    async with open_broker(server.url) as broker:
        shared = broker.connection  # type: ignore[attr-defined]  # it is the NATS one's
        before = [set(shared.client._subs), [*shared._listeners]]
        async with open_nats_bus(broker) as one, open_nats_bus(broker, buffer_size=1) as two:
            async with one.subscribe("a") as many, two.subscribe("a") as few:
                for data in (b"1", b"2"):
                    await one.publish("a", data)
                await use(one)
                await use(two)
                await one.aclose()
                await use(two)
            assert [message.data async for message in many] == [b"1", b"2"]
            assert [message.data async for message in few] == [b"2"]
        assert [set(shared.client._subs), [*shared._listeners]] == before
        async with open_worker(broker) as worker, open_dispatcher(broker) as dispatcher:
            await worker.handle("coder", echo)
            assert (await dispatcher.run("coder", Message(inputs={"a": "b"}))).outputs == {"a": "b"}


@within(5)
async def test_shared_broker_whose_block_was_left(server: Server) -> None:
    async with open_broker(server.url) as broker:
        pass
    with pytest.raises(SwarmTaskError):
        async with open_nats_bus(broker):
            pytest.fail("it was opened")


@within(20)
async def test_nothing_is_made_on_the_server(server: Server) -> None:
    async with open_nats_bus(server.url) as bus, NATSSwarm(server.url).raw() as raw:
        await use(bus)
        assert not (await raw.api("STREAM.NAMES"))["streams"]


@within(20)
async def test_server_without_jetstream() -> None:
    async with _open_server([]) as server, open_nats_bus(server.url) as bus:
        await use(bus)
        with pytest.raises(NoRespondersError, match="'nobody'"):
            await bus.request("nobody", b"")


@within(20)
async def test_block_that_raises() -> None:
    async with _open_server([]) as server:
        with pytest.raises(LookupError, match="mine"):
            async with open_nats_bus(server.url) as bus, bus.subscribe("a"):
                raise LookupError("mine")


@within(20)
async def test_closing_one_bus_is_nothing_to_others(server: Server) -> None:
    async with open_nats_bus(server.url) as bus, open_nats_bus(server.url) as other:
        async with other.subscribe("a") as messages, bus.subscribe("a"):
            await bus.publish("a", b"last words")
            await bus.aclose()
            assert (await anext(messages)).data == b"last words"
        await use(other)


@within(20)
async def test_no_password_is_shown() -> None:
    async with (
        _open_server(["--user", "ada", "--pass", "s3cret"]) as server,
        open_nats_bus(f"nats://ada:s3cret@127.0.0.1:{server.port}") as bus,
    ):
        assert repr(bus) == f"<MessageBus at nats://127.0.0.1:{server.port}>"


@within(20)
async def test_publishers_wait_for_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a network that takes nothing any more; closing ends that, too."""
    monkeypatch.setattr(_connection, "_HIGH_WATER", 1000)
    published: list[int] = []

    async def publish(count: int) -> None:
        for number in range(count):
            await bus.publish("a", bytes(1 << 19))
            published.append(number)

    async def publish_until_closed() -> None:
        with pytest.raises(BusClosedError, match="the bus was closed meanwhile"):
            await publish(1000)

    async with (
        open_proxy(server.port) as proxy,
        open_nats_bus(proxy.url) as bus,
        bus.subscribe("a") as messages,
    ):
        await publish(20)
        assert [len((await anext(messages)).data) for _ in range(20)] == [1 << 19] * 20
        proxy.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_until_closed)
            await until(lambda: bus._connection.is_congested)  # type: ignore[attr-defined]  # it is the NATS one's
            await wait_all_tasks_blocked(0.1)
            with trio.fail_after(1):
                await bus.aclose()
                await until(lambda: not nursery.child_tasks)
        assert len(published) < 200
        proxy.thaw()


# Other clients


class Plain:
    """A client of another kind: the protocol's own lines."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def send(self, data: bytes) -> None:
        """Send lines; return when the server has served them."""
        await self._stream.send_all(data + b"PING\r\n")
        assert await self.until(b"PONG\r\n") == b""

    async def until(self, end: bytes) -> bytes:
        """What the server sends, up to ``end``."""
        while end not in self._received:
            self._received += await self._stream.receive_some()
        found, _, self._received = self._received.partition(end)
        return bytes(found)


@asynccontextmanager
async def open_plain(server: Server) -> AsyncIterator[Plain]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        plain = Plain(stream)
        assert (await plain.until(b"\r\n")).startswith(b"INFO ")
        await plain.send(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        yield plain


@within(20)
async def test_other_clients_see_the_bytes_as_they_are(server: Server) -> None:
    """No envelope, no header, no reply subject where none is asked for."""
    async with open_plain(server) as plain, open_nats_bus(server.url) as bus:
        await plain.send(b"SUB a.* 7\r\n")
        await bus.publish("a.b", b"\x00\xffdata")
        assert await plain.until(b"data\r\n") == b"MSG a.b 7 6\r\n\x00\xff"
        await bus.publish("a.b", b"")
        assert await plain.until(b"\r\n\r\n") == b"MSG a.b 7 0"


@within(20)
async def test_message_of_another_client(server: Server) -> None:
    """With a reply subject of its own, and with headers: these are not shown, and do no harm."""
    async with (
        open_plain(server) as plain,
        open_nats_bus(server.url) as bus,
        bus.subscribe("a.b") as messages,
    ):
        await plain.send(b"PUB a.b 3\r\n\x00\xff!\r\n")
        assert await anext(messages) == BusMessage("a.b", b"\x00\xff!", "")
        await plain.send(b"PUB a.b answer.here 1\r\n1\r\n")
        assert await anext(messages) == BusMessage("a.b", b"1", "answer.here")
        for headers, data in (
            (b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n", b"data"),
            (b"NATS/1.0 503\r\n\r\n", b""),
            (b"NATS/1.0\r\nStatus: 503\r\n\r\n", b"x"),
            (b"NATS/1.0\r\nno colon\r\n\xff: \xfe\r\n\r\n", b"y"),
        ):
            sizes = b"%d %d" % (len(headers), len(headers) + len(data))
            await plain.send(b"HPUB a.b " + sizes + b"\r\n" + headers + data + b"\r\n")
            assert await anext(messages) == BusMessage("a.b", data, "")
        await use(bus)


@within(20)
async def test_request_and_reply_with_another_client(server: Server) -> None:
    """Each way; also a reply that has headers, or no data."""
    async with open_plain(server) as plain, open_nats_bus(server.url) as bus:
        await plain.send(b"SUB ask 1\r\n")
        replies: list[bytes] = []

        async def ask() -> None:
            replies.append((await bus.request("ask", b"data")).data)

        for reply in (b"PUB %s 2\r\nhi\r\n", b"HPUB %s 18 20\r\nNATS/1.0\r\nA: 1\r\n\r\nho\r\n"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                line = await plain.until(b"\r\ndata\r\n")
                await plain.send(reply % line.split()[3])
        assert replies == [b"hi", b"ho"]
        async with bus.subscribe("served") as messages, beside(answer, bus, messages):
            await plain.send(b"SUB inbox 2\r\nPUB served inbox 1\r\n?\r\n")
            assert await plain.until(b"[?]\r\n") == b"MSG inbox 2 3\r\n"


@within(20)
async def test_request_is_not_given_up_before_its_caller_does(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests to JetStream are; the timer that ends those must not end this one."""
    monkeypatch.setattr(_requests, "REQUEST_SECONDS", 0.1)
    replies: list[bytes] = []

    async with open_nats_bus(server.url) as bus, bus.subscribe("slow") as messages:

        async def ask() -> None:
            replies.append((await bus.request("slow", b"")).data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            inbox = (await anext(messages)).reply
            for _ in range(2):
                with pytest.raises(_requests.NoAnswer, match="no reply within"):
                    await bus._requests.request("slow")  # type: ignore[attr-defined]  # it is the NATS one's
            assert replies == []
            await bus.publish(inbox, b"at last")
    assert replies == [b"at last"]
