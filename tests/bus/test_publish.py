"""Who gets what is published, in which order, on every bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.buses import Buses, publish_all, rest, settle
from trio_swarmtask.bus import BusMessage

if TYPE_CHECKING:
    from trio_swarmtask.bus import MessageBus


@within(10)
async def test_subscriber_gets_the_message(bus: MessageBus, other: MessageBus) -> None:
    """Of another process, and of the same."""
    async with bus.subscribe("a.b") as messages:
        await other.publish("a.b", b"from there")
        assert await anext(messages) == BusMessage("a.b", b"from there", "")
        await bus.publish("a.b", b"from here")
        assert await anext(messages) == BusMessage("a.b", b"from here", "")


@within(10)
async def test_nobody_is_there(bus: MessageBus) -> None:
    """That is no error, and nothing is kept for who comes later."""
    await bus.publish("a", b"gone")
    async with bus.subscribe("a") as messages:
        await bus.publish("a", b"heard")
        assert (await anext(messages)).data == b"heard"
        await settle(bus)
    assert await rest(messages) == []


@pytest.mark.parametrize("data", [b"", b"\0", b"\r\n", b"PUB a 1\r\nx\r\n", bytes(range(256)) * 99])
@within(10)
async def test_any_bytes(bus: MessageBus, other: MessageBus, data: bytes) -> None:
    async with other.subscribe("a") as messages:
        await bus.publish("a", data)
        assert (await anext(messages)).data == data


@pytest.mark.parametrize("subject", ["$a.b", "_a.-", "é.日本", "a/b:c", 'a"b', "a\\b", "x" * 1024])
@within(10)
async def test_any_subject(bus: MessageBus, other: MessageBus, subject: str) -> None:
    """Once as it is and once by a wildcard: the message names the subject it was published on."""
    wildcards = ".".join("*" for _ in subject.split("."))
    async with other.subscribe(subject) as literal, other.subscribe(wildcards) as anything:
        await bus.publish(subject, b"1")
        for messages in (literal, anything):
            assert await anext(messages) == BusMessage(subject, b"1")


@pytest.mark.parametrize(
    ("pattern", "heard"),
    [
        ("a", ["a"]),
        ("*", ["a", "b"]),
        (">", ["a", "b", "a.x", "A.x", "a.y", "a.x.y", "b.x", "ab.x"]),
        ("a.*", ["a.x", "a.y"]),
        ("*.x", ["a.x", "A.x", "b.x", "ab.x"]),
        ("a.>", ["a.x", "a.y", "a.x.y"]),
        ("a.*.>", ["a.x.y"]),
        ("a.*.y", ["a.x.y"]),
        ("*.*", ["a.x", "A.x", "a.y", "b.x", "ab.x"]),
        ("b.y", []),
    ],
)
@within(10)
async def test_wildcards(
    bus: MessageBus, other: MessageBus, pattern: str, heard: list[str]
) -> None:
    """In the order in which they were published."""
    async with bus.subscribe(pattern) as messages:
        for subject in ("a", "b", "a.x", "A.x", "a.y", "a.x.y", "b.x", "ab.x"):
            await other.publish(subject, subject.encode())
        await settle(other, bus)
    got = [message async for message in messages]
    if pattern == ">":  # which is everything: inboxes, and the end of `settle`
        got = [message for message in got if message.data]
    assert got == [BusMessage(subject, subject.encode()) for subject in heard]


@within(20)
async def test_order_of_one_publisher(buses: Buses) -> None:
    """Over several subjects, too, and from each of two publishers."""

    async def publish(sender: MessageBus, name: bytes) -> None:
        for number in range(500):
            await sender.publish(f"n.{number % 3}", name + b"%d" % number)

    async with (
        buses.open(buffer_size=2000) as bus,
        buses.open() as one,
        buses.open() as two,
        bus.subscribe("n.*") as messages,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, one, b"1:")
            nursery.start_soon(publish, two, b"2:")
        await settle(one, bus)
        await settle(two, bus)
    got = await rest(messages)
    assert len(got) == 1000
    for name in (b"1:", b"2:"):
        own = [data for data in got if data.startswith(name)]
        assert own == [name + b"%d" % number for number in range(500)]


@within(10)
async def test_two_subscriptions_each_get_all(bus: MessageBus, other: MessageBus) -> None:
    """Of the same process and of another, literal and by a wildcard."""
    async with (
        bus.subscribe("a.b") as first,
        bus.subscribe("a.b") as second,
        bus.subscribe("a.*") as third,
        other.subscribe("a.>") as fourth,
    ):
        published = await publish_all(other, "a.b", 20)
        await settle(other, bus, other)
    for messages in (first, second, third, fourth):
        assert await rest(messages) == published


@pytest.mark.parametrize("attempt", range(5))
@within(10)
async def test_hears_from_the_first_moment(
    bus: MessageBus, other: MessageBus, attempt: int
) -> None:
    """What another process publishes right after the block was entered is heard."""
    subject = f"a.{attempt}"
    async with bus.subscribe(subject) as messages:
        await other.publish(subject, b"1")
        assert (await anext(messages)).data == b"1"
    async with other.listen(subject, lambda _: heard.set()):
        heard = trio.Event()
        await bus.publish(subject, b"2")
        await heard.wait()


@within(20)
async def test_publishing_from_many_tasks(buses: Buses) -> None:
    async with buses.open(buffer_size=1000) as bus, bus.subscribe("a") as messages:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(bus.publish, "a", b"%d" % number)
        await settle(bus)
    assert sorted(map(int, await rest(messages))) == list(range(300))
