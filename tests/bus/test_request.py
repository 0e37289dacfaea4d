"""Requests and replies, on every bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests._helpers.brokers import until, within
from tests._helpers.buses import Buses, answer, beside, settle
from trio_swarmtask import SwarmTaskError
from trio_swarmtask.bus import BusMessage, MemoryBus, NoRespondersError

if TYPE_CHECKING:
    from trio_swarmtask.bus import BusSubscription, MessageBus


@within(10)
async def test_reply(bus: MessageBus, other: MessageBus) -> None:
    async with other.subscribe("double.*") as messages, beside(answer, other, messages):
        reply = await bus.request("double.it", b"data")
        assert reply.data == b"[data]"
        assert reply.reply == ""
        assert (await bus.request("double.it", b"")).data == b"[]"


@within(10)
async def test_request_as_it_arrives(buses: Buses, bus: MessageBus, other: MessageBus) -> None:
    """It names where to answer, and each has an inbox of its own."""
    inboxes = []

    async def serve(messages: BusSubscription) -> None:
        async for message in messages:
            assert (message.subject, message.data) == ("a.b", b"data")
            inboxes.append(message.reply)
            await other.publish(message.reply, b"reply")

    async with other.subscribe("a.*") as messages, beside(serve, messages):
        for _ in range(2):
            reply = await bus.request("a.b", b"data")
            assert reply == BusMessage(inboxes[-1], b"reply")
    assert len(set(inboxes)) == 2
    assert not buses.waiting(bus)


@within(10)
async def test_to_oneself(bus: MessageBus) -> None:
    async with bus.subscribe("a") as messages, beside(answer, bus, messages):
        assert (await bus.request("a", b"1")).data == b"[1]"


@within(10)
async def test_first_reply_counts(buses: Buses, bus: MessageBus, other: MessageBus) -> None:
    """Those after it are nobody's, and do not become another request's."""

    async def serve(messages: BusSubscription) -> None:
        async for message in messages:
            for number in range(3):
                await other.publish(message.reply, message.data + b"%d" % number)

    async with other.subscribe("a") as messages, beside(serve, messages):
        for name in (b"x", b"y", b"z"):
            assert (await bus.request("a", name)).data == name + b"0"
        await settle(other, bus)
    assert not buses.waiting(bus)


@within(10)
async def test_each_of_two_responders_is_asked(bus: MessageBus, other: MessageBus) -> None:
    """Whoever is first; the one that is silent does not matter."""
    async with (
        other.subscribe("a") as messages,
        bus.subscribe("a") as silent,
        beside(answer, other, messages),
    ):
        assert (await bus.request("a", b"1")).data == b"[1]"
        assert (await anext(silent)).data == b"1"


@within(10)
async def test_one_member_of_a_queue_is_asked(bus: MessageBus, other: MessageBus) -> None:
    """A service with several members: as many answers as requests."""
    asked: list[bytes] = []

    async def serve(messages: BusSubscription) -> None:
        async for message in messages:
            asked.append(message.data)
            await other.publish(message.reply, message.data)

    async with (
        other.queue_subscribe("a", "q") as first,
        other.queue_subscribe("a", "q") as second,
        beside(serve, first),
        beside(serve, second),
    ):
        for number in range(20):
            assert (await bus.request("a", b"%d" % number)).data == b"%d" % number
    assert sorted(asked, key=int) == [b"%d" % number for number in range(20)]


@within(10)
async def test_concurrent_requests_get_their_own_replies(
    buses: Buses, bus: MessageBus, other: MessageBus
) -> None:
    """Answered in another order than asked."""
    replies = {}

    async def ask(number: int) -> None:
        replies[number] = (await bus.request("a", b"%d" % number)).data

    async with other.subscribe("a") as messages, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, number)
        requests = [await anext(messages) for _ in range(50)]
        assert buses.waiting(bus) == 50
        for request in reversed(requests):
            await other.publish(request.reply, b"[" + request.data + b"]")
    assert replies == {number: b"[%d]" % number for number in range(50)}
    assert not buses.waiting(bus)


@pytest.mark.parametrize("subject", ["nobody", "a.b.c", "é"])
@within(10)
async def test_nobody_listens(buses: Buses, bus: MessageBus, subject: str) -> None:
    async with bus.subscribe("a.b"), bus.subscribe("a.b.c.>"), bus.subscribe("nobody.*"):
        told = rf"^nobody listens on '{subject}'; subscribe there first, or try again later$"
        with pytest.raises(NoRespondersError, match=told) as raised:
            await bus.request(subject, b"data")
        assert raised.value.subject == subject
        assert isinstance(raised.value, SwarmTaskError)
    assert not buses.waiting(bus)
    assert not buses.has_listeners(bus)


@within(10)
async def test_nobody_listens_any_more(bus: MessageBus, other: MessageBus) -> None:
    async with other.subscribe("a") as messages, beside(answer, other, messages):
        await bus.request("a", b"1")
    await settle(other, bus)
    with pytest.raises(NoRespondersError, match="'a'"):
        await bus.request("a", b"2")


@within(10)
async def test_listener_is_a_responder_too(bus: MessageBus, other: MessageBus) -> None:
    """It may answer later, from a task."""
    asked: list[BusMessage] = []

    async def answer_later() -> None:
        await until(lambda: asked)
        await other.publish(asked[0].reply, b"later")

    async with other.listen("a", asked.append), trio.open_nursery() as nursery:
        nursery.start_soon(answer_later)
        assert (await bus.request("a", b"1")).data == b"later"


@within(10)
async def test_callers_scope_is_the_deadline(
    buses: Buses, bus: MessageBus, other: MessageBus
) -> None:
    """Nothing of the request is left behind, and its late reply is nobody's."""
    async with other.subscribe("a") as messages:
        with trio.move_on_after(0.05) as scope:
            await bus.request("a", b"1")
        assert scope.cancelled_caught
        assert not buses.waiting(bus)
        await other.publish((await anext(messages)).reply, b"late")
        await settle(other, bus)
        async with beside(answer, other, messages):
            assert (await bus.request("a", b"2")).data == b"[2]"
    assert not buses.waiting(bus)
    assert not buses.has_listeners(bus)


