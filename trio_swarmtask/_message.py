# The two structs that users hold, Message and Result, and the errors that a result is raised as.
#
# Go programs read and write the same bytes: version 1 of the structs `Message` and `Result`. What
# the bytes look like, and how a struct becomes bytes and comes back, is in `_envelope.py`; here are
# the fields, what they mean, and what a user can do.

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

import msgspec

from ._check import Malformed, check_task_id, is_capability, reader
from ._envelope import (
    CANCELLED_BY,
    CAPABILITY,
    GO_ZERO_TIME,
    PAST_DEADLINE,
    VERSION,
    Int64,
    MessageEnvelope,
    ResultEnvelope,
    Status,
    Time,
    decode_message,
    decode_result,
    encode,
    read_as,
)
from ._errors import InvalidMessageError, SwarmTaskError
from ._util import shorten

T = TypeVar("T")


class TaskFailedError(SwarmTaskError):
    """`Result.raise_for_status` on a result whose status is ``failed``."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result
        """The result as it was stored."""

    def __str__(self) -> str:
        return _tell(self.result, "failed")


class TaskCancelledError(TaskFailedError):
    """`Result.raise_for_status` on the result of a task that was cancelled."""

    def __str__(self) -> str:
        return f"task {self.result.id} was cancelled by {self.result.cancelled_by}"


class TaskTimeoutError(SwarmTaskError):
    """`Result.raise_for_status` on a result whose status is ``timeout``."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result
        """The result as it was stored."""

    def __str__(self) -> str:
        return _tell(self.result, "ran out of time")


