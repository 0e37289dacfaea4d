# What Message and Result look like on the wire; how they become bytes, and come back.
#
# The shape is Go's: the order of its struct fields, empty ones left out where Go leaves them out,
# a zero time for "no time", string-to-string maps. The public structs are never encoded or decoded
# themselves. An envelope has the wire's types (an `inputs` that may be null, times that must have
# an offset, raw JSON), so that one conversion in C checks every field on the way out, and what
# users hold has no null where a dict belongs.

from __future__ import annotations

import enum
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from ._check import UNFIT, Malformed, read_json, reader
from ._errors import InvalidMessageError, UnsupportedVersionError
from ._util import shorten

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

VERSION: int = 1
"""The version of the envelopes that this library writes, and the newest that it reads."""
CANCELLED_BY: Final = "swarm-cancelled-by"
"""In a failed result's metadata: the task was cancelled, by the dispatcher or worker named."""
CAPABILITY: Final = "swarm-capability"
"""In the same place: the task's capability, for those who know only the task's ID."""
PAST_DEADLINE: Final = "swarm-deadline"
"""In a timeout's metadata: it was the deadline of whoever started the task that passed."""
GO_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
PLAIN: Final = frozenset({str, int, float, bool, type(None)})  # these hold no Raw
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
        # Most times need no change: the library has filled them in.
        if self.created_at is None or self.created_at.tzinfo is not UTC:
            self.created_at = _time_for_go(self.created_at, "created_at")
        if self.submitted_at is None or self.submitted_at.tzinfo is not UTC:
            self.submitted_at = _time_for_go(self.submitted_at, "submitted_at")
        for value in self.prior.values():
            check_raw(value, "prior")

    def has_free_json(self) -> bool:
        return bool(self.prior)


class ReceivedMessage(msgspec.Struct, kw_only=True):
    # A missing field has its zero value, as in Go, except the version. Go writes null for a nil
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
            # RFC 3339 has offsets of whole minutes. msgspec cuts off the rest: a wrong instant.
            offset = time.utcoffset()
            if offset is None:
                raise ValueError("its time zone gives no offset")
            if offset.total_seconds() % 60:
                return time.astimezone(UTC)
        except Exception as exc:
            raise ValueError(f"{exc} - at `$.{field}`") from exc
    return time


# Out: one conversion in C to the envelope checks every field, then the envelope is written. In: the
# envelope is read, then its values go into the public struct.
#
# Invariant: decoding raises InvalidMessageError or UnsupportedVersionError, whatever the bytes.

_FIELD: Final = re.compile(r"\$\.(\w+)")


class _AnyVersion(msgspec.Struct):
    version: int


_encode: Final = msgspec.json.Encoder().encode
_read_message: Final = reader(ReceivedMessage)
_read_result: Final = reader(ReceivedResult)
_read_version: Final = reader(_AnyVersion)

# A success, as a `ResultEnvelope` is written. Most fields are the library's own: no check needed.
_SUCCESS: Final = (
    b'{"version":%d,"id":%b%b,"status":"success"%b,"agent":%b,"attempt":%d,"duration":%d,'
    b'"completed_at":%b}'
)
_Envelope = TypeVar("_Envelope", MessageEnvelope, ResultEnvelope)


def encode(
    struct: msgspec.Struct,
    envelope_type: type[_Envelope],
    fill: Callable[[_Envelope], None] | None = None,
) -> bytes:
    """The JSON of a Message or Result; InvalidMessageError names the field and its value.

    ``fill`` fills blanks of the envelope before that is written: cheaper than a copy of ``struct``.
    """
    envelope = None
    try:
        # builtin_types: a time must be a datetime, not a string that looks like one.
        envelope = msgspec.convert(
            struct, envelope_type, from_attributes=True, builtin_types=(datetime,)
        )
        if not 1 <= envelope.version <= VERSION:
            raise ValueError(f"a version from 1 to {VERSION} is needed - at `$.version`")
        if fill is not None:
            fill(envelope)
        envelope.prepare()
        data = _encode(envelope)
        if envelope.has_free_json():
            _read_version(data)  # a Raw somewhere in it is written as it is, JSON or not
        return data
    except Exception as exc:
        field = _find_field(exc, envelope)
        value = shorten(getattr(struct, field, None))
        raise InvalidMessageError(
            f"{type(struct).__name__}.{field} = {value} can't be sent: {exc}"
        ) from exc


def encode_success(
    *,
    task_id: str,
    correlation_id: str,
    outputs: object,
    agent: str,
    attempt: int,
    duration: int,
) -> bytes:
    """The JSON of a success, of which only ``outputs`` is not the library's own."""
    try:
        data = _SUCCESS % (
            VERSION,
            _encode(task_id),
            b',"correlation_id":%b' % _encode(correlation_id) if correlation_id else b"",
            b"" if outputs is None else b',"outputs":%b' % _encode(outputs),
            _encode(agent),
            attempt,
            duration,
            _encode(datetime.now(UTC)),
        )
        if type(outputs) not in PLAIN:
            check_raw(outputs, "outputs")
            _read_version(data)
    except Exception as exc:
        raise InvalidMessageError(
            f"the handler returned {shorten(outputs)}, which can't be sent: {exc}"
        ) from exc
    return data


def _find_field(exc: Exception, envelope: msgspec.Struct | None) -> str:
    named = _FIELD.search(str(exc))
    if named is not None:
        return named[1]
    assert envelope is not None  # only the conversion fails earlier, and it names the field
    for name in envelope.__struct_fields__:
        try:
            read_json(_encode(getattr(envelope, name)))
        except Exception:  # noqa: BLE001 - whatever it is, this is the field
            return name
    return "outputs"  # pragma: no cover - encoding as a whole fails where a part does


def decode_message(data: bytes) -> ReceivedMessage:
    """Read a message; see `Message.decode`."""
    return _decode(data, _read_message, "message")


def decode_result(data: bytes) -> ReceivedResult:
    """Read a result; see `Result.decode`."""
    return _decode(data, _read_result, "result")


_Received = TypeVar("_Received", ReceivedMessage, ReceivedResult)


def _decode(data: bytes, read: Callable[[bytes], _Received], kind: str) -> _Received:
    try:
        envelope = read(data)
    except Malformed as exc:
        _check_version(data, kind)  # a newer version may have any shape
        raise InvalidMessageError(f"not a {kind} envelope: {exc}; got {shorten(data)}") from exc
    if envelope.version != VERSION:
        _check_version(data, kind)
    envelope.finish()
    return envelope


def _check_version(data: bytes, kind: str) -> None:
    try:
        version = _read_version(data).version
    except Malformed:
        return  # it says no version at all: the caller's own error is the better one
    if version > VERSION:
        raise UnsupportedVersionError(
            f"{kind} envelope of version {version}: this library reads up to {VERSION}; upgrade it"
        )
    if version < 1:
        raise InvalidMessageError(f"{kind} envelope of version {version}; versions begin at 1")


def read_as(value: object, type_: type[T], where: str) -> T:
    """JSON data as a type of the user's, read by msgspec, as if straight from the wire."""
    try:
        return reader(type_)(value if isinstance(value, msgspec.Raw) else _encode(value))
    except UNFIT as exc:  # and Malformed, which is a ValueError
        raise InvalidMessageError(
            f"{where} does not fit {getattr(type_, '__name__', type_)}: {exc}"
        ) from exc
