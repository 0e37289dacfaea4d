"""A subscription: its buffer, its readers and its end, on every bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests._helpers.brokers import until, within
from tests._helpers.buses import Buses, publish_all, rest, settle

if TYPE_CHECKING:
    from trio_swarmtask.bus import BusSubscription, MessageBus


@pytest.mark.parametrize("size", [1, 4])
@within(10)
async def test_full_buffer_drops_the_oldest(buses: Buses, size: int) -> None:
    async with buses.open(buffer_size=size) as bus, buses.open() as other:
        async with bus.subscribe("a") as messages, bus.queue_subscribe("a", "q") as member:
            published = await publish_all(other, "a", 10)
            await settle(other, bus)
            assert (messages.dropped, member.dropped) == (10 - size, 10 - size)
            for kept in published[-size:]:
                assert (await anext(messages)).data == kept
            # What was read has made room.
            await other.publish("a", b"next")
            assert (await anext(messages)).data == b"next"
            assert messages.dropped == 10 - size
            await settle(other, bus)
        assert await rest(member) == [*published, b"next"][-size:]


@within(10)
async def test_slow_reader_holds_up_nobody(buses: Buses) -> None:
    async with (
        buses.open(buffer_size=1) as bus,
        bus.subscribe("a") as slow,
        bus.subscribe("a") as fast,
    ):
        for number in range(20):
            await bus.publish("a", b"%d" % number)
            assert (await anext(fast)).data == b"%d" % number
        assert (slow.dropped, fast.dropped) == (19, 0)


@within(10)
async def test_buffer_of_256_by_default(bus: MessageBus) -> None:
    async with bus.subscribe("a") as messages:
        published = await publish_all(bus, "a", 256)
        await settle(bus)
        assert messages.dropped == 0
        await bus.publish("a", b"one more")
        await settle(bus)
        assert messages.dropped == 1
    assert await rest(messages) == [*published[1:], b"one more"]


@within(10)
async def test_leaving_the_block_ends_it(buses: Buses, bus: MessageBus, other: MessageBus) -> None:
    """What came before can be read; what comes later is not delivered, nor counted."""
    async with bus.subscribe("a") as beside:
        async with bus.queue_subscribe("a", "q") as member, bus.subscribe("*") as wild:
            await other.publish("a", b"before")
            await settle(other, bus)
        await publish_all(other, "a", 300)
        await settle(other, bus)
        for messages in (member, wild):
            assert await rest(messages) == [b"before"]
            assert await rest(messages) == []
            assert messages.dropped == 0
    assert beside.dropped == 301 - 256
    assert not buses.has_listeners(bus)


@within(10)
async def test_leaving_the_block_wakes_a_reader_of_another_task(bus: MessageBus) -> None:
    async def read() -> None:
        assert await rest(messages) == []
        ended.set()

    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        async with bus.subscribe("a") as messages:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            assert not ended.is_set()
        await ended.wait()


@within(10)
async def test_block_that_raises(buses: Buses, bus: MessageBus) -> None:
    """Its exception comes out as it is, and the subscription is gone."""
    error = LookupError("mine")
    with pytest.raises(LookupError, match="mine") as raised:
        async with bus.subscribe("a"), bus.listen("a.*", lambda _: None):
            raise error
    assert raised.value is error
    assert not buses.has_listeners(bus)


@within(10)
async def test_block_that_is_cancelled(buses: Buses, bus: MessageBus) -> None:
    with trio.CancelScope() as scope:
        async with bus.subscribe("a") as messages, bus.listen("a.*", lambda _: None):
            scope.cancel()
            await anext(messages)
    assert scope.cancelled_caught
    assert not buses.has_listeners(bus)
    assert await rest(messages) == []


@within(20)
async def test_several_readers_share_a_subscription(bus: MessageBus, other: MessageBus) -> None:
    """Each message goes to one of them, and all end."""
    shares: list[list[bytes]] = [[], [], []]

    async def read(messages: BusSubscription, share: list[bytes]) -> None:
        async for message in messages:
            share.append(message.data)
            await trio.lowlevel.checkpoint()

    async with bus.subscribe("a") as messages, trio.open_nursery() as nursery:
        for share in shares:
            nursery.start_soon(read, messages, share)
        await wait_all_tasks_blocked()
        published = await publish_all(other, "a", 99)
        await until(lambda: sum(map(len, shares)) == 99)
        await settle(other, bus)
        await bus.aclose()
    assert sorted(data for share in shares for data in share) == sorted(published)
    assert all(shares)


@within(10)
async def test_cancelled_reader_loses_nothing(bus: MessageBus) -> None:
    async with bus.subscribe("a") as messages:
        with trio.move_on_after(0.01) as scope:
            await anext(messages)
        assert scope.cancelled_caught
        await bus.publish("a", b"1")
        await settle(bus)
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(messages)
        assert scope.cancelled_caught
        assert (await anext(messages)).data == b"1"


@pytest.mark.parametrize("queue", ["", "q"])
@within(10)
async def test_never_entered(bus: MessageBus, queue: str) -> None:
    """Or it would wait for ever for what nobody sends there."""
    messages = bus.queue_subscribe("a", queue) if queue else bus.subscribe("a")
    with pytest.raises(RuntimeError, match="subscription to 'a' was not entered: write"):
        await anext(messages)
    with pytest.raises(RuntimeError, match="was not entered"):
        async for _ in messages:
            pytest.fail("what should come here?")


@within(3)
async def test_entering_that_was_cancelled(buses: Buses, bus: MessageBus) -> None:
    """Leaves nothing behind, and what was not entered can't be read."""
    messages = bus.subscribe("a")
    with trio.CancelScope() as scope:
        scope.cancel()
        async with messages:
            pytest.fail("it was entered")
    assert scope.cancelled_caught
    assert not buses.has_listeners(bus)
    with pytest.raises(RuntimeError, match="was not entered"):
        await anext(messages)


@within(10)
async def test_entering_twice(bus: MessageBus) -> None:
    """In the block, and after it; the first is not disturbed."""
    messages = bus.subscribe("a")
    again = "the block of 'a' was entered before: subscribe again"
    async with messages:
        with pytest.raises(RuntimeError, match=again):
            async with messages:
                pytest.fail("it was entered")
        await bus.publish("a", b"1")
        assert (await anext(messages)).data == b"1"
    with pytest.raises(RuntimeError, match=again):
        async with messages:
            pytest.fail("it was entered")


@within(10)
async def test_many_subscriptions_come_and_go(buses: Buses, bus: MessageBus) -> None:
    async def come_and_go(number: int) -> None:
        subject = f"a.{number % 5}"
        async with bus.subscribe(subject) as messages, bus.subscribe("a.*") as wild:
            await bus.publish(subject, b"%d" % number)
            async for message in messages:
                if message.data == b"%d" % number:
                    break
            assert (await anext(wild)).data

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(come_and_go, number)
    assert not buses.has_listeners(bus)
