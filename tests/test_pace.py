"""How often what is told of a task goes out, on virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from trio_swarmtask._sync import Pace, Paced

if TYPE_CHECKING:
    from trio.testing import MockClock


class Sent:
    """What went out, and when."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.all: list[tuple[int, float]] = []

    def send(self, data: bytes, number: int) -> None:
        self.all.append((number, round(trio.current_time() - self.began, 2)))

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.all]


async def test_pace_of_small_ones(autojump_clock: MockClock) -> None:
    """Sixteen at once, then ten a second; a pause is made up for, but no more than that."""
    pace = Pace()
    for _ in range(3):
        count, began = 0, trio.current_time()
        while trio.current_time() < began + 10:
            while pace.free_at <= trio.current_time():
                pace.spend(100)
                count += 1
            await trio.sleep_until(pace.free_at)
        assert count == pytest.approx(16 + 100, abs=1)
        await trio.sleep(60)


async def test_pace_of_large_ones(autojump_clock: MockClock) -> None:
    """By their bytes."""
    pace = Pace()
    count = 0
    with trio.move_on_after(100):
        while True:
            await trio.sleep_until(pace.free_at)
            pace.spend(1_000_000)
            count += 1
    assert count == 11  # one at once, then one in ten seconds


async def test_newest_goes_out_in_time(autojump_clock: MockClock) -> None:
    sent = Sent()
    async with trio.open_nursery() as nursery:
        paced = Paced(sent.send, nursery)
        for number in range(100):
            paced.tell(b"x", number)
        assert sent.numbers == list(range(16))
        await trio.sleep(0.04)
        assert sent.numbers == list(range(16))
        await trio.sleep(10)
        assert sent.all[16:] == [(99, 0.05)]
        for number in range(100, 110):
            paced.tell(b"x", number)
        assert sent.numbers[17:] == list(range(100, 110))
        paced.end()
    assert len(sent.all) == 27


async def test_end(autojump_clock: MockClock) -> None:
    """What was held goes out right then, the newest sixteen in their order."""
    sent = Sent()
    async with trio.open_nursery() as nursery:
        paced = Paced(sent.send, nursery)
        for number in range(100):
            paced.tell(b"x", number)
        paced.end()
        paced.end()
    assert sent.numbers == [*range(16), *range(84, 100)]
    assert trio.current_time() == sent.began  # nothing waits any more


async def test_end_with_large_ones(autojump_clock: MockClock) -> None:
    """The newest whatever its size, and of the rest what is no burden."""
    for size, held in ((10_000, 5), (30_000, 1), (1_000_000, 1)):
        sent = Sent()
        async with trio.open_nursery() as nursery:
            paced = Paced(sent.send, nursery)
            for number in range(100):
                paced.tell(b"x" * size, number)
            at_once = len(sent.all)
            assert at_once <= 16
            paced.end()
        assert sent.numbers[at_once:] == list(range(100 - held, 100))


async def test_no_more_is_held_than_goes_out(autojump_clock: MockClock) -> None:
    """A task that has no end in sight holds little, but for the newest."""
    sent = Sent()
    async with trio.open_nursery() as nursery:
        paced = Paced(sent.send, nursery)
        for number, size in enumerate([1_000_000] * 20 + [1_000] * 20):
            paced.tell(b"x" * size, number)
            assert paced._held_bytes <= 1_000_000
        assert paced._held_bytes == 16_000
        paced.end()
    assert sent.numbers == [0, *range(24, 40)]
    assert paced._held_bytes == 0
