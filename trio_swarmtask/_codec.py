# How Message and Result become bytes, and come back.
#
# Out: one conversion in C to the envelope checks every field, then the envelope is written. In: the
# envelope is read, then its values go into the public struct.
#
# Invariant: decoding raises InvalidMessageError or UnsupportedVersionError, whatever the bytes.

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from ._envelope import (
    PLAIN,
    VERSION,
    MessageEnvelope,
    ReceivedMessage,
    ReceivedResult,
    ResultEnvelope,
    check_raw,
)
from ._errors import InvalidMessageError, UnsupportedVersionError
from ._names import shorten
from ._untrusted import UNFIT, Malformed, read_json, reader

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_FIELD: Final = re.compile(r"\$\.(\w+)")


class _AnyVersion(msgspec.Struct):
    version: int


_encode: Final = msgspec.json.Encoder().encode
_read_message: Final = reader(ReceivedMessage)
_read_result: Final = reader(ReceivedResult)
_read_version: Final = reader(_AnyVersion)


# As a `ResultEnvelope` is written, of which most fields are the library's own and need no check.
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

    ``fill`` is called in between, to fill blanks: cheaper than in a copy of ``struct``.
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
    assert envelope is not None  # only the conversion to one fails before, and names the field
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
