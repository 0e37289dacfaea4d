# What Message and Result look like on the wire, and how they get there and back.
#
# The shape is Go's: the order of its struct fields, empty ones left out where Go leaves them out,
# a zero time for "no time", string-to-string maps. The public structs are never encoded or decoded
# themselves. An envelope has the wire's types (an `inputs` that may be null, times that must have
# an offset, raw JSON), so that one conversion in C checks every field on the way out, and what
# users hold has no null where a dict belongs.
#
# Invariant: decoding raises InvalidMessageError or UnsupportedVersionError, whatever the bytes.
# msgspec itself also lets RecursionError, UnicodeDecodeError and OverflowError out.

from __future__ import annotations

import enum
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from ._errors import InvalidMessageError, UnsupportedVersionError
from ._names import shorten

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: int = 1
"""The version of the envelopes that this library writes, and the newest that it reads."""

_GO_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
_FIELD: Final = re.compile(r"\$\.(\w+)")

# What encoding or decoding raises for a value or bytes that JSON or an envelope can't hold.
# (UnicodeError and msgspec's ValidationError are ValueErrors.)
_UNFIT: Final = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)

T = TypeVar("T")
_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63) + 1, le=2**63 - 1)]


class Status(enum.StrEnum):
    """How a task ended."""

    SUCCESS = "success"
    FAILED = "failed"
    TIMEOUT = "timeout"


class MessageEnvelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    # A required field is always written; a default is left out, as Go's omitempty does.
    version: _Int64
    id: str
    idempotency: str = ""
    correlation_id: str = ""
    parent: str = ""
    root: str = ""
    timeout: _Int64 = 0
    max_attempts: _Int64 = 0
    attempt: _Int64 = 0
    inputs: dict[str, str] | None
    prior: dict[str, Any] | None = {}
    created_at: _Time | None
    submitted_at: _Time | None
    submitted_by: str = ""
    tags: list[str] | None = []
    metadata: dict[str, str] | None = {}

    def prepare(self) -> None:
        _check_counts(timeout=self.timeout, max_attempts=self.max_attempts, attempt=self.attempt)
        self.created_at = _time_for_go(self.created_at, "created_at")
        self.submitted_at = _time_for_go(self.submitted_at, "submitted_at")
        for value in (self.prior or {}).values():
            _check_raw(value, "prior")

    def has_free_json(self) -> bool:
        return bool(self.prior)


class _ReceivedMessage(msgspec.Struct, kw_only=True):
    # Go reads a field that is missing or null as its zero value; so do we, but for the version.
    version: _Int64
    id: str = ""
    idempotency: str = ""
    correlation_id: str = ""
    parent: str = ""
    root: str = ""
    timeout: _Int64 = 0
    max_attempts: _Int64 = 0
    attempt: _Int64 = 0
    inputs: dict[str, str] | None = None
    prior: dict[str, msgspec.Raw] | None = None
    created_at: _Time | None = None
    submitted_at: _Time | None = None
    submitted_by: str = ""
    tags: list[str] | None = None
    metadata: dict[str, str] | None = None

    def finish(self) -> None:
        if self.created_at == _GO_ZERO_TIME:
            self.created_at = None
        if self.submitted_at == _GO_ZERO_TIME:
            self.submitted_at = None


class ResultEnvelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    version: _Int64
    id: str
    correlation_id: str = ""
    status: Status
    outputs: Any = None
    error: str = ""
    agent: str
    attempt: _Int64
    duration: _Int64
    completed_at: _Time | None
    metadata: dict[str, str] | None = {}

    def prepare(self) -> None:
        _check_counts(attempt=self.attempt, duration=self.duration)
        self.completed_at = _time_for_go(self.completed_at, "completed_at")
        _check_raw(self.outputs, "outputs")

    def has_free_json(self) -> bool:
        return isinstance(self.outputs, dict | list | tuple | msgspec.Struct)


