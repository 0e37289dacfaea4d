"""The bus through outages: a server that is killed and comes back, or does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests._helpers.brokers import until, within
from tests._helpers.nats_servers import kill, restarted
from trio_swarmtask import BrokerError, NATSConfig, open_broker
from trio_swarmtask.bus import BusClosedError, BusMessage, open_nats_bus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from trio_swarmtask._nats._connection import Connection
    from trio_swarmtask.bus import MessageBus
    from trio_swarmtask.server import Server

    Act = Callable[[], Awaitable[object]]


async def use(bus: MessageBus) -> None:
    """A message goes round; so the server has served all that was sent before."""
    async with bus.subscribe("use.*") as messages:
        await bus.publish("use.it", b"1")
        assert await anext(messages) == BusMessage("use.it", b"1")


def connection(bus: MessageBus) -> Connection:
    """What it runs on."""
    return bus._connection  # type: ignore[attr-defined, no-any-return]  # it is the NATS one's


def waiting(bus: MessageBus) -> int:
    """Requests that wait for their replies."""
    return len(bus._requests._waiting)  # type: ignore[attr-defined]  # it is the NATS one's


async def outage(server: Server, *buses: MessageBus) -> None:
    """Kill the server; return when all have noticed."""
    kill(server)
    await until(lambda: not any(connection(bus).is_up for bus in buses))


async def enter(block: AbstractAsyncContextManager[object]) -> None:
    async with block:
        pass


@within(30)
async def test_everything_goes_on_after_a_restart(server: Server) -> None:
    heard: list[bytes] = []
    async with (
        open_nats_bus(server.url) as bus,
        open_nats_bus(server.url) as other,
        bus.subscribe("a.*") as plain,
        bus.queue_subscribe("a.b", "q") as one,
        bus.queue_subscribe("a.>", "q") as two,
        bus.listen("a.b", lambda message: heard.append(message.data)),
    ):
        async with bus.subscribe("a.b"):
            await outage(server, bus, other)  # this one is left meanwhile
        async with restarted(server):
            async with bus.subscribe("the.server.has.all.subscriptions"):
                for number in range(100):
                    await other.publish("a.b", b"%d" % number)
                await until(lambda: len(heard) >= 100)
                await use(bus)
            published = [b"%d" % number for number in range(100)]
            await bus.aclose()
            assert heard == published
            assert [message.data async for message in plain] == published
            shares = [[message.data async for message in member] for member in (one, two)]
            assert all(shares)
            assert sorted(shares[0] + shares[1], key=int) == published
            assert len(connection(bus).client._subs) == 1  # the inbox


@within(30)
async def test_waiting_through_an_outage(server: Server) -> None:
    """A publish, a request, the entering of a subscription; and a reply to what came before."""
    done: list[str] = []

    async def note(name: str, act: Act) -> None:
        outcome = await act()
        if isinstance(outcome, BusMessage):
            assert outcome.data == b"[" + name.encode() + b"]"
        done.append(name)

    async with (
        open_nats_bus(server.url) as bus,
        bus.subscribe("a") as messages,
        bus.subscribe("ask") as requests,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(note, "early", lambda: bus.request("ask", b"early"))
        early = await anext(requests)
        await outage(server, bus)
        nursery.start_soon(note, "publish", lambda: bus.publish("a", b"1"))
        nursery.start_soon(note, "request", lambda: bus.request("ask", b"request"))
        nursery.start_soon(note, "reply", lambda: bus.publish(early.reply, b"[early]"))
        nursery.start_soon(note, "enter", lambda: enter(bus.subscribe("b")))
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.1):
            await bus.publish("a", b"given up")
        await wait_all_tasks_blocked()
        assert done == []
        async with restarted(server):
            assert (await anext(messages)).data == b"1"
            request = await anext(requests)
            await bus.publish(request.reply, b"[request]")
            await until(lambda: len(done) == 5)
            await use(bus)
            assert waiting(bus) == 0
            nursery.cancel_scope.cancel()
    assert sorted(done) == ["early", "enter", "publish", "reply", "request"]
    assert [message.data async for message in messages] == []


@within(30)
async def test_subscribed_during_an_outage_hears_each_message_once(server: Server) -> None:
    async with open_nats_bus(server.url) as bus:
        await outage(server, bus)
        with trio.move_on_after(0.05):
            await enter(bus.subscribe("a"))  # is given up
        async with trio.open_nursery() as nursery:
            ready = trio.Event()

            async def subscribe() -> None:
                async with bus.subscribe("a") as messages:
                    await ready.wait()
                    await bus.publish("a", b"1")
                    await use(bus)
                assert [message.data async for message in messages] == [b"1"]

            nursery.start_soon(subscribe)
            async with restarted(server):
                ready.set()
                await until(lambda: not nursery.child_tasks)


@pytest.mark.parametrize("way", ["aclose", "leave", "shared"])
@within(20)
async def test_closing_during_an_outage(server: Server, way: str) -> None:
    """It ends whatever waits for the server, at once; a shared connection goes on waiting."""
    ended: list[str] = []

    async def closed(name: str, act: Act) -> None:
        with pytest.raises(BusClosedError, match="the bus was closed meanwhile"):
            await act()
        ended.append(name)

    async def end(bus: MessageBus, nursery: trio.Nursery) -> None:
        nursery.start_soon(closed, "early", lambda: bus.request("a", b"early"))
        await anext(messages)
        await outage(server, bus)
        nursery.start_soon(closed, "publish", lambda: bus.publish("a", b""))
        nursery.start_soon(closed, "request", lambda: bus.request("a", b""))
        nursery.start_soon(closed, "enter", lambda: enter(bus.subscribe("b")))
        await wait_all_tasks_blocked()
        assert ended == []
        if way == "aclose":
            with trio.fail_after(1):
                await bus.aclose()
                await until(lambda: len(ended) == 4)

    async with trio.open_nursery() as nursery:
        if way == "shared":
            async with open_broker(server.url) as broker:
                async with open_nats_bus(broker) as bus, bus.subscribe("a") as messages:
                    await end(bus, nursery)
                with trio.fail_after(1):
                    await until(lambda: len(ended) == 4)
        else:
            async with open_nats_bus(server.url) as bus, bus.subscribe("a") as messages:
                await end(bus, nursery)
    assert sorted(ended) == ["early", "enter", "publish", "request"]
    assert [message async for message in messages] == []


@within(30)
async def test_lost_for_good_everybody_hears(server: Server) -> None:
    """Readers after what was buffered; callbacks; whoever waits; and each call from then on."""
    heard: list[str] = []
    closed: list[Exception | None] = []
    told = r"^lost nats://.* for good: no server for 0\.3 seconds$"

    async def lost(name: str, act: Act) -> None:
        with pytest.raises(BrokerError, match=told):
            await act()
        heard.append(name)

    with pytest.raises(BrokerError, match=told):
        async with (
            open_nats_bus(NATSConfig(server.url, reconnect_timeout=0.3)) as bus,
            bus.subscribe("a") as messages,
            bus.queue_subscribe("b", "q") as member,
            bus.listen("b", lambda _: None, on_close=closed.append),
        ):
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lost, "reader", member.__anext__)
                    nursery.start_soon(lost, "early", lambda: bus.request("a", b"early"))
                    await until(lambda: messages._buffer._items)
                    await outage(server, bus)
                    nursery.start_soon(lost, "publish", lambda: bus.publish("a", b""))
                    nursery.start_soon(lost, "request", lambda: bus.request("a", b""))
                    nursery.start_soon(lost, "enter", lambda: enter(bus.subscribe("b")))
                assert (await anext(messages)).data == b"early"
                for _ in range(2):
                    await lost("buffered", messages.__anext__)
                await lost("publish", lambda: bus.publish("a", b""))
                await lost("request", lambda: bus.request("a", b""))
                with pytest.raises(BrokerError, match=told):
                    bus.subscribe("a")
                with pytest.raises(BrokerError, match=told):
                    bus.listen("a", lambda _: None)
                await bus.aclose()
                await lost("closed", lambda: bus.publish("a", b""))
    assert sorted(heard[:5]) == ["early", "enter", "publish", "reader", "request"]
    assert heard[5:] == ["buffered", "buffered", "publish", "request", "closed"]
    assert [type(error) for error in closed] == [BrokerError]


@pytest.mark.parametrize("way", ["own", "shared", "reading"])
@within(20)
async def test_lost_for_good_leaves_the_block_by_a_bare_error(server: Server, way: str) -> None:
    config = NATSConfig(server.url, reconnect_timeout=0.2)
    with pytest.raises(BrokerError, match=r"^lost nats://.* for good: no server for 0\.2 seconds$"):
        if way == "own":
            async with open_nats_bus(config):
                kill(server)
                await trio.sleep_forever()
        elif way == "shared":
            async with open_broker(config) as broker, open_nats_bus(broker) as bus:
                kill(server)
                await bus.request("$SYS.REQ.USER.INFO", b"")
                await trio.sleep_forever()
        else:
            async with open_nats_bus(config) as bus, bus.subscribe("a") as messages:
                kill(server)
                async for _ in messages:
                    pytest.fail("what should come here?")
                pytest.fail("a lost server is no ordinary end")


@within(20)
async def test_on_close_that_raises_when_lost_for_good(server: Server) -> None:
    """The connection's own callbacks call it, and these must not fail."""
    closed: list[Exception | None] = []

    def fail(_: Exception | None) -> None:
        raise LookupError("mine")

    with pytest.raises(BrokerError, match=r"^lost nats://.* for good: no server for 0\.2 seconds$"):
        async with (
            open_nats_bus(NATSConfig(server.url, reconnect_timeout=0.2)) as bus,
            bus.listen("a", lambda _: None, on_close=fail),
            bus.listen("a", lambda _: None, on_close=closed.append),
        ):
            kill(server)
            await trio.sleep_forever()
    assert [type(error) for error in closed] == [BrokerError]
