"""Results, filters and errors by themselves: what is valid, and what matches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.publishers import PENDING, SUCCESS
from tests.results.test_arguments import BAD_FIELDS, NO_STRINGS, ODD_IDS
from trio_swarmtask import SwarmTaskError
from trio_swarmtask.results import (
    InvalidResultError,
    InvalidStatusError,
    InvalidTaskIDError,
    PublisherClosedError,
    Result,
    ResultExistsError,
    ResultFilter,
    ResultNotFoundError,
    ResultStatus,
    validate_result,
    validate_task_id,
)
from trio_swarmtask.results._types import clean, copy

if TYPE_CHECKING:
    import msgspec

NOON = datetime(2026, 4, 19, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_terminal_states() -> None:
    assert [status for status in ResultStatus if status.is_terminal] == ["success", "failed"]
    assert [str(status) for status in ResultStatus] == ["pending", "success", "failed"]


def test_result_s_defaults() -> None:
    assert Result(status=ResultStatus.PENDING) == Result(
        task_id="",
        status=ResultStatus.PENDING,
        output=b"",
        error="",
        metadata=None,
        created_at=None,
        updated_at=None,
    )


@pytest.mark.parametrize("struct", [SUCCESS, ResultFilter()], ids=["result", "filter"])
def test_frozen_and_by_keyword(struct: msgspec.Struct) -> None:
    with pytest.raises(AttributeError):
        struct.status = ResultStatus.FAILED  # type: ignore[attr-defined]  # that is the point
    with pytest.raises(TypeError):
        type(struct)("t1")


@pytest.mark.parametrize("task_id", ["a", "0", "-", "_", "x" * 128, "A-z_0"])
def test_valid_task_id(task_id: str) -> None:
    assert validate_task_id(task_id) is None


@pytest.mark.parametrize("task_id", ["", *ODD_IDS, *NO_STRINGS])
def test_invalid_task_id(task_id: object) -> None:
    with pytest.raises(InvalidTaskIDError, match=r"^task ID .* must be a string of 1 to 128 lett"):
        validate_task_id(task_id)


def test_valid_result() -> None:
    """And it is not changed."""
    fields: dict[str, Any] = {
        "task_id": "any text",
        "output": b"\xff",
        "error": "é",
        "metadata": {"a": "b"},
        "created_at": NOON.astimezone(timezone(-SECOND)),
        "updated_at": NOON,
    }
    plain: Any = "failed"
    result = Result(status=plain, **fields)
    assert validate_result(result) is None
    assert result == Result(status=plain, **fields)
    assert type(result.status) is str


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=lambda fields: next(iter(fields)))
def test_invalid_result(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidResultError):
        validate_result(Result(**{"status": ResultStatus.SUCCESS, **fields}))


@pytest.mark.parametrize("field", ["output", "error", "metadata", "created_at"])
def test_invalid_result_is_told_by_its_field(field: str) -> None:
    bad: dict[str, Any] = {field: 5}
    with pytest.raises(InvalidResultError, match=rf"{field}\W*5.*can't be: .* - at `\$\.{field}`"):
        validate_result(Result(status=ResultStatus.SUCCESS, **bad))


def test_invalid_status_and_not_a_result() -> None:
    bad: Any = "done"
    with pytest.raises(InvalidStatusError, match="status 'done' must be"):
        validate_result(Result(status=bad))
    with pytest.raises(InvalidResultError, match="None is not a"):
        validate_result(None)


@pytest.mark.parametrize("year", [1, 9999])
def test_time_that_is_none_in_utc(year: int) -> None:
    """The first or last day that there is, in another zone."""
    hours = timedelta(hours=12 if year == 1 else -12)
    edge = datetime.min if year == 1 else datetime.max
    with pytest.raises(InvalidResultError, match=r"Result\.created_at .* can't be"):
        validate_result(
            Result(status=ResultStatus.PENDING, created_at=edge.replace(tzinfo=timezone(hours)))
        )


def test_clean_shares_nothing() -> None:
    given = Result(status=ResultStatus.PENDING, metadata={"a": "b"}, updated_at=NOON)
    cleaned = clean(given)
    assert cleaned.metadata == given.metadata
    assert cleaned.metadata is not given.metadata
    assert cleaned.updated_at is None
    assert copy(given) == given
    assert copy(given).metadata is not given.metadata
    assert copy(PENDING) is PENDING


RESULT = Result(
    task_id="build-1",
    status=ResultStatus.SUCCESS,
    metadata={"model": "m", "lang": "py"},
    created_at=NOON,
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"status": ResultStatus.SUCCESS}, True),
        ({"status": ResultStatus.FAILED}, False),
        ({"status": "success"}, True),
        ({"task_id_prefix": "build-1"}, True),
        ({"task_id_prefix": "build-12"}, False),
        ({"task_id_prefix": "1"}, False),
        ({"created_after": NOON}, False),
        ({"created_after": NOON - SECOND}, True),
        ({"created_before": NOON}, False),
        ({"created_before": NOON + SECOND}, True),
        ({"created_after": NOON - SECOND, "created_before": NOON + SECOND}, True),
        ({"created_after": NOON + SECOND, "created_before": NOON - SECOND}, False),
        ({"metadata": {}}, True),
        ({"metadata": {"model": "m"}}, True),
        ({"metadata": {"model": "m", "lang": "py"}}, True),
        ({"metadata": {"model": "m", "lang": "go"}}, False),
        ({"metadata": {"more": ""}}, False),
        ({"limit": 1}, True),
        ({"task_id_prefix": "b", "status": ResultStatus.SUCCESS, "metadata": {"a": "b"}}, False),
    ],
)
def test_filter_matches(fields: dict[str, Any], expected: bool) -> None:
    assert ResultFilter(**fields).matches(RESULT) is expected


def test_filter_of_times_and_a_result_without_one() -> None:
    """As another program may have stored it."""
    assert ResultFilter().matches(SUCCESS)
    assert not ResultFilter(created_after=NOON).matches(SUCCESS)
    assert not ResultFilter(created_before=NOON).matches(SUCCESS)
    assert not ResultFilter(metadata={"a": "b"}).matches(SUCCESS)


def test_errors_are_what_python_and_trio_call_them() -> None:
    for error, parent in (
        (ResultNotFoundError, KeyError),
        (ResultExistsError, SwarmTaskError),
        (InvalidTaskIDError, ValueError),
        (InvalidStatusError, ValueError),
        (InvalidResultError, ValueError),
        (PublisherClosedError, trio.ClosedResourceError),
    ):
        assert issubclass(error, SwarmTaskError)
        assert issubclass(error, parent)
    missing = ResultNotFoundError("t'1")
    assert str(missing) == 'there is no result of task "t\'1", or it is gone by now'
    assert str(ResultExistsError("t1", "failed")) == (
        "task 't1' has ended with failed: a pending result can't take that back; delete it first "
        "to begin anew"
    )