def _tell(result: Result, what: str) -> str:
    return f"task {result.id} {what} at {result.agent or 'nobody'}: {result.error}"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One task on the wire: a JSON object on ``work.<capability>.<id>``.

    Unknown keys are ignored.

    Attributes:
      version: The version of the envelope's form.
      id: 1 to 128 of ``A-Z a-z 0-9 _ -``. Empty: the dispatcher makes one.
      idempotency: A key of the caller's own for the effect that the task has.
      correlation_id: Carried over to the result.
      parent: ID of the task that started this one.
      root: ID of the first task of the chain.
      timeout: Whole seconds that one run of the handler may take. 0: the worker's default.
      max_attempts: How often the task may be tried. 0: not said.
      attempt: One-indexed. 0: not said, which counts as the first.
      inputs: ``{name: text}``. May be empty.
      prior: ``{task id: what it gave}``: anything JSON can carry; received as `msgspec.Raw`.
      created_at: Aware. None: the dispatcher fills it in.
      submitted_at: Aware. None: the dispatcher fills it in.
      submitted_by: Who sent it. Empty: the dispatcher's ``name``.
      tags: Free labels.
      metadata: ``{name: text}``. May be empty.
    """

    version: int = VERSION
    id: str = ""
    idempotency: str = ""
    correlation_id: str = ""
    parent: str = ""
    root: str = ""
    timeout: Int64 = 0
    max_attempts: Int64 = 0
    attempt: Int64 = 0
    inputs: dict[str, str] = {}
    prior: dict[str, Any] = {}
    created_at: Time | None = None
    submitted_at: Time | None = None
    submitted_by: str = ""
    tags: list[str] = []
    metadata: dict[str, str] = {}

    def encode(self) -> bytes:
        """The envelope's JSON.

        Raises:
          InvalidMessageError: if a field has a wrong type or holds what JSON can't carry.
        """
        return encode(self, MessageEnvelope)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read an envelope.

        Raises:
          InvalidMessageError: if ``data`` is not a message of version 1 to `VERSION`.
          UnsupportedVersionError: if its version is above `VERSION`, whatever else it holds.
        """
        if cls is Message and data.startswith(_BEGIN):
            # Read straight into the public struct, if nothing in it has to be replaced. Go's nulls
            # and zero times, and raw JSON in `prior`, take the longer way below.
            try:
                message: Any = _read_message(data)
            except Malformed:
                pass
            else:
                if (
                    message.version == VERSION  # the key may be there twice
                    and not message.prior
                    and message.created_at != GO_ZERO_TIME
                    and message.submitted_at != GO_ZERO_TIME
                ):
                    return message  # type: ignore[no-any-return]  # cls is Message
        envelope = decode_message(data)
        return cls(
            version=envelope.version,
            id=envelope.id,
            idempotency=envelope.idempotency,
            correlation_id=envelope.correlation_id,
            parent=envelope.parent,
            root=envelope.root,
            timeout=envelope.timeout,
            max_attempts=envelope.max_attempts,
            attempt=envelope.attempt,
            inputs=envelope.inputs or {},
            prior=envelope.prior or {},
            created_at=envelope.created_at,
            submitted_at=envelope.submitted_at,
            submitted_by=envelope.submitted_by,
            tags=envelope.tags or [],
            metadata=envelope.metadata or {},
        )

    def validate(self) -> None:
        """Check every field as `Dispatcher.start` does; a blank ``id`` is allowed.

        Raises:
          InvalidMessageError: naming the field and its value.
        """
        self.encode()
        if self.id:
            check_task_id(self.id)

    def prior_as(self, task_id: str, type: type[T]) -> T:  # noqa: A002 - msgspec's name for it
        """What the task ``task_id`` gave, as ``type``, read by msgspec.

        Raises:
          InvalidMessageError: if ``prior`` has no such task, or its data does not fit ``type``.
        """
        if task_id not in self.prior:
            raise InvalidMessageError(
                f"prior has no task {shorten(task_id)}; it has {shorten(sorted(self.prior))}"
            )
        return read_as(self.prior[task_id], type, f"prior[{task_id!r}]")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How one task ended: a JSON object on ``done.<id>``.

    Unknown keys are ignored.

    Attributes:
      version: The version of the envelope's form.
      id: The task's. Empty in what a handler returns: the worker fills it in.
      correlation_id: The message's.
      status: How it ended.
      outputs: Any JSON. None: no outputs.
      error: What went wrong, in words; empty on success.
      agent: The name of the worker.
      attempt: One-indexed.
      duration: Whole milliseconds that the handler took.
      completed_at: Aware; the worker's clock.
      metadata: ``{name: text}``. May be empty.
    """

    version: int = VERSION
    id: str = ""
    correlation_id: str = ""
    status: Status
    outputs: Any = None
    error: str = ""
    agent: str = ""
    attempt: Int64 = 0
    duration: Int64 = 0
    completed_at: Time | None = None
    metadata: dict[str, str] = {}

    def encode(self) -> bytes:
        """The envelope's JSON.

        Raises:
          InvalidMessageError: if a field has a wrong type or holds what JSON can't carry.
        """
        return encode(self, ResultEnvelope)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read an envelope.

        Raises:
          InvalidMessageError: if ``data`` is not a result of version 1 to `VERSION`.
          UnsupportedVersionError: if its version is above `VERSION`, whatever else it holds.
        """
        if cls is Result and data.startswith(_BEGIN):  # as in `Message.decode`
            try:
                result: Any = _read_result(data)
            except Malformed:
                pass
            else:
                if result.version == VERSION and result.completed_at != GO_ZERO_TIME:
                    return result  # type: ignore[no-any-return]  # cls is Result
        envelope = decode_result(data)
        return cls(
            version=envelope.version,
            id=envelope.id,
            correlation_id=envelope.correlation_id,
            status=envelope.status,
            outputs=envelope.outputs,
            error=envelope.error,
            agent=envelope.agent,
            attempt=envelope.attempt,
            duration=envelope.duration,
            completed_at=envelope.completed_at,
            metadata=envelope.metadata or {},
        )

    def validate(self) -> None:
        """Check every field; a blank ``id`` is allowed, because the worker fills it in.

        Raises:
          InvalidMessageError: naming the field and its value.
        """
        self.encode()
        if self.id:
            check_task_id(self.id)

    def raise_for_status(self) -> Self:
        """Return this result if it is a success.

        Raises:
          TaskFailedError: if its status is ``failed``.
          TaskCancelledError: a `TaskFailedError`, if the task was cancelled.
          TaskTimeoutError: if its status is ``timeout``.
        """
        if self.status == Status.FAILED:
            raise TaskCancelledError(self) if self.cancelled_by else TaskFailedError(self)
        if self.status == Status.TIMEOUT:
            raise TaskTimeoutError(self)
        return self

    @property
    def cancelled_by(self) -> str:
        """The dispatcher or worker that cancelled the task; empty if nobody did."""
        return "" if self.status != Status.FAILED else self.metadata.get(CANCELLED_BY, "")

    @property
    def past_deadline(self) -> bool:
        """Whether it was the deadline of whoever started the task that passed, not its own."""
        return self.status == Status.TIMEOUT and PAST_DEADLINE in self.metadata

    def outputs_as(self, type: type[T]) -> T:  # noqa: A002 - msgspec's name for it
        """The outputs as ``type``, read by msgspec.

        Raises:
          InvalidMessageError: if the outputs don't fit ``type``.
        """
        return read_as(self.outputs, type, "outputs")


_BEGIN: Final = b'{"version":%d,' % VERSION
_read_message: Final = reader(Message)
_read_result: Final = reader(Result)

# The result of a cancelled task, as its canceller or its worker stores it. On the wire a
# cancellation is a failure, so that every program understands it; an entry of the result's metadata
# tells the two apart.

_TEXT: Final = "the task was cancelled"


def cancelled_result(by: str, capability: str | None) -> Result:
    """By a worker whose handler was cancelled; its blanks are filled in as in any result."""
    metadata = {CANCELLED_BY: by}
    if capability is not None:
        metadata[CAPABILITY] = capability
    return Result(status=Status.FAILED, error=_TEXT, metadata=metadata)


def encode_cancelled(task_id: str, by: str, capability: str | None = None) -> bytes:
    """By the canceller of the task, who may not know its capability."""
    result = cancelled_result(by, capability)
    now = datetime.now(UTC)
    return msgspec.structs.replace(result, id=task_id, agent=by, completed_at=now).encode()


def find_capability(result: Result) -> str | None:
    """The capability that a cancelled task was sent to, if its result names one."""
    capability = result.metadata.get(CAPABILITY)
    return capability if is_capability(capability) else None
