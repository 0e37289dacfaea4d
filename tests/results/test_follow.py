"""Nothing lost, nothing doubled: slow readers, bursts, and subscribing in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import until, within
from tests._helpers.publishers import (
    SUCCESS,
    Publishers,
    Reader,
    on_heard,
    outputs,
    pending,
    rest,
    success,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask.results import ResultPublisher

UPDATES = 30


@pytest.mark.parametrize("size", [1, 3])
@within(10)
async def test_full_buffer_loses_the_oldest(publishers: Publishers, size: int) -> None:
    """Never the newest."""
    async with (
        publishers.open(buffer_size=size) as publisher,
        trio.open_nursery() as nursery,
        publisher.subscribe("t1") as updates,
    ):
        witness = await nursery.start(Reader(publisher, "t1").run)
        for number in range(10):
            await publisher.publish("t1", pending(number))
            await witness.got(number + 1)  # so the slow one has been told, too
        kept = [(await anext(updates)).output for _ in range(size)]
        assert kept == [b"%d" % number for number in range(10 - size, 10)]
        await publisher.publish("t1", success(10))
        assert await outputs(updates) == [b"10"]
    assert [update.output for update in witness.read] == [b"%d" % number for number in range(11)]


@within(10)
async def test_end_in_a_full_buffer(publishers: Publishers) -> None:
    async with (
        publishers.open(buffer_size=2) as publisher,
        publisher.subscribe("t1") as updates,
        publisher.subscribe("t1") as witness,
    ):
        for number in range(5):
            await publisher.publish("t1", pending(number))
        await publisher.publish("t1", success(5))
        await until(lambda: witness._buffer._ended)
        assert await outputs(updates) == [b"4", b"5"]


@within(10)
async def test_delete_leaves_what_was_not_read(publisher: ResultPublisher) -> None:
    async with publisher.subscribe("t1") as updates, publisher.subscribe("t1") as witness:
        await publisher.publish("t1", pending(1))
        await anext(witness)
        await publisher.delete("t1")
        assert await rest(witness) == []
        assert await outputs(updates) == [b"1"]


async def check_rounds(publisher: ResultPublisher, follower: ResultPublisher) -> None:
    """Subscribers that come at every moment of a burst; each gets an unbroken tail of it."""

    async def publish(task_id: str, done: trio.Event) -> None:
        for number in range(UPDATES - 1):
            await publisher.publish(task_id, pending(number))
        await publisher.publish(task_id, success(UPDATES - 1))
        done.set()

    async def follow(task_id: str, steps: int) -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        async with follower.subscribe(task_id) as updates:
            got.append([int(output) for output in await outputs(updates)])

    firsts: set[int] = set()
    for round_number in range(8):
        got: list[list[int]] = []
        done = trio.Event()
        task_id = f"t{round_number}"
        async with trio.open_nursery() as nursery:
            # The first is there from the beginning, so that those of a bus hear of the end.
            reader = await nursery.start(Reader(follower, task_id).run)
            nursery.start_soon(publish, task_id, done)
            for steps in range(0, 3 * UPDATES, 7):
                nursery.start_soon(follow, task_id, steps + round_number)
        assert [update.output for update in reader.read] == [b"%d" % n for n in range(UPDATES)]
        assert len(got) == len(range(0, 3 * UPDATES, 7))
        for numbers in got:
            assert numbers == list(range(numbers[0], UPDATES))
        firsts.update(numbers[0] for numbers in got)
    assert firsts - {0, UPDATES - 1}, "none came in the middle"


@pytest.fixture
async def roomy(publishers: Publishers) -> AsyncIterator[ResultPublisher]:
    """A publisher whose buffers lose nothing."""
    async with publishers.open(buffer_size=UPDATES) as publisher:
        yield publisher


@within(30)
async def test_subscribing_in_the_middle(roomy: ResultPublisher) -> None:
    """What is stored, then each update: nothing between them is lost, nothing comes twice."""
    await check_rounds(roomy, roomy)


@on_heard
@within(30)
async def test_subscribing_in_the_middle_of_another_process(
    roomy: ResultPublisher, other: ResultPublisher
) -> None:
    await check_rounds(other, roomy)


@within(30)
async def test_every_subscriber_alone_in_the_middle(roomy: ResultPublisher) -> None:
    """The only one of its task, so that it opens what it hears of updates by itself."""
    for round_number in range(20):
        task_id = f"t{round_number}"

        async def publish() -> None:
            for number in range(UPDATES - 1):
                await roomy.publish(task_id, pending(number))  # noqa: B023 - in this round
            await roomy.publish(task_id, success(UPDATES - 1))  # noqa: B023 - in this round

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            for _ in range(round_number):
                await trio.lowlevel.checkpoint()
            async with roomy.subscribe(task_id) as updates:
                numbers = [int(output) for output in await outputs(updates)]
        assert numbers == list(range(numbers[0], UPDATES))


@within(60)
async def test_600_tasks_end_at_once_followed_by_600_readers(publisher: ResultPublisher) -> None:
    """None misses its end, whether it came before, in the middle or after."""
    ends: dict[str, list[bytes]] = {}

    async def follow(task_id: str, *, task_status: trio.TaskStatus[None]) -> None:
        async with publisher.subscribe(task_id) as updates:
            task_status.started()
            ends[task_id] = await outputs(updates)

    ids = [f"t{number}" for number in range(600)]
    async with trio.open_nursery() as nursery:
        for task_id in ids[:200]:
            await nursery.start(follow, task_id)
        for task_id in ids[200:400]:
            nursery.start_soon(nursery.start, follow, task_id)
        for task_id in ids:
            nursery.start_soon(publisher.publish, task_id, SUCCESS)
        for task_id in ids[400:]:
            nursery.start_soon(nursery.start, follow, task_id)
    assert ends == {task_id: [b"42"] for task_id in ids}


@on_heard
@within(60)
async def test_600_tasks_of_another_process(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    """Readers that were there before."""
    ids = [f"t{number}" for number in range(600)]
    async with trio.open_nursery() as nursery:
        readers: list[Reader] = []
        starts = trio.CapacityLimiter(50)

        async def begin(task_id: str) -> None:
            async with starts:
                readers.append(await nursery.start(Reader(publisher, task_id).run))

        async with trio.open_nursery() as starting:
            for task_id in ids:
                starting.start_soon(begin, task_id)
        for task_id in ids:
            nursery.start_soon(other.publish, task_id, SUCCESS)
    assert len(readers) == 600
    for reader in readers:
        assert [update.output for update in reader.read] == [b"42"]
