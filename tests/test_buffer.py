# The buffer that drops its oldest: what it keeps, how it ends, and who gets what.

from __future__ import annotations

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_swarmtask import AuthenticationError, BrokerError
from trio_swarmtask._sync import LossyBuffer


async def rest(buffer: LossyBuffer[int]) -> list[int | str]:
    """What an ended buffer still holds."""
    items: list[int | str] = []
    await read(buffer, items)
    assert items.pop() == "end"
    return items


async def read(buffer: LossyBuffer[int], items: list[int | str]) -> None:
    """Read to the end, and note what ended it."""
    try:
        while True:
            items.append(await buffer.get())
    except StopAsyncIteration:
        items.append("end")
    except BrokerError as exc:
        items.append(str(exc))


async def test_items_in_their_order() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(3)
    for item in (1, 2, 3):
        buffer.put(item)
    assert [await buffer.get() for _ in range(3)] == [1, 2, 3]
    assert buffer.dropped == 0


@pytest.mark.parametrize("size", [1, 3])
async def test_full_buffer_drops_the_oldest(size: int) -> None:
    buffer: LossyBuffer[int] = LossyBuffer(size)
    for item in range(10):
        buffer.put(item)
    assert buffer.dropped == 10 - size
    buffer.end()
    assert await rest(buffer) == list(range(10 - size, 10))
    assert buffer.dropped == 10 - size


async def test_room_that_was_made_is_used() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(2)
    for item in range(5):
        buffer.put(item)
        assert await buffer.get() == item
    assert buffer.dropped == 0


async def test_get_is_a_checkpoint() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(2)
    buffer.put(1)
    with assert_checkpoints():
        await buffer.get()
    buffer.end()
    with assert_checkpoints(), pytest.raises(StopAsyncIteration):
        await buffer.get()


async def test_cancelled_get_takes_nothing() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(2)
    buffer.put(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await buffer.get()
    assert scope.cancelled_caught
    assert await buffer.get() == 1


async def test_reader_waits(autojump_clock: trio.testing.MockClock) -> None:
    buffer: LossyBuffer[int] = LossyBuffer(2)
    items: list[int | str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, buffer, items)
        await trio.sleep(1000)
        assert items == []
        buffer.put(1)
        await wait_all_tasks_blocked()
        assert items == [1]
        buffer.put(2)
        await wait_all_tasks_blocked()
        buffer.end()
    assert items == [1, 2, "end"]


async def test_each_item_goes_to_one_of_several_readers() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(100)
    shares: list[list[int | str]] = [[], [], []]
    async with trio.open_nursery() as nursery:
        for share in shares:
            nursery.start_soon(read, buffer, share)
        await wait_all_tasks_blocked()
        for item in range(30):
            buffer.put(item)
            if item % 3 == 2:
                await wait_all_tasks_blocked()
        buffer.end()
    assert all(share.pop() == "end" for share in shares)
    assert sorted(item for share in shares for item in share) == list(range(30))
    assert all(shares)
    assert buffer.dropped == 0


async def test_more_readers_than_room() -> None:
    """Those who were woken for an item that was dropped go on waiting."""
    buffer: LossyBuffer[int] = LossyBuffer(1)
    items: list[int | str] = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read, buffer, items)
        await wait_all_tasks_blocked()
        buffer.put(1)
        buffer.put(2)
        buffer.put(3)
        await wait_all_tasks_blocked()
        assert items == [3]
        assert buffer.dropped == 2
        buffer.put(4)
        await wait_all_tasks_blocked()
        assert items == [3, 4]
        buffer.end()
    assert items == [3, 4, "end", "end", "end"]


@pytest.mark.parametrize("first", ["cancel", "put"])
async def test_cancelled_reader_loses_nothing(first: str) -> None:
    """It has the item, or another reader gets it: also when both happen in one step."""
    buffer: LossyBuffer[int] = LossyBuffer(2)
    cancelled: list[int | str] = []
    other: list[int | str] = []
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as doomed:
            doomed.start_soon(read, buffer, cancelled)
            await wait_all_tasks_blocked()
            nursery.start_soon(read, buffer, other)
            await wait_all_tasks_blocked()
            if first == "cancel":
                doomed.cancel_scope.cancel()
                buffer.put(1)
            else:
                buffer.put(1)
                doomed.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        buffer.put(2)
        await wait_all_tasks_blocked()
        buffer.end()
    assert [*cancelled, *other] == [1, 2, "end"]


async def test_end_leaves_what_is_buffered() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(5)
    buffer.put(1)
    buffer.put(2)
    buffer.end()
    assert await rest(buffer) == [1, 2]
    assert await rest(buffer) == []


async def test_end_that_discards() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(5)
    buffer.put(1)
    buffer.end(discard=True)
    assert await rest(buffer) == []
    assert buffer.dropped == 0


async def test_end_that_discards_after_one_that_did_not() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(5)
    buffer.put(1)
    buffer.end()
    buffer.end(discard=True)
    assert await rest(buffer) == []


async def test_put_after_the_end_is_ignored() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(1)
    buffer.put(1)
    buffer.end()
    buffer.put(2)
    assert buffer.dropped == 0
    assert await rest(buffer) == [1]


@pytest.mark.parametrize("discard", [False, True])
async def test_end_wakes_every_reader(discard: bool) -> None:
    buffer: LossyBuffer[int] = LossyBuffer(1)
    items: list[int | str] = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read, buffer, items)
        await wait_all_tasks_blocked()
        buffer.end(discard=discard)
    assert items == ["end"] * 3


async def test_end_with_an_error_comes_after_what_is_buffered() -> None:
    """To every reader, each time, an exception of its own."""
    error = AuthenticationError("lost")
    buffer: LossyBuffer[int] = LossyBuffer(2)
    buffer.put(1)
    buffer.end(error)
    assert await buffer.get() == 1
    seen = []
    for _ in range(2):
        with pytest.raises(AuthenticationError, match=r"^lost$") as raised:
            await buffer.get()
        seen.append(raised.value)
    assert len({id(exc) for exc in (*seen, error)}) == 3


async def test_end_with_an_error_wakes_every_reader() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(2)
    items: list[int | str] = []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(read, buffer, items)
        await wait_all_tasks_blocked()
        buffer.end(BrokerError("lost"))
    assert items == ["lost", "lost"]


async def test_first_end_counts() -> None:
    buffer: LossyBuffer[int] = LossyBuffer(2)
    buffer.end()
    buffer.end(BrokerError("lost"))
    assert await rest(buffer) == []
    broken: LossyBuffer[int] = LossyBuffer(2)
    broken.end(BrokerError("lost"))
    broken.end()
    with pytest.raises(BrokerError, match="lost"):
        await broken.get()
