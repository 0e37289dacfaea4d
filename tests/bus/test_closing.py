"""Closing a bus, in every state, on every bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests._helpers.brokers import until, within
from tests._helpers.buses import Buses, answer, beside, publish_all, rest, settle
from trio_swarmtask import SwarmTaskError
from trio_swarmtask.bus import BusClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask.bus import BusMessage, MessageBus

CALLS: dict[str, Callable[[MessageBus], Any]] = {
    "publish": lambda bus: bus.publish("a", b""),
    "request": lambda bus: bus.request("a", b""),
    "subscribe": lambda bus: bus.subscribe("a"),
    "queue_subscribe": lambda bus: bus.queue_subscribe("a", "q"),
    "listen": lambda bus: bus.listen("a", lambda _: None),
}


async def use(bus: MessageBus, method: str) -> None:
    """Call one method."""
    outcome = CALLS[method](bus)
    if method in ("publish", "request"):
        await outcome


@pytest.mark.parametrize("method", CALLS)
@within(10)
async def test_closed_bus(bus: MessageBus, method: str) -> None:
    await bus.aclose()
    for _ in range(2):
        with pytest.raises(
            BusClosedError, match=r"^the bus is closed; open another one$"
        ) as raised:
            await use(bus, method)
        assert isinstance(raised.value, trio.ClosedResourceError)
        assert isinstance(raised.value, SwarmTaskError)
        await bus.aclose()


@pytest.mark.parametrize("method", CALLS)
@within(10)
async def test_bus_whose_block_was_left(buses: Buses, method: str) -> None:
    async with buses.open() as bus:
        await use(bus, "publish")
    with pytest.raises(BusClosedError, match="the bus is closed"):
        await use(bus, method)
    await bus.aclose()


@within(10)
async def test_bus_is_an_async_resource(bus: MessageBus) -> None:
    async with bus as same, bus.subscribe("a") as messages:
        assert same is bus
        await bus.publish("a", b"1")
        await settle(bus)
    assert await rest(messages) == [b"1"]
    with pytest.raises(BusClosedError, match="the bus is closed"):
        await bus.publish("a", b"")


@within(10)
async def test_aclose_in_a_cancelled_scope_closes(bus: MessageBus) -> None:
    async with bus.subscribe("a") as messages:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bus.aclose()
        assert scope.cancelled_caught
        assert await rest(messages) == []
    with pytest.raises(BusClosedError, match="the bus is closed"):
        await bus.publish("a", b"")


@within(10)
async def test_what_is_buffered_can_be_read(buses: Buses, bus: MessageBus) -> None:
    """Then the iteration ends; also of an `async for` that is half way."""
    got = []
    async with bus.subscribe("a") as messages, bus.queue_subscribe("a", "q") as member:
        published = await publish_all(bus, "a", 5)
        await settle(bus)
        async for message in messages:
            got.append(message.data)
            await bus.aclose()
        assert got == published
        assert await rest(messages) == []
        assert await rest(member) == published
        assert not buses.has_listeners(bus)
    assert messages.dropped == 0


@within(10)
async def test_sleeping_readers_wake(bus: MessageBus) -> None:
    """All of them end in the ordinary way."""
    ended = []

    async def read(name: str) -> None:
        ended.append((name, await rest(messages)))

    async with bus.subscribe("a") as messages, trio.open_nursery() as nursery:
        for name in ("one", "two"):
            nursery.start_soon(read, name)
        await wait_all_tasks_blocked()
        assert ended == []
        await bus.aclose()
    assert sorted(ended) == [("one", []), ("two", [])]


@within(10)
async def test_pending_requests_end(buses: Buses, bus: MessageBus) -> None:
    async def ask() -> None:
        with pytest.raises(BusClosedError, match="the bus was closed"):
            await bus.request("a", b"1")
        ended.append(True)

    ended: list[bool] = []
    heard: list[BusMessage] = []
    async with bus.listen("a", heard.append), trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await until(lambda: len(heard) == 2)
        assert ended == []
        await bus.aclose()
    assert ended == [True, True]
    assert not buses.waiting(bus)
    assert not buses.has_listeners(bus)


@within(10)
async def test_reply_that_came_before_the_close_counts(bus: MessageBus, other: MessageBus) -> None:
    async with other.subscribe("a") as messages, beside(answer, other, messages):
        reply = await bus.request("a", b"1")
        await bus.aclose()
    assert reply.data == b"[1]"


@within(10)
async def test_entering_what_was_made_before(buses: Buses, bus: MessageBus) -> None:
    made: list[Any] = [
        bus.subscribe("a"),
        bus.queue_subscribe("a", "q"),
        bus.listen("a", lambda _: None),
    ]
    await bus.aclose()
    for one in made:
        with pytest.raises(BusClosedError, match="the bus is closed"):
            async with one:
                pytest.fail("it was entered")
    assert not buses.has_listeners(bus)


@pytest.mark.parametrize("method", CALLS)
@within(10)
async def test_closed_in_the_middle(buses: Buses, bus: MessageBus, method: str) -> None:
    """By another task, while the call waits for its first turn."""

    async def act() -> None:
        with pytest.raises(BusClosedError, match=r"the bus (is|was) closed"):
            if method in ("publish", "request"):
                await use(bus, method)
            else:
                async with CALLS[method](bus):
                    pytest.fail("it was entered")
        ended.append(True)

    ended: list[bool] = []
    async with bus.listen("a", lambda _: None), trio.open_nursery() as nursery:
        nursery.start_soon(act)
        await trio.lowlevel.checkpoint()
        await bus.aclose()
    assert ended == [True]
    assert not buses.has_listeners(bus)
    assert not buses.waiting(bus)


class CloseWhenWoken(trio.abc.Instrument):
    """Closes the bus as soon as ``task`` is about to run again, before it does."""

    def __init__(self, bus: MessageBus, task: trio.lowlevel.Task) -> None:
        self.bus = bus
        self.task = task

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            trio.lowlevel.remove_instrument(self)
            self.bus._close()


@pytest.mark.parametrize("method", ["publish", "subscribe", "queue_subscribe", "listen"])
@within(3)
async def test_closed_as_the_call_goes_on(buses: Buses, bus: MessageBus, method: str) -> None:
    """As its first wait ends. No reader may wait for ever, though the server has said yes."""
    trio.lowlevel.add_instrument(CloseWhenWoken(bus, trio.lowlevel.current_task()))
    with pytest.raises(BusClosedError, match=r"the bus (is|was) closed"):
        if method == "publish":
            await use(bus, method)
        else:
            async with CALLS[method](bus):
                pytest.fail("it was entered")
    assert not buses.has_listeners(bus)


@within(10)
async def test_closed_as_the_reply_arrives(bus: MessageBus, other: MessageBus) -> None:
    """It is here, so it counts."""
    replies: list[bytes] = []

    async def ask() -> None:
        replies.append((await bus.request("a", b"1")).data)

    async with other.subscribe("a") as messages, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        request = await anext(messages)
        [asker] = nursery.child_tasks
        trio.lowlevel.add_instrument(CloseWhenWoken(bus, asker))
        await other.publish(request.reply, b"2")
    assert replies == [b"2"]


@within(10)
async def test_leaving_the_block_sends_what_was_published(buses: Buses) -> None:
    async with buses.open(buffer_size=1000) as other, other.subscribe("a") as messages:
        async with buses.open() as bus:
            published = await publish_all(bus, "a", 500)
        assert [(await anext(messages)).data for _ in range(500)] == published
