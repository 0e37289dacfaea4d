"""Bad task IDs, statuses and fields are refused, and nothing is stored; on every publisher."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

import pytest

from tests._helpers.brokers import within
from tests._helpers.publishers import PENDING, SUCCESS, Publishers, rest
from trio_swarmtask import SwarmTaskError
from trio_swarmtask.results import (
    InvalidResultError,
    InvalidStatusError,
    InvalidTaskIDError,
    Result,
    ResultFilter,
    ResultPublisher,
    ResultStatus,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ODD_IDS = ["a.b", "a b", "*", ">", "x" * 129, "ü", "a\n", "t1\0", "$", "a/b"]
NO_STRINGS: list[Any] = [None, 5, b"t1", ["t1"], ResultStatus]


async def enter(publisher: ResultPublisher, task_id: str) -> None:
    async with publisher.subscribe(task_id):
        pytest.fail("it was entered")


CALLS: dict[str, Callable[[ResultPublisher, Any], Awaitable[object]]] = {
    "publish": lambda publisher, task_id: publisher.publish(task_id, PENDING),
    "get": lambda publisher, task_id: publisher.get(task_id),
    "delete": lambda publisher, task_id: publisher.delete(task_id),
    "subscribe": enter,
}


@pytest.mark.parametrize("call", CALLS)
@within(10)
async def test_bad_id(publishers: Publishers, publisher: ResultPublisher, call: str) -> None:
    """Refused by name. The memory publisher takes any string that is not empty."""
    for task_id in ["", *NO_STRINGS, *([] if publishers.any_id else ODD_IDS)]:
        with pytest.raises(InvalidTaskIDError, match=r"^task ID .* must be a string") as caught:
            await CALLS[call](publisher, task_id)
        assert repr(task_id)[:100] in str(caught.value)
        assert isinstance(caught.value, SwarmTaskError)
        assert isinstance(caught.value, ValueError)
    assert await publisher.list() == []


@within(10)
async def test_subscribe_refuses_a_bad_id_at_the_call(publisher: ResultPublisher) -> None:
    with pytest.raises(InvalidTaskIDError, match="task ID '' must be"):
        publisher.subscribe("")


@pytest.mark.parametrize("variant", ["memory"])
@within(10)
async def test_memory_takes_any_id_that_is_not_empty(publisher: ResultPublisher) -> None:
    for task_id in [*ODD_IDS, " ", "\ud800"]:
        await publisher.publish(task_id, SUCCESS)
        assert (await publisher.get(task_id)).task_id == task_id
        async with publisher.subscribe(task_id) as updates:
            assert len(await rest(updates)) == 1
        await publisher.delete(task_id)
    assert await publisher.list() == []


@pytest.mark.parametrize("status", ["done", "", "PENDING", "Success", None, 1, b"success", []])
@within(10)
async def test_unknown_status(publisher: ResultPublisher, status: str) -> None:
    with pytest.raises(InvalidStatusError, match="must be 'pending', 'success' or 'failed'") as c:
        await publisher.publish("t1", Result(status=status))
    assert repr(status) in str(c.value)
    assert isinstance(c.value, ValueError)
    assert await publisher.list() == []


class Moody(tzinfo):
    """A time zone of the user's, that fails."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        raise RuntimeError("not today")


BAD_FIELDS: list[dict[str, Any]] = [
    {"task_id": None},
    {"task_id": 5},
    {"task_id": "\ud800"},
    {"output": "text"},
    {"output": None},
    {"output": [1]},
    {"error": None},
    {"error": b"text"},
    {"error": ValueError("text")},
    {"error": "\udfff"},
    {"metadata": []},
    {"metadata": "a"},
    {"metadata": {1: "a"}},
    {"metadata": {"a": 1}},
    {"metadata": {"a": None}},
    {"metadata": {"a": "\ud800"}},
    {"metadata": {"\ud800": "a"}},
    {"created_at": "2026-04-19T10:20:30Z"},
    {"created_at": 0},
    {"created_at": datetime(2026, 4, 19)},
    {"created_at": datetime(2026, 4, 19, tzinfo=Moody())},
    {"updated_at": "2026-04-19T10:20:30Z"},
    {"updated_at": 1.5},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=lambda fields: next(iter(fields)))
@within(10)
async def test_bad_field(publisher: ResultPublisher, fields: dict[str, Any]) -> None:
    """Nothing is stored, and what was stored stays as it was."""
    bad = Result(**{"status": ResultStatus.SUCCESS, **fields})
    with pytest.raises(InvalidResultError):
        await publisher.publish("t1", bad)
    assert await publisher.list() == []
    await publisher.publish("t1", PENDING)
    before = await publisher.get("t1")
    with pytest.raises(InvalidResultError):
        await publisher.publish("t1", bad)
    assert await publisher.get("t1") == before


@within(10)
async def test_naive_time_is_told_how_to_be_aware(publisher: ResultPublisher) -> None:
    naive = Result(status=ResultStatus.PENDING, created_at=datetime(2026, 4, 19))
    with pytest.raises(InvalidResultError, match=r"created_at .*no time zone; .*datetime\.now\("):
        await publisher.publish("t1", naive)


@pytest.mark.parametrize("result", [None, {"status": "success"}, "success", Result, ResultFilter()])
@within(10)
async def test_not_a_result(publisher: ResultPublisher, result: Result) -> None:
    with pytest.raises(InvalidResultError, match=r"is not a trio_swarmtask\.results\.Result$"):
        await publisher.publish("t1", result)
    assert await publisher.list() == []


BAD_FILTERS: list[dict[str, Any]] = [
    {"limit": -1},
    {"limit": "1"},
    {"limit": True},
    {"limit": None},
    {"limit": 1.5},
    {"task_id_prefix": None},
    {"task_id_prefix": b"a"},
    {"metadata": ["a"]},
    {"metadata": {"a": 1}},
    {"created_after": datetime(2026, 4, 19)},
    {"created_before": datetime(2026, 4, 19)},
    {"created_after": 5},
    {"created_before": "2026-04-19T10:20:30Z"},
    {"created_before": datetime(2026, 4, 19, tzinfo=Moody())},
]


@pytest.mark.parametrize("fields", BAD_FILTERS, ids=lambda fields: next(iter(fields)))
@within(10)
async def test_bad_filter(publisher: ResultPublisher, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidResultError, match=r"limit|ResultFilter"):
        await publisher.list(ResultFilter(**fields))


@pytest.mark.parametrize("result_filter", [None, {}, "t", PENDING, ResultFilter])
@within(10)
async def test_not_a_filter(publisher: ResultPublisher, result_filter: ResultFilter) -> None:
    with pytest.raises(InvalidResultError, match=r"is not a trio_swarmtask\.results\.ResultFilter"):
        await publisher.list(result_filter)


@pytest.mark.parametrize("status", ["done", "", 1])
@within(10)
async def test_filter_with_an_unknown_status(publisher: ResultPublisher, status: str) -> None:
    with pytest.raises(InvalidStatusError, match="must be 'pending', 'success' or 'failed'"):
        await publisher.list(ResultFilter(status=status))


@within(10)
async def test_filter_in_plain_strings(publisher: ResultPublisher) -> None:
    """A status as a string is taken; a time in any zone."""
    await publisher.publish("t1", SUCCESS)
    await publisher.publish("t2", PENDING)
    status: Any = "success"
    long_ago = datetime(2026, 4, 19, tzinfo=UTC).astimezone()
    listed = await publisher.list(ResultFilter(status=status, created_after=long_ago))
    assert [result.task_id for result in listed] == ["t1"]