class _ReceivedResult(msgspec.Struct, kw_only=True):
    version: _Int64
    id: str = ""
    correlation_id: str = ""
    status: Status
    outputs: Any = None
    error: str = ""
    agent: str = ""
    attempt: _Int64 = 0
    duration: _Int64 = 0
    completed_at: _Time | None = None
    metadata: dict[str, str] | None = None

    def finish(self) -> None:
        if self.completed_at == _GO_ZERO_TIME:
            self.completed_at = None


class _AnyVersion(msgspec.Struct):
    version: int


_encode: Final = msgspec.json.Encoder().encode
_decode_message: Final = msgspec.json.Decoder(_ReceivedMessage).decode
_decode_result: Final = msgspec.json.Decoder(_ReceivedResult).decode
_decode_version: Final = msgspec.json.Decoder(_AnyVersion).decode


def encode(struct: msgspec.Struct, envelope_type: type[MessageEnvelope | ResultEnvelope]) -> bytes:
    """The JSON of a Message or Result; InvalidMessageError names the field and its value."""
    envelope = None
    try:
        # builtin_types: a time must be a datetime, not a string that looks like one.
        envelope = msgspec.convert(
            struct, envelope_type, from_attributes=True, builtin_types=(datetime,)
        )
        if not 1 <= envelope.version <= VERSION:
            raise ValueError(f"a version from 1 to {VERSION} is needed - at `$.version`")
        envelope.prepare()
        data = _encode(envelope)
        if envelope.has_free_json():
            _decode_version(data)  # a Raw somewhere in it is written as it is, JSON or not
        return data
    except Exception as exc:
        field = _find_field(exc, envelope)
        value = shorten(getattr(struct, field, None))
        raise InvalidMessageError(
            f"{type(struct).__name__}.{field} = {value} can't be sent: {exc}"
        ) from exc


def _find_field(exc: Exception, envelope: msgspec.Struct | None) -> str:
    named = _FIELD.search(str(exc))
    if named is not None:
        return named[1]
    assert envelope is not None  # only the conversion to one fails before, and names the field
    for name in envelope.__struct_fields__:
        try:
            msgspec.json.decode(_encode(getattr(envelope, name)))
        except Exception:  # noqa: BLE001 - whatever it is, this is the field
            return name
    return "outputs"  # pragma: no cover - encoding as a whole fails where a part does


def decode_message(data: bytes) -> _ReceivedMessage:
    """Read a message; see `Message.decode`."""
    return _decode(data, _decode_message, "message")


def decode_result(data: bytes) -> _ReceivedResult:
    """Read a result; see `Result.decode`."""
    return _decode(data, _decode_result, "result")


_Received = TypeVar("_Received", _ReceivedMessage, _ReceivedResult)


def _decode(data: bytes, decode: Callable[[bytes], _Received], kind: str) -> _Received:
    try:
        envelope = decode(data)
    except _UNFIT as exc:
        _check_version(data, kind)  # a newer version may have any shape
        raise InvalidMessageError(f"not a {kind} envelope: {exc}; got {shorten(data)}") from exc
    if envelope.version != VERSION:
        _check_version(data, kind)
    envelope.finish()
    return envelope


def _check_version(data: bytes, kind: str) -> None:
    try:
        version = _decode_version(data).version
    except _UNFIT:
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
        data = value if isinstance(value, msgspec.Raw) else _encode(value)
        return msgspec.json.decode(data, type=type_)
    except _UNFIT as exc:
        raise InvalidMessageError(
            f"{where} does not fit {getattr(type_, '__name__', type_)}: {exc}"
        ) from exc


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"a number from 0 up is needed - at `$.{name}`")


def _check_raw(value: object, field: str) -> None:
    if type(value) is msgspec.Raw:
        try:
            msgspec.json.decode(value)
        except _UNFIT as exc:
            raise ValueError(f"its Raw is not JSON: {exc} - at `$.{field}`") from exc


def _time_for_go(time: datetime | None, field: str) -> datetime:
    if time is None:
        return _GO_ZERO_TIME
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
