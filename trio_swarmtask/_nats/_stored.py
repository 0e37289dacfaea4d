# Single messages of a stream that is a queue: looked at, and taken out.

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .._errors import BrokerError
from ._incoming import parse_headers
from ._jetstream import APIError, NoResponders, call
from ._refusals import NO_MESSAGE, NO_STREAM

if TYPE_CHECKING:
    from ._requests import Requests

_DENIED: Final = "not permitted"  # the code is that of any failure to delete


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message, and where it is."""

    stream: str
    seq: int
    subject: str
    time: str
    """When it was stored, in UTC; sorts as it came."""
    headers: dict[str, str]
    data: bytes


async def last_message(requests: Requests, stream: str, subject: str) -> StoredMessage | None:
    """The last message of a subject, or None."""
    return await _get(requests, stream, last_by_subj=subject)


async def next_message(
    requests: Requests, stream: str, pattern: str, seq: int
) -> StoredMessage | None:
    """The first message from ``seq`` on whose subject matches ``pattern``, or None."""
    return await _get(requests, stream, seq=seq, next_by_subj=pattern)


async def delete_message(requests: Requests, stream: str, seq: int, what: str) -> bool:
    """Take one message out of its stream; whether it was there.

    Not by a purge of its subject: nats-server 2.15 may then forget what else is leased, and a task
    whose worker has died is never delivered again.
    """
    failure: APIError | None = None
    try:
        await call(requests, f"STREAM.MSG.DELETE.{stream}", seq=seq, no_erase=True)
    except APIError as exc:
        if _DENIED in exc.description:
            raise BrokerError(
                f"stream {stream} does not let {what} be taken out of the queue: it has the "
                "setting deny_delete"
            ) from exc
        failure = exc  # or it has just gone
    if failure is not None and await _get(requests, stream, seq=seq) is not None:
        raise failure
    return failure is None


def gone(exc: APIError, stream: str) -> Exception:
    """What a refusal means, where the stream may have been deleted."""
    return NoResponders(f"stream {stream}") if exc.err_code == NO_STREAM else exc


async def _get(requests: Requests, stream: str, **which: object) -> StoredMessage | None:
    try:
        answer = await call(requests, f"STREAM.MSG.GET.{stream}", **which)
    except APIError as exc:
        if exc.err_code == NO_MESSAGE:
            return None
        raise gone(exc, stream) from exc
    message = answer["message"]
    return StoredMessage(
        stream=stream,
        seq=message["seq"],
        subject=message["subject"],
        time=message["time"].removesuffix("Z"),
        headers=parse_headers(base64.b64decode(message.get("hdrs") or "")),
        data=base64.b64decode(message.get("data") or ""),
    )
