# What is known of a task, for those who follow it: `trio_swarmtask.results.Result`.
#
# Go programs read and write the same: the struct `Result` of their package `results`.
#
# This module is in a low layer because a worker writes progress as such a record, and a dispatcher
# reads it.

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from ._check import Malformed, reader
from ._envelope import GO_ZERO_TIME
from ._errors import InvalidResultError
from ._util import shorten


class ResultStatus(enum.StrEnum):
    """Where a task stands."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended: a success or a failure."""
        return self is not ResultStatus.PENDING


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a task: one record, updated until the task has ended.

    Attributes:
      task_id: Filled by `ResultPublisher.publish`, whose own argument counts.
      status: Where the task stands. A plain string with one of the values is accepted too.
      output: What the task has given, in whatever form its reader expects.
      error: Why it failed.
      metadata: Anything else, string to string.
      created_at: When the first result of this task was published, in UTC. Set once, then kept.
      updated_at: When this one was published, in UTC. By the publisher's clock: don't order by it.
    """

    task_id: str = ""
    status: ResultStatus
    output: bytes = b""
    error: str = ""
    metadata: dict[str, str] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


# As bytes: Go's struct, which has no JSON names of its own. Invariant: decoding raises
# InvalidResultError, whatever the bytes.
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Envelope(msgspec.Struct, rename="pascal"):
    # A missing field has its zero value, as in Go, except the status, which has none.
    status: ResultStatus
    task_id: str = msgspec.field(default="", name="TaskID")
    output: bytes | None = None
    error: str = ""
    metadata: dict[str, str] | None = None
    created_at: _Time | None = None
    updated_at: _Time | None = None


class _Written(msgspec.Struct, rename="pascal"):
    # In the order of Go's fields.
    task_id: str = msgspec.field(name="TaskID")
    status: ResultStatus
    output: bytes | None
    error: str
    metadata: dict[str, str] | None
    created_at: datetime
    updated_at: datetime


_encode: Final = msgspec.json.Encoder().encode
_read: Final = reader(_Envelope)


def encode(result: Result) -> bytes:
    """The JSON of a result that was checked."""
    return _encode(
        _Written(
            task_id=result.task_id,
            status=result.status,
            output=result.output or None,
            error=result.error,
            metadata=result.metadata,
            created_at=result.created_at or GO_ZERO_TIME,
            updated_at=result.updated_at or GO_ZERO_TIME,
        )
    )


def decode(data: bytes, task_id: str) -> Result:
    """The result in ``data``, which was found where results of ``task_id`` are.

    Raises:
      InvalidResultError: if ``data`` is no result, or one of another task.
    """
    try:
        read = _read(data)
    except Malformed as exc:
        raise InvalidResultError(f"not a result: {exc}; got {shorten(data)}") from exc
    if read.task_id not in ("", task_id):
        raise InvalidResultError(
            f"a result of task {shorten(read.task_id)} where one of {task_id!r} belongs"
        )
    return Result(
        task_id=task_id,
        status=read.status,
        output=read.output or b"",
        error=read.error,
        metadata=read.metadata,
        created_at=_as_utc(read.created_at),
        updated_at=_as_utc(read.updated_at),
    )


def _as_utc(time: datetime | None) -> datetime | None:
    if time is None or time == GO_ZERO_TIME:
        return None
    try:
        return time.astimezone(UTC)
    except OverflowError as exc:  # the first or last day that there is, in another time zone
        raise InvalidResultError(f"not a result: the time {time} is none in UTC") from exc
