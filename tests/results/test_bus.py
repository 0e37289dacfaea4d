"""The publisher on a bus: its settings, and what else is on the bus. In memory, on virtual time."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import trio

from tests._helpers.publishers import (
    FAILED,
    PENDING,
    SUCCESS,
    Reader,
    outputs,
    pending,
    rest,
    success,
)
from trio_swarmtask._record import encode
from trio_swarmtask.bus import BusClosedError, InvalidSubjectError, MemoryBus
from trio_swarmtask.results import (
    BusPublisher,
    BusPublisherConfig,
    MemoryPublisher,
    Result,
    ResultExistsError,
    ResultNotFoundError,
    ResultPublisher,
    ResultStatus,
)

pytestmark = pytest.mark.usefixtures("virtual_time")

LONG_AGO = datetime(2026, 4, 19, tzinfo=UTC)


def announcement(result: Result, **changes: Any) -> bytes:
    """As another program would announce it."""
    times = {"created_at": LONG_AGO, "updated_at": LONG_AGO}
    return encode(msgspec.structs.replace(result, **{**times, **changes}))


async def ids(publisher: ResultPublisher) -> set[str]:
    return {result.task_id for result in await publisher.list()}


async def test_knows_only_what_it_heard() -> None:
    """Through its subscriptions, while they were open."""
    bus = MemoryBus()
    async with BusPublisher(bus) as one, BusPublisher(bus) as two:
        await one.publish("t1", SUCCESS)
        with pytest.raises(ResultNotFoundError, match="'t1'"):
            await two.get("t1")
        async with two.subscribe("t2"):
            await one.publish("t2", pending(1))
        await one.publish("t2", success(2))
        assert (await two.get("t2")).output == b"1"


async def test_delete_is_for_this_process() -> None:
    """And so are the subscriptions that it ends."""
    bus = MemoryBus()
    async with (
        BusPublisher(bus) as one,
        BusPublisher(bus) as two,
        one.subscribe("t1") as ones,
        two.subscribe("t1") as twos,
    ):
        await one.publish("t1", pending(1))
        await two.delete("t1")
        assert await outputs(twos) == [b"1"]
        assert await ids(one) == {"t1"}
        await one.publish("t1", success(2))
        assert await outputs(ones) == [b"1", b"2"]


async def test_own_announcements_are_not_doubled() -> None:
    """Each is on the bus once, and comes to each subscriber once."""
    bus = MemoryBus()
    async with bus.subscribe("results.*") as messages, BusPublisher(bus) as publisher:
        async with publisher.subscribe("t1") as one, publisher.subscribe("t1") as two:
            for number in range(5):
                await publisher.publish("t1", pending(number))
            await publisher.publish("t1", success(5))
            expected = [b"%d" % number for number in range(6)]
            assert await outputs(one) == await outputs(two) == expected
        await bus.aclose()
        assert [message.subject async for message in messages] == ["results.t1"] * 6


async def test_same_announcement_twice_is_told_once() -> None:
    bus = MemoryBus()
    data = announcement(pending(1))
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        for _ in range(3):
            await bus.publish("results.t1", data)
        await bus.publish("results.t1", announcement(success(2)))
        assert await outputs(updates) == [b"1", b"2"]


async def test_late_pending_does_not_take_back_the_end() -> None:
    """Neither what is held, nor for a subscriber that comes later; another end may."""
    bus = MemoryBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        await bus.publish("results.t1", announcement(success(1)))
        await bus.publish("results.t1", announcement(pending(2)))
        assert await outputs(updates) == [b"1"]
        assert (await publisher.get("t1")).output == b"1"
        with pytest.raises(ResultExistsError, match="'t1' has ended with success"):
            await publisher.publish("t1", pending(3))
        async with publisher.subscribe("t1") as late:
            assert await outputs(late) == [b"1"]
        await bus.publish("results.t1", announcement(FAILED))
        assert (await publisher.get("t1")).status == "failed"


async def test_created_at_of_what_is_heard() -> None:
    """The first one's is kept; an update of our own keeps it too."""
    bus = MemoryBus()
    later = LONG_AGO + timedelta(days=1)
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1"):
        await bus.publish("results.t1", announcement(pending(1)))
        await bus.publish("results.t1", announcement(pending(2), created_at=later))
        got = await publisher.get("t1")
        assert (got.output, got.created_at, got.updated_at) == (b"2", LONG_AGO, LONG_AGO)
        await publisher.publish("t1", success(3))
        got = await publisher.get("t1")
        assert got.created_at == LONG_AGO
        assert got.updated_at is not None
        assert got.updated_at > later


