# Records as bytes: Go's struct, which has no JSON names of its own.
#
# Invariant: decoding raises InvalidResultError, whatever the bytes.

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from ._envelope import GO_ZERO_TIME
from ._errors import InvalidResultError
from ._names import shorten
from ._record import Result, ResultStatus
from ._untrusted import Malformed, reader

_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Envelope(msgspec.Struct, rename="pascal"):
    # What is missing is its zero value, as in Go, but for the status, which has none.
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
      InvalidResultError: if it is none, or of another task.
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
