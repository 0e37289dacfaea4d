"""What a listing holds while it reads, and the locks that publishers of one task share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio

from trio_swarmtask._sync import KeyedLocks
from trio_swarmtask.results import Result, ResultFilter, ResultStatus
from trio_swarmtask.results._select import Selection

NOON = datetime(2026, 4, 19, 12, tzinfo=UTC)


def result(number: int, status: ResultStatus = ResultStatus.SUCCESS) -> Result:
    """One that was created ``number`` seconds after noon."""
    created = NOON + timedelta(seconds=number)
    return Result(task_id=f"t{number}", status=status, created_at=created)


def numbers(selection: Selection) -> list[int]:
    return [int(result.task_id[1:]) for result in selection.results()]


def test_oldest_up_to_the_limit() -> None:
    selection = Selection(ResultFilter(limit=3))
    for number in (5, 1, 4, 2, 3):
        selection.offer(result(number))
    assert numbers(selection) == [1, 2, 3]
    selection.offer(result(0))
    assert numbers(selection) == [0, 1, 2]


def test_cutting_holds_no_more_than_the_limit() -> None:
    """And gives what holding all would give."""
    numbers_in_pages = [[5, 9, 1], [], [8, 2], [0, 7, 3, 6, 4]]
    selection, whole = Selection(ResultFilter(limit=3)), Selection(ResultFilter(limit=3))
    for page in numbers_in_pages:
        for number in page:
            selection.offer(result(number))
            whole.offer(result(number))
        selection.cut()
        assert len(selection._held) <= 3
        assert numbers(selection) == numbers(whole)
    assert numbers(selection) == [0, 1, 2]


def test_cutting_without_a_limit_lets_nothing_go() -> None:
    selection = Selection(ResultFilter())
    for number in reversed(range(3000)):
        selection.offer(result(number))
        if number % 100 == 0:
            selection.cut()
    selection.withdraw("t0")
    assert numbers(selection) == list(range(1, 3000))


def test_without_cutting_the_next_one_takes_the_place() -> None:
    """Where an entry comes more than once: the newest may be that it is gone."""
    selection = Selection(ResultFilter(limit=1))
    for number in range(3000):
        selection.offer(result(number))
    for number in range(2999):
        selection.withdraw(f"t{number}")
    assert numbers(selection) == [2999]


def test_later_one_replaces() -> None:
    """An ID is given once, as it was read last."""
    selection = Selection(ResultFilter())
    selection.offer(result(1, ResultStatus.PENDING))
    selection.offer(result(2, ResultStatus.PENDING))
    selection.offer(result(1, ResultStatus.FAILED))
    assert [found.status for found in selection.results()] == ["failed", "pending"]


def test_one_that_no_longer_matches_is_withdrawn() -> None:
    selection = Selection(ResultFilter(status=ResultStatus.PENDING, limit=2))
    for number in range(3):
        selection.offer(result(number, ResultStatus.PENDING))
    selection.offer(result(0, ResultStatus.SUCCESS))
    assert numbers(selection) == [1, 2]
    selection.withdraw("t1")
    selection.withdraw("never there")
    assert numbers(selection) == [2]
    selection.offer(result(1, ResultStatus.PENDING))
    assert numbers(selection) == [1, 2]


def test_once_cut_a_withdrawn_one_stays_as_it_was_read() -> None:
    """What could take its place is gone, and fewer than the limit would be wrong as well."""
    selection = Selection(ResultFilter(limit=2, status=ResultStatus.PENDING))
    for number in range(2):
        selection.offer(result(number, ResultStatus.PENDING))
    selection.cut()  # there is nothing to let go of
    selection.withdraw("t0")
    assert numbers(selection) == [1]
    for number in (0, 2):
        selection.offer(result(number, ResultStatus.PENDING))
    selection.cut()
    selection.withdraw("t0")
    selection.offer(result(1, ResultStatus.SUCCESS))
    assert [(found.task_id, found.status) for found in selection.results()] == [
        ("t0", "pending"),
        ("t1", "pending"),
    ]


def test_one_without_a_time_is_the_oldest() -> None:
    selection = Selection(ResultFilter(limit=2))
    selection.offer(result(1))
    selection.offer(Result(task_id="t9", status=ResultStatus.SUCCESS))
    selection.offer(result(0))
    assert numbers(selection) == [9, 0]


async def test_locks_let_one_in_at_a_time(virtual_time: None) -> None:
    """In their order; the holders of another key don't wait."""
    locks = KeyedLocks()
    order: list[str] = []

    async def hold(key: str, name: str) -> None:
        async with locks.hold(key):
            order.append(f"{name} in")
            await trio.sleep(1)
            order.append(f"{name} out")

    async with trio.open_nursery() as nursery:
        for key, name in (("a", "1"), ("a", "2"), ("a", "3"), ("b", "4")):
            nursery.start_soon(hold, key, name)
            await trio.testing.wait_all_tasks_blocked()
        assert set(locks._locks) == {"a", "b"}
    of_a = [step for step in order if not step.startswith("4")]
    assert of_a == ["1 in", "1 out", "2 in", "2 out", "3 in", "3 out"]
    assert order.index("4 in") < order.index("1 out")
    assert locks._locks == {}


async def test_locks_leave_nothing_behind(virtual_time: None) -> None:
    """Not of a holder that failed, nor of one that gave up waiting."""
    locks = KeyedLocks()
    with pytest.raises(LookupError, match="mine"):
        async with locks.hold("a"):
            raise LookupError("mine")
    assert locks._locks == {}

    async def give_up() -> None:
        with trio.move_on_after(1) as scope:
            async with locks.hold("a"):
                pytest.fail("there are two")
        assert scope.cancelled_caught

    async with locks.hold("a"):
        async with trio.open_nursery() as nursery:  # noqa: ASYNC112 - the lock is its own already
            nursery.start_soon(give_up)
        assert set(locks._locks) == {"a"}  # it is still held
    assert locks._locks == {}
    with trio.CancelScope() as scope:
        scope.cancel()
        async with locks.hold("a"):
            pytest.fail("it was taken")
    assert locks._locks == {}