async def test_announcement_without_times() -> None:
    """Is listed first; our own update of it sets them."""
    bus = MemoryBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1"):
        await publisher.publish("t0", Result(status=ResultStatus.SUCCESS, created_at=LONG_AGO))
        await bus.publish("results.t1", b'{"Status":"pending"}')
        listed = await publisher.list()
        assert [result.task_id for result in listed] == ["t1", "t0"]
        assert (listed[0].created_at, listed[0].updated_at) == (None, None)
        await publisher.publish("t1", PENDING)
        assert (await publisher.get("t1")).created_at is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"null",
        b'{"TaskID":"t1"}',
        b'{"TaskID":"t1","Status":"done"}',
        b'{"TaskID":"t2","Status":"success"}',
        b'{"Status":"success","Output":"?"}',
        b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:20]),
)
async def test_malformed_announcement(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Logged once however many follow, skipped, and nothing ends."""
    bus = MemoryBus()
    async with (
        BusPublisher(bus) as publisher,
        publisher.subscribe("t1") as one,
        publisher.subscribe("t1") as two,
    ):
        await bus.publish("results.t1", data)
        assert await publisher.list() == []
        await bus.publish("results.t1", announcement(pending(1)))
        await bus.publish("results.t1", data)
        assert (await publisher.get("t1")).output == b"1"
        await bus.publish("results.t1", announcement(success(2)))
        assert await outputs(one) == await outputs(two) == [b"1", b"2"]
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("trio_swarmtask.results", logging.ERROR)
    ] * 2
    for record in caplog.records:
        assert record.getMessage().startswith("skipped what came on results.t1: ")


async def test_closing_the_publisher_leaves_the_bus_open() -> None:
    bus = MemoryBus()
    async with bus.subscribe("results.*") as messages:
        async with BusPublisher(bus) as publisher:
            await publisher.publish("t1", SUCCESS)
        async with BusPublisher(bus) as publisher:
            await publisher.publish("t2", SUCCESS)
        assert [(await anext(messages)).subject for _ in range(2)] == ["results.t1", "results.t2"]


async def test_nothing_is_left_on_the_bus() -> None:
    """Of a subscription that was left, or given up, or whose publisher is closed."""
    bus = MemoryBus()
    publisher = BusPublisher(bus)
    async with publisher.subscribe("t1"), publisher.subscribe("t1"), publisher.subscribe("t2"):
        assert len(bus._listeners) == 2
        await publisher.publish("t1", PENDING)
    assert not bus._listeners
    with trio.CancelScope() as scope:
        scope.cancel()
        async with publisher.subscribe("t1"):
            pytest.fail("it was entered")
    assert not bus._listeners
    assert (publisher._topics, publisher._sent) == ({}, {})
    assert publisher._locks._locks == {}


async def test_closed_bus_ends_subscriptions() -> None:
    """A reader who sleeps too; what is buffered can still be read."""
    bus = MemoryBus()
    async with BusPublisher(bus) as publisher, trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        async with publisher.subscribe("t2") as updates:
            await publisher.publish("t2", pending(1))
            await reader.got(0)
            await bus.aclose()
            await reader.ended.wait()
            assert await outputs(updates) == [b"1"]
        with pytest.raises(BusClosedError, match="the bus is closed"):
            await publisher.publish("t2", SUCCESS)
        with pytest.raises(BusClosedError, match="the bus is closed"):
            async with publisher.subscribe("t3"):
                pytest.fail("it was entered")
        assert (await publisher.get("t2")).output == b"1"


async def test_subscribing_on_a_closed_bus_beside_one_that_has_ended() -> None:
    """It can hear of nothing any more: an error, or an end; not a wait for ever."""
    bus = MemoryBus()
    async with BusPublisher(bus) as publisher, publisher.subscribe("t1") as updates:
        await bus.aclose()
        assert await rest(updates) == []
        with trio.fail_after(60):
            try:
                async with publisher.subscribe("t1") as late:
                    assert await rest(late) == []
            except BusClosedError:
                pass


async def test_publish_given_up_leaves_nothing() -> None:
    """Neither here nor on the bus."""
    bus = MemoryBus()
    async with bus.subscribe(">") as messages, BusPublisher(bus) as publisher:
        async with publisher.subscribe("t1") as updates:
            with trio.CancelScope() as scope:
                scope.cancel()
                await publisher.publish("t1", pending(1))
            assert await publisher.list() == []
            await publisher.publish("t1", success(2))
            assert await outputs(updates) == [b"2"]
        await bus.aclose()
        assert len([message async for message in messages]) == 1


# Its settings, and how many results it holds


def test_config_s_defaults() -> None:
    config = BusPublisherConfig()
    assert (config.subject_prefix, config.buffer_size, config.max_results) == (
        "results",
        16,
        10_000,
    )


@pytest.mark.parametrize(
    "prefix", ["", ".", "a.", ".a", "a..b", "a b", "*", "a.>", "a.*", "a\n", None, 5, b"results"]
)
def test_bad_prefix(prefix: str) -> None:
    with pytest.raises(InvalidSubjectError, match="can't publish on subject"):
        BusPublisherConfig(subject_prefix=prefix)


@pytest.mark.parametrize("setting", ["buffer_size", "max_results"])
def test_bad_number(setting: str) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"{setting} must be from 1 up, not {number}"):
            BusPublisherConfig(**{setting: number})
    odd: Any
    for odd in (1.0, "1", None, True):
        with pytest.raises(TypeError, match=f"{setting} must be a whole number, not {odd!r}"):
            BusPublisherConfig(**{setting: odd})


def test_bad_buffer_of_a_memory_publisher() -> None:
    with pytest.raises(ValueError, match="buffer_size must be from 1 up, not 0"):
        MemoryPublisher(buffer_size=0)
    with pytest.raises(TypeError, match="buffer_size must be a whole number, not '1'"):
        odd: Any = "1"
        MemoryPublisher(buffer_size=odd)


async def test_prefix_of_several_tokens() -> None:
    bus = MemoryBus()
    config = BusPublisherConfig(subject_prefix="swarm.a.results")
    async with bus.subscribe(">") as messages, BusPublisher(bus, config) as publisher:
        await publisher.publish("t1", SUCCESS)
        assert (await anext(messages)).subject == "swarm.a.results.t1"
        async with publisher.subscribe("t2") as updates:
            await bus.publish("results.t2", announcement(FAILED))
            await bus.publish("swarm.a.results.t2", announcement(SUCCESS))
            assert await outputs(updates) == [b"42"]


def test_what_is_no_bus() -> None:
    wrong: Any = "nats://127.0.0.1"
    with pytest.raises(
        TypeError, match=r"'nats://… \(not shown: .*\) is not a MessageBus: use MemoryBus or"
    ):
        BusPublisher(wrong)


async def test_max_results_lets_the_oldest_that_ended_go() -> None:
    """Pending ones only where nothing has ended; never the one that just came."""
    async with BusPublisher(MemoryBus(), BusPublisherConfig(max_results=3)) as publisher:
        await publisher.publish("p1", PENDING)
        await publisher.publish("e1", SUCCESS)
        await publisher.publish("e2", FAILED)
        assert await ids(publisher) == {"p1", "e1", "e2"}
        await publisher.publish("e3", SUCCESS)
        assert await ids(publisher) == {"p1", "e2", "e3"}
        with pytest.raises(ResultNotFoundError, match="'e1', or it is gone by now"):
            await publisher.get("e1")
        await publisher.publish("p2", PENDING)
        assert await ids(publisher) == {"p1", "e3", "p2"}
        await publisher.publish("p1", PENDING)  # an update takes no place of its own
        assert await ids(publisher) == {"p1", "e3", "p2"}
        await publisher.publish("p3", PENDING)
        assert await ids(publisher) == {"p1", "p2", "p3"}
        await publisher.publish("p4", PENDING)
        assert await ids(publisher) == {"p2", "p3", "p4"}
        await publisher.publish("e4", SUCCESS)
        assert await ids(publisher) == {"p3", "p4", "e4"}


async def test_max_results_of_one() -> None:
    async with BusPublisher(MemoryBus(), BusPublisherConfig(max_results=1)) as publisher:
        for number in range(3):
            await publisher.publish(f"t{number}", SUCCESS)
            assert await ids(publisher) == {f"t{number}"}
        await publisher.publish("t2", FAILED)
        assert (await publisher.get("t2")).status == "failed"


async def test_max_results_counts_what_was_heard() -> None:
    bus = MemoryBus()
    async with (
        BusPublisher(bus, BusPublisherConfig(max_results=2)) as publisher,
        publisher.subscribe("t1"),
        publisher.subscribe("t2"),
        publisher.subscribe("t3"),
    ):
        for number in (1, 2, 3):
            await bus.publish(f"results.t{number}", announcement(SUCCESS))
        assert await ids(publisher) == {"t2", "t3"}
