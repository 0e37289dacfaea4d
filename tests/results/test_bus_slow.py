"""The publisher on a bus that is slow: what happens between sending and hearing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.publishers import FAILED, Reader, outputs, pending, success
from tests.results.test_bus import announcement
from trio_swarmtask._bus import BusMessage, Listener, MessageBus
from trio_swarmtask.results import BusPublisher, PublisherClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable

pytestmark = pytest.mark.usefixtures("virtual_time")


class SlowBus(MessageBus):
    """Sends only while it is up, and delivers what was sent only when it is told to."""

    def __init__(self) -> None:
        super().__init__(16)
        self.up = trio.Event()
        self.up.set()
        self.under_way: list[tuple[list[Listener], BusMessage]] = []

    async def publish(self, subject: str, data: bytes) -> None:
        await self.up.wait()
        await trio.lowlevel.checkpoint()  # whoever waited too is a listener by now
        receivers = [one for one in self._listeners if one.subject == subject]
        self.under_way.append((receivers, BusMessage(subject, data)))

    def deliver(self) -> None:
        """All that was sent, in order, to those who listened then and still do."""
        under_way, self.under_way = self.under_way, []
        for receivers, message in under_way:
            for receiver in receivers:
                if receiver in self._listeners:
                    receiver.hear(message)

    def request(self, subject: str, data: bytes) -> Awaitable[BusMessage]:  # type: ignore[override]  # a stand-in
        raise NotImplementedError

    async def _attach(self, listener: Listener) -> None:
        await self.up.wait()

    def _detach(self, listener: Listener) -> None:
        pass


async def test_own_announcements_that_come_late() -> None:
    """They tell nobody anything, whatever was published meanwhile."""
    bus = SlowBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        for number in range(3):
            await publisher.publish("t1", pending(number))
        bus.deliver()
        assert (await publisher.get("t1")).output == b"2"
        await publisher.publish("t1", success(3))
        bus.deliver()
        assert await outputs(updates) == [b"0", b"1", b"2", b"3"]


async def test_own_announcements_that_were_lost() -> None:
    """Those that come back after them tell nobody anything either."""
    bus = SlowBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        for number in range(3):
            await publisher.publish("t1", pending(number))
        bus.under_way.clear()
        await publisher.publish("t1", pending(3))
        bus.deliver()
        await publisher.publish("t1", success(4))
        bus.deliver()
        assert await outputs(updates) == [b"%d" % number for number in range(5)]


async def test_own_announcement_that_comes_after_a_change_of_subscribers() -> None:
    """The last one left and another came while a publish waited for the bus."""
    bus = SlowBus()
    async with BusPublisher(bus) as publisher, trio.open_nursery() as nursery:
        async with publisher.subscribe("t1"):
            bus.up = trio.Event()
            nursery.start_soon(publisher.publish, "t1", pending(1))
            await trio.testing.wait_all_tasks_blocked()
        reader = Reader(publisher, "t1")
        nursery.start_soon(nursery.start, reader.run)
        await trio.testing.wait_all_tasks_blocked()
        bus.up.set()
        await reader.got(0)
        await publisher.publish("t1", pending(2))
        bus.deliver()
        assert (await publisher.get("t1")).output == b"2"
        await publisher.publish("t1", success(3))
        bus.deliver()
        await reader.ended.wait()
    numbers = [int(update.output) for update in reader.read]
    assert numbers == sorted(set(numbers))
    assert numbers[-2:] == [2, 3]


async def test_end_that_is_heard_while_a_pending_is_sent() -> None:
    """Stands; the pending one is told to nobody here."""
    bus = SlowBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        bus.up = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.publish, "t1", pending(1))
            await trio.testing.wait_all_tasks_blocked()
            listeners = list(bus._listeners)
            bus.under_way.append((listeners, BusMessage("results.t1", announcement(FAILED))))
            bus.deliver()
            bus.up.set()
        assert (await publisher.get("t1")).status == "failed"
        bus.deliver()
        assert (await publisher.get("t1")).status == "failed"
        assert [update.error async for update in updates] == ["disk full"]


async def test_publish_given_up_while_it_waits() -> None:
    """Leaves nothing: it is not stored, and a later announcement is still known for our own."""
    bus = SlowBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        await publisher.publish("t1", pending(1))
        bus.up = trio.Event()
        with trio.move_on_after(1) as scope:
            await publisher.publish("t1", pending(2))
        assert scope.cancelled_caught
        bus.up.set()
        assert (await publisher.get("t1")).output == b"1"
        bus.deliver()
        await publisher.publish("t1", success(3))
        bus.deliver()
        assert await outputs(updates) == [b"1", b"3"]


@pytest.mark.parametrize("call", ["publish", "enter"])
async def test_closing_ends_what_waits(call: str) -> None:
    """For a bus that stays, and is down."""
    bus = SlowBus()
    publisher = BusPublisher(bus)

    async def act() -> None:
        with pytest.raises(PublisherClosedError, match="the publisher"):
            if call == "publish":
                await publisher.publish("t1", pending(1))
            else:
                async with publisher.subscribe("t1"):
                    pytest.fail("it was entered")
        closed.set()

    closed = trio.Event()
    bus.up = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(act)
        await trio.testing.wait_all_tasks_blocked()
        await publisher.aclose()
        with trio.fail_after(1):
            await closed.wait()


async def test_publishes_of_one_task_keep_their_order() -> None:
    """Those that come while one waits for the bus wait for it; other tasks don't."""
    bus = SlowBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        bus.up = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(publisher.publish, "t1", pending(number))
                await trio.testing.wait_all_tasks_blocked()
            bus.up.set()
        await publisher.publish("t1", success(5))
        assert await outputs(updates) == [b"%d" % number for number in range(6)]
    assert publisher._locks._locks == {}
