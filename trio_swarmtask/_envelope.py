# What Message and Result look like on the wire.
#
# The shape is Go's: the order of its struct fields, empty ones left out where Go leaves them out,
# a zero time for "no time", string-to-string maps. The public structs are never encoded or decoded
# themselves. An envelope has the wire's types (an `inputs` that may be null, times that must have
# an offset, raw JSON), so that one conversion in C checks every field on the way out, and what
# users hold has no null where a dict belongs.

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from ._untrusted import Malformed, read_json

VERSION: int = 1
"""The version of the envelopes that this library writes, and the newest that it reads."""

CANCELLED_BY: Final = "swarm-cancelled-by"
"""In a failed result's metadata: the task was cancelled, by the dispatcher or worker named."""

CAPABILITY: Final = "swarm-capability"
"""Beside that: the capability of the task, for those who hold it by its ID alone."""

PAST_DEADLINE: Final = "swarm-deadline"
"""In a timeout's metadata: the deadline was that of whoever started the task."""

GO_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
PLAIN: Final = frozenset({str, int, float, bool, type(None)})  # hold no Raw

Time = Annotated[datetime, msgspec.Meta(tz=True)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63) + 1, le=2**63 - 1)]


class Status(enum.StrEnum):
    """How a task ended."""

    SUCCESS = "success"
    FAILED = "failed"
    TIMEOUT = "timeout"


class MessageEnvelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    # A required field is always written; a default is left out, as Go's omitempty does.
    version: Int64
    id: str
    idempotency: str = ""
    correlation_id: str = ""
    parent: str = ""
    root: str = ""
    timeout: Int64 = 0
    max_attempts: Int64 = 0
    attempt: Int64 = 0
    inputs: dict[str, str]
    prior: dict[str, Any] = {}
    created_at: Time | None
    submitted_at: Time | None
    submitted_by: str = ""
    tags: list[str] = []
    metadata: dict[str, str] = {}

    def prepare(self) -> None:
        if self.timeout < 0 or self.max_attempts < 0 or self.attempt < 0:
            _refuse_negative(
                timeout=self.timeout, max_attempts=self.max_attempts, attempt=self.attempt
            )
        # Most are as they are to be: filled in by the library.
        if self.created_at is None or self.created_at.tzinfo is not UTC:
            self.created_at = _time_for_go(self.created_at, "created_at")
        if self.submitted_at is None or self.submitted_at.tzinfo is not UTC:
            self.submitted_at = _time_for_go(self.submitted_at, "submitted_at")
        for value in self.prior.values():
            check_raw(value, "prior")

    def has_free_json(self) -> bool:
        return bool(self.prior)


class ReceivedMessage(msgspec.Struct, kw_only=True):
    # What is missing is its zero value, as in Go, but for the version. Go writes null for a nil
    # map.
    version: Int64
    id: str = ""
    idempotency: str = ""
    correlation_id: str = ""
    parent: str = ""
    root: str = ""
    timeout: Int64 = 0
    max_attempts: Int64 = 0
    attempt: Int64 = 0
    inputs: dict[str, str] | None = None
    prior: dict[str, msgspec.Raw] | None = None
    created_at: Time | None = None
    submitted_at: Time | None = None
    submitted_by: str = ""
    tags: list[str] | None = None
    metadata: dict[str, str] | None = None

    def finish(self) -> None:
        if self.created_at == GO_ZERO_TIME:
            self.created_at = None
        if self.submitted_at == GO_ZERO_TIME:
            self.submitted_at = None


class ResultEnvelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    version: Int64
    id: str
    correlation_id: str = ""
    status: Status
    outputs: Any = None
    error: str = ""
    agent: str
    attempt: Int64
    duration: Int64
    completed_at: Time | None
    metadata: dict[str, str] = {}

    def prepare(self) -> None:
        if self.attempt < 0 or self.duration < 0:
            _refuse_negative(attempt=self.attempt, duration=self.duration)
        self.completed_at = _time_for_go(self.completed_at, "completed_at")
        check_raw(self.outputs, "outputs")

    def has_free_json(self) -> bool:
        return type(self.outputs) not in PLAIN


class ReceivedResult(msgspec.Struct, kw_only=True):
    version: Int64
    id: str = ""
    correlation_id: str = ""
    status: Status
    outputs: Any = None
    error: str = ""
    agent: str = ""
    attempt: Int64 = 0
    duration: Int64 = 0
    completed_at: Time | None = None
    metadata: dict[str, str] | None = None

    def finish(self) -> None:
        if self.completed_at == GO_ZERO_TIME:
            self.completed_at = None


def _refuse_negative(**counts: int) -> None:
    name = next(name for name, count in counts.items() if count < 0)
    raise ValueError(f"a number from 0 up is needed - at `$.{name}`")


def check_raw(value: object, field: str) -> None:
    if type(value) is msgspec.Raw:
        try:
            read_json(value)
        except Malformed as exc:
            raise ValueError(f"its Raw is not JSON: {exc} - at `$.{field}`") from exc


def _time_for_go(time: datetime | None, field: str) -> datetime:
    if time is None:
        return GO_ZERO_TIME
    if time.tzinfo is not UTC:
        try:
            # RFC 3339 has offsets of whole minutes. msgspec cuts off the rest: another instant.
            offset = time.utcoffset()
            if offset is None:
                raise ValueError("its time zone gives no offset")
            if offset.total_seconds() % 60:
                return time.astimezone(UTC)
        except Exception as exc:
            raise ValueError(f"{exc} - at `$.{field}`") from exc
    return time
