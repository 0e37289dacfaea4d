# What the server's API answers, as far as it is used here: the shapes that answers must have.
#
# An answer of another shape is no answer: the request is repeated, as after an outage. So the code
# that uses an answer finds each field, of the right type, and raises nothing in the middle of a
# look-up. Unknown fields are ignored.

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, NotRequired, TypedDict

import msgspec

from .._check import Malformed, fits, reader
from .._subjects import matches

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Some = Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)]
_Limit = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Refusal(msgspec.Struct):
    """The server's no."""

    code: _Some
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """The server's acknowledgement of a publish."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: Refusal | None = None


class _Names(TypedDict):
    streams: NotRequired[list[_Name] | None]


class _Republish(TypedDict, total=False):
    src: str
    dest: str
    headers_only: bool


class _Transform(TypedDict, total=False):
    src: str
    dest: str


class _StreamConfig(TypedDict):
    name: _Name
    subjects: NotRequired[list[str] | None]
    discard: NotRequired[str]
    discard_new_per_subject: NotRequired[bool]
    retention: NotRequired[str]
    storage: NotRequired[str]
    persist_mode: NotRequired[str | None]
    no_ack: NotRequired[bool]
    subject_transform: NotRequired[_Transform | None]
    max_age: NotRequired[_Count]
    max_msgs: NotRequired[_Limit]
    max_bytes: NotRequired[_Limit]
    max_msgs_per_subject: NotRequired[_Limit]
    max_msg_size: NotRequired[_Limit]
    num_replicas: NotRequired[_Count]
    allow_direct: NotRequired[bool]
    allow_msg_ttl: NotRequired[bool]
    allow_msg_schedules: NotRequired[bool]
    subject_delete_marker_ttl: NotRequired[_Count]
    republish: NotRequired[_Republish | None]


class _StreamState(TypedDict):
    last_seq: _Count
    subjects: NotRequired[dict[str, _Count] | None]


class _Stream(TypedDict):
    config: _StreamConfig
    state: _StreamState
    ts: NotRequired[_Time]


class _ConsumerConfig(TypedDict):
    ack_wait: NotRequired[_Some]
    ack_policy: NotRequired[str]
    filter_subject: NotRequired[str]
    deliver_subject: NotRequired[str]
    max_deliver: NotRequired[_Limit]
    deliver_policy: NotRequired[str]
    headers_only: NotRequired[bool]
    priority_groups: NotRequired[list[str] | None]
    max_batch: NotRequired[_Count]
    max_expires: NotRequired[_Count]


class _Delivered(TypedDict):
    stream_seq: _Count


class _Consumer(TypedDict):
    stream_name: _Name
    name: _Name
    created: str
    config: _ConsumerConfig
    delivered: _Delivered


class _Message(TypedDict):
    subject: _Name
    seq: _Some
    time: str
    hdrs: NotRequired[bytes | None]  # in base64
    data: NotRequired[bytes | None]


class _MessageGet(TypedDict):
    message: _Message


class _Deletion(TypedDict):
    success: bool


# By how a request begins.
_SHAPES: Final = {
    "STREAM.NAMES": fits(_Names),
    "STREAM.INFO.": fits(_Stream),
    "STREAM.CREATE.": fits(_Stream),
    "STREAM.MSG.GET.": fits(_MessageGet),
    "STREAM.MSG.DELETE.": fits(_Deletion),
    "CONSUMER.INFO.": fits(_Consumer),
    "CONSUMER.CREATE.": fits(_Consumer),
}
_fits_refusal: Final = fits(Refusal)
_read_object: Final = reader(dict[str, Any])
_read_ack: Final = reader(PubAck)


def read_ack(data: bytes) -> PubAck:
    """An acknowledgement, or a refusal.

    Raises:
      Malformed: if it is neither: one that does not say where the message is confirms nothing.
    """
    ack = _read_ack(data)
    if ack.error is None and not (ack.stream and ack.seq > 0):
        raise Malformed("it does not say where the message is stored")
    return ack


def read_answer(request: str, body: dict[str, object], data: bytes) -> dict[str, Any]:
    """The answer to a request of the API, or a refusal, which has an ``error``.

    Raises:
      Malformed: if it does not have the shape that the request asks for.
    """
    answer = _read_object(data)
    if answer.get("error") is not None:
        _fits_refusal(answer["error"])
        return answer
    for beginning, check in _SHAPES.items():
        if request.startswith(beginning):
            check(answer)
    asked_for = body.get("last_by_subj", body.get("next_by_subj"))
    if isinstance(asked_for, str) and not matches(asked_for, answer["message"]["subject"]):
        raise Malformed("it is about another subject")
    return answer
