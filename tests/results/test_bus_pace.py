"""Publishing without pause on the bus of a server: what others hear, and what this process does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import until, within
from tests._helpers.publishers import PENDING, Reader, outputs, pending, rest, success
from tests.results.test_bus import announcement
from trio_swarmtask.bus import BusClosedError, open_nats_bus
from trio_swarmtask.results import (
    BusPublisher,
    BusPublisherConfig,
    InvalidResultError,
    PublisherClosedError,
    Result,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask.bus import MessageBus
    from trio_swarmtask.server import Server

ROOMY = BusPublisherConfig(buffer_size=1000)

# After it the next one is held for a second and a half.
LARGE = Result(status=PENDING.status, output=b"0", metadata={"more": "x" * 800_000})


class Two:
    """Two publishers, each on a bus of its own."""

    def __init__(self, bus: MessageBus, one: BusPublisher, other_bus: MessageBus) -> None:
        self.bus = bus
        self.one = one
        self.other_bus = other_bus
        self.other = BusPublisher(other_bus, ROOMY)


@pytest.fixture
async def two(server: Server) -> AsyncIterator[Two]:
    async with open_nats_bus(server.url) as bus, open_nats_bus(server.url) as other_bus:
        yield Two(bus, BusPublisher(bus, ROOMY), other_bus)


async def flood(publisher: BusPublisher, count: int = 500) -> None:
    for number in range(count):
        await publisher.publish("t1", pending(number))


def numbers(read: list[Result]) -> list[int]:
    return [int(update.output) for update in read]


@within(20)
async def test_others_hear_the_newest_soon(two: Two) -> None:
    """Without another update; this process hears all."""
    async with trio.open_nursery() as nursery, two.one.subscribe("t1") as own:
        reader = await nursery.start(Reader(two.other, "t1").run)
        began = trio.current_time()
        await flood(two.one)
        await until(lambda: reader.read and reader.read[-1].output == b"499")
        seconds = trio.current_time() - began
        heard = numbers(reader.read)
        assert heard[:64] == list(range(64))
        assert heard == sorted(set(heard))
        assert len(heard) <= 64 + 10 * seconds + 1
        assert two.one._held == {}
        await two.one.publish("t1", success(500))
        await reader.ended.wait()
        assert await outputs(own) == [b"%d" % number for number in range(501)]
    assert two.one._waiting == set()


@within(20)
async def test_end_comes_after_the_newest(two: Two) -> None:
    async with two.other.subscribe("t1") as updates:
        await flood(two.one)
        await two.one.publish("t1", success(500))
        heard = numbers(await rest(updates))
    assert heard[-2:] == [499, 500]
    assert len(heard) < 100


@within(20)
async def test_ten_a_second(two: Two) -> None:
    async with two.other.subscribe("t1") as updates:
        end, number = trio.current_time() + 3, 0
        while trio.current_time() < end:
            await two.one.publish("t1", pending(number))
            number += 1
            await trio.sleep(0.002)
        await two.one.publish("t1", success(number))
        heard = numbers(await rest(updates))
    assert heard == sorted(set(heard))
    assert 64 + 20 <= len(heard) <= 64 + 30 + 3


@within(20)
async def test_what_another_one_has_told_since_stands(two: Two) -> None:
    """What was held is older by then, and is not announced."""
    async with two.one.subscribe("t1") as own, two.other.subscribe("t1") as others:
        await two.one.publish("t1", LARGE)
        await two.one.publish("t1", pending(1))
        async with two.one._locks.hold("t1"):  # it is not announced before the other one is heard
            assert two.one._held
            await until(lambda: two.other._find("t1"))
            await two.other_bus.publish("results.t1", announcement(pending(1000)))
            await until(lambda: two.one._find("t1").output == b"1000")
        await until(lambda: not two.one._waiting)
        await two.one.publish("t1", success(1001))
        assert numbers(await rest(own)) == [0, 1, 1000, 1001]
        assert numbers(await rest(others)) == [0, 1000, 1001]


@within(20)
async def test_publish_that_is_given_up(two: Two) -> None:
    """What was held before it goes out all the same, in its time."""
    async with two.other.subscribe("t1") as updates:
        await flood(two.one)
        with trio.CancelScope() as scope:
            scope.cancel()
            await two.one.publish("t1", success(500))
        await until(lambda: not two.one._waiting)
        await two.one.publish("t1", success(501))
        assert numbers(await rest(updates))[-2:] == [499, 501]


@within(20)
async def test_deleted_meanwhile(two: Two) -> None:
    await flood(two.one)
    await two.one.delete("t1")
    assert two.one._held == two.one._paces == {}
    await until(lambda: not two.one._waiting)
    await two.one.publish("t1", PENDING)


@pytest.mark.parametrize("what", ["publisher", "bus"])
@within(20)
async def test_closed_meanwhile(two: Two, what: str) -> None:
    """What was held is dropped, and nothing comes of that."""
    await flood(two.one)
    if what == "publisher":
        await two.one.aclose()
    else:
        await two.bus.aclose()
        with pytest.raises(BusClosedError):
            await two.one.publish("t1", pending(500))
    await until(lambda: not two.one._waiting)
    assert two.one._held == {}
    if what == "publisher":
        with pytest.raises(PublisherClosedError):
            await two.one.publish("t1", pending(500))


@within(20)
async def test_too_large_among_many(two: Two) -> None:
    """It is refused at once, though it would not have been announced yet."""
    await flood(two.one)
    huge = Result(status=PENDING.status, output=b"x" * 2_000_000)
    with pytest.raises(InvalidResultError, match="more than the 1048576 that the bus takes"):
        await two.one.publish("t1", huge)
    assert (await two.one.get("t1")).output == b"499"
