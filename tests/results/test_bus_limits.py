"""The publisher on a bus: its settings, and how many results it holds. On virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from tests._helpers.publishers import FAILED, PENDING, SUCCESS, outputs
from tests.results.test_bus import announcement, ids
from trio_swarmtask.bus import InvalidSubjectError, MemoryBus
from trio_swarmtask.results import (
    BusPublisher,
    BusPublisherConfig,
    MemoryPublisher,
    ResultNotFoundError,
)

pytestmark = pytest.mark.usefixtures("virtual_time")


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
