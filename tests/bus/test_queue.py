"""Queues: each message to one member, on every bus."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from tests._helpers.brokers import until, within
from tests._helpers.buses import publish_all, rest, settle

if TYPE_CHECKING:
    from trio_swarmtask.bus import BusSubscription, MessageBus

MANY = 200  # a fair draw leaves out one of four members once in 10^24 runs


def ordered(*shares: list[bytes]) -> list[bytes]:
    """What members have got between them, by number."""
    return sorted((data for share in shares for data in share), key=int)


@within(10)
async def test_each_message_goes_to_one_member(bus: MessageBus, other: MessageBus) -> None:
    """Of this process or of another; and over many, none is left out."""
    async with (
        bus.queue_subscribe("a", "q") as first,
        bus.queue_subscribe("a", "q") as second,
        other.queue_subscribe("a", "q") as third,
        other.queue_subscribe("a", "q") as fourth,
    ):
        published = await publish_all(bus, "a", MANY)
        await settle(bus, bus, other)
    shares = [await rest(member) for member in (first, second, third, fourth)]
    assert ordered(*shares) == published
    assert all(shares)
    for share in shares:  # each in the order of the publisher
        assert share == ordered(share)


@within(10)
async def test_only_member_gets_all(bus: MessageBus, other: MessageBus) -> None:
    async with bus.queue_subscribe("a.>", "q") as member:
        published = await publish_all(other, "a.b", 50)
        await settle(other, bus)
    assert await rest(member) == published


@within(10)
async def test_one_name_is_one_queue_over_several_subjects(
    bus: MessageBus, other: MessageBus
) -> None:
    """Members of `q.*`, `q.x` and `q.>` share what they all match; the rest goes to who matches."""
    async with (
        bus.queue_subscribe("q.*", "q") as star,
        other.queue_subscribe("q.x", "q") as literal,
        bus.queue_subscribe("q.>", "q") as tail,
    ):
        published = await publish_all(other, "q.x", MANY)
        await settle(other, bus, other)
        await bus.publish("q.y.z", b"1000")
        await settle(bus, bus, other)
    shares = [await rest(member) for member in (star, literal, tail)]
    assert all(shares)
    assert shares[2].pop() == b"1000"
    assert ordered(*shares) == published


@within(10)
async def test_plain_subscribers_beside_a_queue_get_all(bus: MessageBus, other: MessageBus) -> None:
    async with (
        bus.queue_subscribe("a", "q") as first,
        other.queue_subscribe("a", "q") as second,
        bus.subscribe("a") as plain,
        other.subscribe("*") as wild,
    ):
        published = await publish_all(bus, "a", MANY)
        await settle(bus, bus, other)
    assert await rest(plain) == published
    assert await rest(wild) == published
    assert ordered(await rest(first), await rest(second)) == published


@within(10)
async def test_each_of_two_queues_gets_one_copy(bus: MessageBus, other: MessageBus) -> None:
    """A queue's name is its own word: not a subject, and `q` is not `Q`."""
    async with (
        bus.queue_subscribe("a", "q") as one,
        other.queue_subscribe("a", "q") as two,
        other.queue_subscribe("a", "Q") as upper,
        bus.queue_subscribe("*", "q.a") as dotted,
    ):
        published = await publish_all(bus, "a", MANY)
        await settle(bus, bus, other)
    assert ordered(await rest(one), await rest(two)) == published
    assert await rest(upper) == published
    assert await rest(dotted) == published


@within(10)
async def test_same_name_over_subjects_that_share_nothing(bus: MessageBus) -> None:
    async with bus.queue_subscribe("a", "q") as first, bus.queue_subscribe("b", "q") as second:
        await bus.publish("a", b"1")
        await bus.publish("b", b"2")
        assert (await anext(first)).data == b"1"
        assert (await anext(second)).data == b"2"


@within(10)
async def test_member_that_leaves(bus: MessageBus, other: MessageBus) -> None:
    """The others get all from then on; what it had got before stays its own."""
    async with bus.queue_subscribe("a", "q") as staying:
        async with other.queue_subscribe("a", "q") as leaving:
            before = await publish_all(bus, "a", MANY)
            await settle(bus, bus, other)
        await settle(other, bus)  # the server knows that it has left
        kept, gone = staying, await rest(leaving)
        heard = [(await anext(kept)).data for _ in range(MANY - len(gone))]
        assert ordered(heard, gone) == before
        after = await publish_all(bus, "a", MANY)
        await settle(bus)
    assert await rest(staying) == after
    assert await rest(leaving) == []


@within(20)
async def test_workers_share_by_readers(bus: MessageBus, other: MessageBus) -> None:
    """As it is used: in each process a few tasks that read one subscription."""
    done: list[bytes] = []

    async def work(messages: BusSubscription) -> None:
        async for message in messages:
            await trio.lowlevel.checkpoint()
            done.append(message.data)

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        for process in (bus, other):
            messages = await stack.enter_async_context(process.queue_subscribe("a", "q"))
            for _ in range(3):
                nursery.start_soon(work, messages)
        published = await publish_all(bus, "a", MANY)
        await until(lambda: len(done) >= MANY)
        await settle(bus, bus, other)
    assert ordered(done) == published
