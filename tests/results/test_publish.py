"""Storing and updating results: what may replace what, the times, the ID; on every publisher."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from tests._helpers.brokers import within
from tests._helpers.publishers import FAILED, PENDING, SUCCESS, on_shared, pending, success
from trio_swarmtask import SwarmTaskError
from trio_swarmtask.results import (
    Result,
    ResultExistsError,
    ResultNotFoundError,
    ResultStatus,
)

if TYPE_CHECKING:
    from trio_swarmtask.results import ResultPublisher

EACH = [PENDING, SUCCESS, FAILED]
EARLIER = datetime(2026, 4, 19, 15, 50, 30, 123456, tzinfo=timezone(timedelta(hours=5.5)))


@within(10)
async def test_publish_stores(publisher: ResultPublisher) -> None:
    """All fields come back, the times set, and nothing else."""
    before = datetime.now(UTC)
    given = Result(
        status=ResultStatus.SUCCESS, output=b"\0\xff", error="é ☃", metadata={"model": "m", "": ""}
    )
    assert await publisher.publish("t1", given) is None
    got = await publisher.get("t1")
    assert got.task_id == "t1"
    assert (got.status, got.output, got.error) == (ResultStatus.SUCCESS, b"\0\xff", "é ☃")
    assert got.metadata == {"model": "m", "": ""}
    assert got.created_at is not None
    assert got.created_at == got.updated_at
    assert before <= got.created_at <= datetime.now(UTC)
    assert got.created_at.tzinfo is UTC
    assert type(got) is Result


@within(10)
async def test_blank_fields_stay_blank(publisher: ResultPublisher) -> None:
    await publisher.publish("t1", PENDING)
    got = await publisher.get("t1")
    assert (got.output, got.error, got.metadata) == (b"", "", None)


@within(10)
async def test_publish_replaces_every_field(publisher: ResultPublisher) -> None:
    """An update is a whole record: nothing of the earlier one is left, but for `created_at`."""
    first = Result(status=ResultStatus.PENDING, output=b"1", error="e", metadata={"a": "b"})
    await publisher.publish("t1", first)
    await publisher.publish("t1", SUCCESS)
    got = await publisher.get("t1")
    assert (got.status, got.output, got.error) == (ResultStatus.SUCCESS, b"42", "")
    assert got.metadata is None


@pytest.mark.parametrize("old", EACH, ids=lambda result: f"{result.status}")
@pytest.mark.parametrize("new", EACH, ids=lambda result: f"{result.status}")
@within(10)
async def test_transition(publisher: ResultPublisher, old: Result, new: Result) -> None:
    """A terminal state is only replaced by another terminal one; delete first to begin anew."""
    await publisher.publish("t1", old)
    before = await publisher.get("t1")
    if old.status.is_terminal and not new.status.is_terminal:
        with pytest.raises(ResultExistsError, match=f"'t1' has ended with {old.status}: a pendi"):
            await publisher.publish("t1", new)
        assert await publisher.get("t1") == before
        await publisher.delete("t1")
        await publisher.publish("t1", new)
    else:
        await publisher.publish("t1", new)
    got = await publisher.get("t1")
    assert (got.status, got.output, got.error) == (new.status, new.output, new.error)


@within(10)
async def test_result_exists_error(publisher: ResultPublisher) -> None:
    await publisher.publish("t1", FAILED)
    with pytest.raises(ResultExistsError, match="delete it first to begin anew") as caught:
        await publisher.publish("t1", PENDING)
    assert (caught.value.task_id, caught.value.status) == ("t1", "failed")
    assert isinstance(caught.value, SwarmTaskError)


@on_shared
@within(10)
async def test_terminal_rule_holds_for_another_process(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    """Also for one that knows of an earlier pending of its own."""
    await other.publish("t1", PENDING)
    await publisher.publish("t1", SUCCESS)
    with pytest.raises(ResultExistsError, match="'t1' has ended with success"):
        await other.publish("t1", PENDING)
    with pytest.raises(ResultExistsError, match="'t1' has ended with success"):
        await publisher.publish("t1", PENDING)
    await other.publish("t1", FAILED)
    assert (await publisher.get("t1")).status == ResultStatus.FAILED


@within(10)
async def test_argument_wins_over_the_id_in_the_result(publisher: ResultPublisher) -> None:
    given = Result(task_id="no ID at all", status=ResultStatus.PENDING)
    await publisher.publish("t1", given)
    assert (await publisher.get("t1")).task_id == "t1"
    assert [result.task_id for result in await publisher.list()] == ["t1"]
    async with publisher.subscribe("t1") as updates:
        assert (await anext(updates)).task_id == "t1"
    assert given.task_id == "no ID at all"


@within(10)
async def test_created_at_is_kept_and_updated_at_is_not(publisher: ResultPublisher) -> None:
    seen: list[Result] = []
    for result in (pending(1), pending(2), success(3), FAILED):
        await publisher.publish("t1", result)
        seen.append(await publisher.get("t1"))
    assert len({result.created_at for result in seen}) == 1
    updated: list[Any] = [result.updated_at for result in seen]
    assert updated == sorted(updated)
    assert updated[0] < updated[-1]
    assert all(time.tzinfo is UTC for time in updated)


@within(10)
async def test_given_created_at(publisher: ResultPublisher) -> None:
    """That of the first result counts, in UTC; a given `updated_at` never does."""
    first = Result(status=ResultStatus.PENDING, created_at=EARLIER, updated_at=EARLIER)
    await publisher.publish("t1", first)
    got = await publisher.get("t1")
    assert got.created_at == EARLIER
    assert got.created_at.tzinfo is UTC
    assert got.updated_at is not None
    assert got.updated_at > EARLIER
    later = Result(status=ResultStatus.SUCCESS, created_at=EARLIER + timedelta(days=1))
    await publisher.publish("t1", later)
    assert (await publisher.get("t1")).created_at == EARLIER


@within(10)
async def test_go_s_zero_time_is_no_time(publisher: ResultPublisher) -> None:
    before = datetime.now(UTC)
    zero = datetime(1, 1, 1, tzinfo=UTC)
    await publisher.publish("t1", Result(status=ResultStatus.PENDING, created_at=zero))
    created = (await publisher.get("t1")).created_at
    assert created is not None
    assert created >= before


@on_shared
@within(10)
async def test_created_at_survives_updates_from_another_process(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    await publisher.publish("t1", Result(status=ResultStatus.PENDING, created_at=EARLIER))
    for number in range(3):
        await other.publish("t1", pending(number))
        await publisher.publish("t1", pending(number))
    await other.publish("t1", SUCCESS)
    assert (await publisher.get("t1")).created_at == EARLIER
    assert await other.get("t1") == await publisher.get("t1")


@within(10)
async def test_created_at_is_new_after_delete(publisher: ResultPublisher) -> None:
    await publisher.publish("t1", Result(status=ResultStatus.SUCCESS, created_at=EARLIER))
    await publisher.delete("t1")
    before = datetime.now(UTC)
    await publisher.publish("t1", PENDING)
    created = (await publisher.get("t1")).created_at
    assert created is not None
    assert created >= before


@pytest.mark.parametrize("status", list(ResultStatus))
@within(10)
async def test_plain_string_becomes_the_status(
    publisher: ResultPublisher, status: ResultStatus
) -> None:
    plain: Any = str(status.value)
    await publisher.publish("t1", Result(status=plain))
    got = await publisher.get("t1")
    assert got.status is status
    async with publisher.subscribe("t1") as updates:
        assert (await anext(updates)).status is status


@within(10)
async def test_tasks_are_apart(publisher: ResultPublisher) -> None:
    """IDs that differ in case, or where one begins with the other."""
    ids = ["t1", "T1", "t", "t1-", "t1_", "-", "_", "0", "x" * 128]
    for number, task_id in enumerate(ids):
        await publisher.publish(task_id, success(number))
    for number, task_id in enumerate(ids):
        assert (await publisher.get(task_id)).output == b"%d" % number
    await publisher.delete("t1")
    with pytest.raises(ResultNotFoundError):
        await publisher.get("t1")
    assert {result.task_id for result in await publisher.list()} == {*ids} - {"t1"}