@within(10)
async def test_cancelled_beside_others(buses: Buses, bus: MessageBus, other: MessageBus) -> None:
    async with other.subscribe("a") as messages, trio.open_nursery() as nursery:
        async with trio.open_nursery() as doomed:
            doomed.start_soon(bus.request, "a", b"doomed")
            await anext(messages)
            nursery.start_soon(bus.request, "a", b"stays")
            request = await anext(messages)
            assert buses.waiting(bus) == 2
            doomed.cancel_scope.cancel()
        assert buses.waiting(bus) == 1
        await other.publish(request.reply, b"")
    assert not buses.waiting(bus)


async def test_reply_may_take_as_long_as_it_likes(autojump_clock: trio.testing.MockClock) -> None:
    bus, began = MemoryBus(), trio.current_time()
    async with bus.subscribe("a") as messages, trio.open_nursery() as nursery:

        async def serve() -> None:
            request = await anext(messages)
            await trio.sleep(86_400)
            await bus.publish(request.reply, b"tomorrow")

        nursery.start_soon(serve)
        assert (await bus.request("a", b"1")).data == b"tomorrow"
    assert trio.current_time() - began == 86_400


@within(10)
async def test_request_waits_for_somebody_who_is_slow(bus: MessageBus, other: MessageBus) -> None:
    async with other.subscribe("a") as messages, trio.open_nursery() as nursery:
        replies: list[bytes] = []

        async def ask() -> None:
            replies.append((await bus.request("a", b"1")).data)

        nursery.start_soon(ask)
        request = await anext(messages)
        await wait_all_tasks_blocked()
        await settle(other, bus)
        assert replies == []
        await other.publish(request.reply, b"at last")
        await until(lambda: replies)
    assert replies == [b"at last"]
