"""Listing: which results, in which order, how many; on every publisher."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import trio

from tests._helpers.brokers import within
from tests._helpers.publishers import PENDING, SUCCESS, on_shared
from trio_swarmtask.results import Result, ResultFilter, ResultStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_swarmtask.results import ResultPublisher

NOON = datetime(2026, 4, 19, 12, tzinfo=UTC)


def at(minute: int) -> datetime:
    return NOON + timedelta(minutes=minute)


async def fill(publisher: ResultPublisher) -> None:
    """Six results, minutes apart, published in another order than that of their times."""
    for task_id, minute, status, metadata in (
        ("b-3", 3, ResultStatus.FAILED, {"model": "m", "lang": "py"}),
        ("a-1", 1, ResultStatus.SUCCESS, {"model": "m"}),
        ("a-4", 4, ResultStatus.PENDING, {"model": "n"}),
        ("a-0", 0, ResultStatus.SUCCESS, None),
        ("b-5", 5, ResultStatus.SUCCESS, {"model": "m", "lang": "go"}),
        ("b-2", 2, ResultStatus.PENDING, {}),
    ):
        given = Result(status=status, metadata=metadata, created_at=at(minute))
        await publisher.publish(task_id, given)


def ids(results: Sequence[Result]) -> list[str]:
    return [result.task_id for result in results]


ALL = ["a-0", "a-1", "b-2", "b-3", "a-4", "b-5"]

FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ALL),
    ({"status": ResultStatus.SUCCESS}, ["a-0", "a-1", "b-5"]),
    ({"status": ResultStatus.PENDING}, ["b-2", "a-4"]),
    ({"status": ResultStatus.FAILED}, ["b-3"]),
    ({"task_id_prefix": "a"}, ["a-0", "a-1", "a-4"]),
    ({"task_id_prefix": "a-1"}, ["a-1"]),
    ({"task_id_prefix": "-"}, []),
    ({"task_id_prefix": "a-11"}, []),
    ({"task_id_prefix": "*"}, []),
    ({"created_after": at(3)}, ["a-4", "b-5"]),
    ({"created_before": at(2)}, ["a-0", "a-1"]),
    ({"created_after": at(1), "created_before": at(4)}, ["b-2", "b-3"]),
    ({"created_after": at(1), "created_before": at(2)}, []),
    ({"created_after": at(2), "created_before": at(2)}, []),
    ({"created_after": at(3).astimezone(timezone(timedelta(hours=-7)))}, ["a-4", "b-5"]),
    ({"metadata": {}}, ALL),
    ({"metadata": {"model": "m"}}, ["a-1", "b-3", "b-5"]),
    ({"metadata": {"model": "m", "lang": "py"}}, ["b-3"]),
    ({"metadata": {"lang": "m"}}, []),
    ({"limit": 0}, ALL),
    ({"limit": 1}, ALL[:1]),
    ({"limit": 4}, ALL[:4]),
    ({"limit": 6}, ALL),
    ({"limit": 100_000}, ALL),
    ({"limit": 2**70}, ALL),
    ({"limit": 2, "task_id_prefix": "b"}, ["b-2", "b-3"]),
    ({"limit": 1, "status": ResultStatus.PENDING}, ["b-2"]),
    ({"status": ResultStatus.SUCCESS, "task_id_prefix": "a"}, ["a-0", "a-1"]),
    (
        {
            "status": ResultStatus.SUCCESS,
            "task_id_prefix": "b-",
            "created_after": at(0),
            "created_before": at(6),
            "metadata": {"model": "m"},
            "limit": 5,
        },
        ["b-5"],
    ),
    ({"status": ResultStatus.PENDING, "metadata": {"model": "m"}}, []),
]


@within(20)
async def test_filters(publisher: ResultPublisher) -> None:
    """Each condition alone, and together; the bounds are exclusive; the oldest first."""
    await fill(publisher)
    for fields, expected in FILTERS:
        listed = await publisher.list(ResultFilter(**fields))
        assert ids(listed) == expected, fields


@within(10)
async def test_listed_as_they_are_got(publisher: ResultPublisher) -> None:
    await fill(publisher)
    assert list(await publisher.list()) == [await publisher.get(task_id) for task_id in ALL]


@within(10)
async def test_nothing_to_list(publisher: ResultPublisher) -> None:
    assert list(await publisher.list()) == []
    assert list(await publisher.list(ResultFilter(limit=3))) == []


@within(10)
async def test_updates_change_no_place(publisher: ResultPublisher) -> None:
    """The order is that of `created_at`, with and without a limit."""
    for number in range(5):
        await publisher.publish(f"t{number}", PENDING)
    for number in (3, 0, 4):
        await publisher.publish(f"t{number}", SUCCESS)
    await publisher.publish("t1", PENDING)
    assert ids(await publisher.list()) == ["t0", "t1", "t2", "t3", "t4"]
    assert ids(await publisher.list(ResultFilter(limit=2))) == ["t0", "t1"]
    ended = ResultFilter(status=ResultStatus.SUCCESS, limit=2)
    assert ids(await publisher.list(ended)) == ["t0", "t3"]


@within(10)
async def test_deleted_is_not_listed(publisher: ResultPublisher) -> None:
    """And comes last when it begins anew."""
    for number in range(3):
        await publisher.publish(f"t{number}", SUCCESS)
    await publisher.delete("t0")
    assert ids(await publisher.list()) == ["t1", "t2"]
    await publisher.publish("t0", PENDING)
    assert ids(await publisher.list()) == ["t1", "t2", "t0"]


@within(60)
async def test_many(publisher: ResultPublisher) -> None:
    """More than a page holds, and past what a limit lets go of."""
    count = 2300
    # Oldest published last, so that a bounded listing has to replace what it holds.
    for start in range(0, count, 100):
        async with trio.open_nursery() as nursery:
            for number in range(start, start + 100):
                given = Result(status=ResultStatus.SUCCESS, created_at=at(-number))
                task_id = f"{'ab'[number % 2]}{number}"
                nursery.start_soon(publisher.publish, task_id, given)
    newest_last = [f"{'ab'[number % 2]}{number}" for number in reversed(range(count))]
    assert ids(await publisher.list()) == newest_last
    for limit in (1, 10, 1000, count - 1, count, count + 1):
        assert ids(await publisher.list(ResultFilter(limit=limit))) == newest_last[:limit]
    some = ResultFilter(limit=10, task_id_prefix="b1")
    expected = [task_id for task_id in newest_last if task_id.startswith("b1")]
    assert ids(await publisher.list(some)) == expected[:10]


@on_shared
@within(30)
async def test_large_results(publisher: ResultPublisher, other: ResultPublisher) -> None:
    """A page ends before it has too many bytes; listing goes on until all have come."""
    large = Result(status=ResultStatus.SUCCESS, output=b"x" * 600_000)
    for number in range(12):
        await publisher.publish(f"t{number:02}", large)
    listed = await other.list()
    assert ids(listed) == [f"t{number:02}" for number in range(12)]
    assert {result.output for result in listed} == {large.output}
