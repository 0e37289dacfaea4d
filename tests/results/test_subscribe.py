"""Following a task: what comes, and what ends it; on every publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.publishers import (
    FAILED,
    PENDING,
    SUCCESS,
    Reader,
    on_heard,
    on_shared,
    outputs,
    pending,
    rest,
    success,
)
from trio_swarmtask.results import Result, Subscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask.results import ResultPublisher


@within(10)
async def test_stored_first_then_updates(publisher: ResultPublisher) -> None:
    """The same records as `get` gives; and the end ends it."""
    await publisher.publish("t1", pending(0))
    await publisher.publish("t1", pending(1))
    seen = [await publisher.get("t1")]
    async with publisher.subscribe("t1") as updates:
        assert isinstance(updates, Subscription)
        for result in (pending(2), pending(3), success(4)):
            await publisher.publish("t1", result)
            seen.append(await publisher.get("t1"))
        assert await rest(updates) == seen
        assert await rest(updates) == []
    assert await rest(updates) == []


@pytest.mark.parametrize("end", [SUCCESS, FAILED], ids=["success", "failed"])
@within(10)
async def test_ends_after_a_terminal_state(publisher: ResultPublisher, end: Result) -> None:
    """A reader who sleeps; what is published after the end is not its."""
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await trio.testing.wait_all_tasks_blocked()
        await publisher.publish("t1", end)
        await publisher.publish("t1", success(2))
        await reader.ended.wait()
    assert [(update.status, update.error) for update in reader.read] == [(end.status, end.error)]


@pytest.mark.parametrize("end", [SUCCESS, FAILED], ids=["success", "failed"])
@within(10)
async def test_late_subscriber_gets_the_end_and_no_more(
    publisher: ResultPublisher, end: Result
) -> None:
    await publisher.publish("t1", PENDING)
    await publisher.publish("t1", end)
    stored = await publisher.get("t1")
    for _ in range(2):
        async with publisher.subscribe("t1") as updates:
            assert await rest(updates) == [stored]


@within(10)
async def test_late_subscriber_beside_one_that_has_ended(publisher: ResultPublisher) -> None:
    """And gets what replaced the first end."""
    async with publisher.subscribe("t1") as first:
        await publisher.publish("t1", success(1))
        assert await outputs(first) == [b"1"]
        async with publisher.subscribe("t1") as second:
            assert await outputs(second) == [b"1"]
        await publisher.publish("t1", success(2))
        async with publisher.subscribe("t1") as third:
            assert (await outputs(third))[-1] == b"2"


@on_shared
@within(10)
async def test_late_subscriber_in_another_process(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    await publisher.publish("t1", SUCCESS)
    async with other.subscribe("t1") as updates:
        assert await rest(updates) == [await publisher.get("t1")]


@within(10)
async def test_unknown_id_is_waited_for(publisher: ResultPublisher) -> None:
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await trio.testing.wait_all_tasks_blocked()
        assert reader.read == []
        assert not reader.ended.is_set()
        await publisher.publish("t2", SUCCESS)
        await publisher.publish("t1", pending(1))
        await reader.got(1)
        await publisher.publish("t1", success(2))
    assert [update.output for update in reader.read] == [b"1", b"2"]


@on_heard
@within(10)
async def test_updates_of_another_process(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    """Are followed, its first one too; `created_at` is the first one's."""
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await other.publish("t1", pending(1))
        await reader.got(1)
        await publisher.publish("t1", pending(2))
        await reader.got(2)
        await other.publish("t1", success(3))
        await reader.ended.wait()
    assert [update.output for update in reader.read] == [b"1", b"2", b"3"]
    assert len({update.created_at for update in reader.read}) == 1
    assert (await publisher.get("t1")).output == b"3"


@within(10)
async def test_each_of_several_subscribers_gets_all(publisher: ResultPublisher) -> None:
    async with trio.open_nursery() as nursery:
        readers = [await nursery.start(Reader(publisher, "t1").run) for _ in range(5)]
        await publisher.publish("t1", pending(0))
        async with publisher.subscribe("t1") as updates:
            assert (await anext(updates)).output == b"0"  # one that leaves early
        await publisher.publish("t1", pending(1))
        await publisher.publish("t1", success(2))
    for reader in readers:
        assert [update.output for update in reader.read] == [b"0", b"1", b"2"]


async def cancel(_: ResultPublisher, reader: Reader) -> None:
    reader.updates.cancel()


async def delete(publisher: ResultPublisher, _: Reader) -> None:
    await publisher.delete("t1")


async def aclose(publisher: ResultPublisher, _: Reader) -> None:
    await publisher.aclose()


ENDS: dict[str, Callable[[ResultPublisher, Reader], Awaitable[None]]] = {
    "cancel": cancel,
    "delete": delete,
    "aclose": aclose,
}


@pytest.mark.parametrize("end", ENDS)
@within(10)
async def test_sleeping_reader_is_woken(publisher: ResultPublisher, end: str) -> None:
    """By `cancel`, by `delete`, and by `aclose`."""
    await publisher.publish("t1", pending(1))
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(1)
        assert not reader.ended.is_set()
        await ENDS[end](publisher, reader)
        await reader.ended.wait()
    assert [update.output for update in reader.read] == [b"1"]


@pytest.mark.parametrize("end", ["cancel", "aclose"])
@within(10)
async def test_reader_of_an_unknown_id_is_woken(publisher: ResultPublisher, end: str) -> None:
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(0)
        await ENDS[end](publisher, reader)
        await reader.ended.wait()
    assert reader.read == []


@within(10)
async def test_cancel_drops_what_was_not_read(publisher: ResultPublisher) -> None:
    """For this subscription alone; twice is fine, and before entering too."""
    async with publisher.subscribe("t1") as one, publisher.subscribe("t1") as two:
        await publisher.publish("t1", pending(1))
        assert (await anext(one)).output == b"1"
        await publisher.publish("t1", pending(2))
        one.cancel()
        one.cancel()
        assert await rest(one) == []
        await publisher.publish("t1", success(3))
        assert await outputs(two) == [b"1", b"2", b"3"]
        assert await rest(one) == []
    updates = publisher.subscribe("t1")
    updates.cancel()
    async with updates:
        assert await rest(updates) == []


@on_shared
@within(10)
async def test_delete_in_another_process_ends(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    await publisher.publish("t1", pending(1))
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(1)
        await other.delete("t1")
        await reader.ended.wait()
    assert [update.output for update in reader.read] == [b"1"]


@within(10)
async def test_subscribing_after_delete_begins_anew(publisher: ResultPublisher) -> None:
    """Also while an ended subscription to the same task is open."""
    await publisher.publish("t1", success(1))
    async with publisher.subscribe("t1") as before:
        await publisher.delete("t1")
        assert await outputs(before) in ([b"1"], [])
        async with trio.open_nursery() as nursery:
            reader = await nursery.start(Reader(publisher, "t1").run)
            await reader.got(0)
            assert not reader.ended.is_set()
            await publisher.publish("t1", pending(2))
            await publisher.publish("t1", success(3))
    assert [update.output for update in reader.read] == [b"2", b"3"]


@within(10)
async def test_deleted_id_is_waited_for(publisher: ResultPublisher) -> None:
    """As an unknown one is."""
    await publisher.publish("t1", success(1))
    await publisher.delete("t1")
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(0)
        assert not reader.ended.is_set()
        await publisher.publish("t1", pending(2))
        await publisher.publish("t1", success(3))
    assert [update.output for update in reader.read] == [b"2", b"3"]
