# JetStream's requests: publish with an acknowledgement, and the JSON API.
#
# An answer that says no is one of two kinds (`_refusals.py` has the table). If it may pass (a full
# stream, the election of a leader, another publish on its way), the request is tried again, with a
# growing pause and one warning; so a task is only ever late. If it can't pass, it is an error for
# the caller.

from __future__ import annotations

import base64
import re
import time
from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from .._check import Malformed
from .._errors import BrokerError, InvalidMessageError, SwarmTaskError
from .._nats._connection import NotConnected
from .._nats._protocol import parse_headers
from .._nats._requests import (
    NoAnswer,
    NoResponders,
    Refused,
    RefusedError,
    Requests,
    Waiter,
    status_of,
)
from .._util import get_logger
from ._answers import PubAck as PubAck, read_ack, read_answer
from ._headers import parse_count
from ._refusals import IN_FLIGHT, MESSAGE_TOO_LARGE, NO_MESSAGE, NO_STREAM, passes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._nats._protocol import Incoming

logger: Final = get_logger("trio_swarmtask.nats")

# An acknowledgement in the form in which the server writes nearly every one.
_is_usual_ack: Final = re.compile(
    rb'\{"stream":"[\w-]+"(?:, ?"domain":"[\w-]+")?, ?"seq": ?[1-9]\d{0,17}\}', re.ASCII
).fullmatch


class APIError(Refused):
    """The server's no."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} (code {err_code})")
        self.err_code = err_code
        self.description = description
        self.may_pass = passes(code, err_code)
        self.is_in_flight = err_code in IN_FLIGHT


NO_ANSWER_YET: Final = (NotConnected, NoAnswer, NoResponders, APIError)
"""What an attempt raises that `persist` may try again."""


async def publish(
    requests: Requests, subject: str, data: bytes, headers: dict[str, str] | None
) -> PubAck:
    """Store a message in the stream that holds ``subject``.

    Raises:
      APIError, NoResponders, NoAnswer, NotConnected, and what `Requests.request` raises.
    """
    connection = requests.connection
    if connection.is_congested:
        await connection.wait_room()
    return _read_ack(subject, await requests.request(subject, data, headers))


class Publish(Waiter):
    """A publish that no task waits for; see `publish_soon`."""

    __slots__ = ()

    @abstractmethod
    def on_end(self, *, stored: bool, duplicate: bool = False, receipt: bytes = b"") -> None:
        """Whether it was stored; if not, or not for sure, `publish` is to be called.

        ``receipt``: the acknowledgement, which `read_ack` reads.
        """

    def on_reply(self, reply: Incoming) -> None:
        if _is_usual_ack(reply.data):  # nearly every one
            self.on_end(stored=True, receipt=reply.data)
            return
        try:
            ack = _read_ack(self.subject.decode(), reply)
        except (APIError, NoAnswer, NoResponders):
            self.on_end(stored=False)
        else:
            self.on_end(stored=True, duplicate=ack.duplicate, receipt=reply.data)

    def on_error(self, error: Exception) -> None:
        self.on_end(stored=False)


def publish_soon(
    requests: Requests, publish: Publish, subject: bytes, data: bytes, block: bytes, most: int
) -> bool:
    """As `publish`, without waiting, and with the headers as they go onto the wire.

    Args:
      most: Bytes of the headers that it may need when it is published again: a message that is
        too large then is not sent now.

    Returns:
      False if nothing was sent: there is no connection, or no room.
    """
    connection = requests.connection
    if connection.is_congested or len(data) + most > connection.client.max_payload:
        return False
    try:
        requests.send(publish, subject, data, block)
    except (NotConnected, SwarmTaskError):
        return False  # no connection; or closed, which `publish` tells
    return True


def _read_ack(subject: str, reply: Incoming) -> PubAck:
    if not reply.data:
        raise NoResponders(subject)  # an acknowledgement has a body; only a status has none
    try:
        ack = read_ack(reply.data)
    except Malformed as exc:
        raise NoAnswer(f"what came back on {subject} is no acknowledgement: {exc}") from exc
    if ack.error is not None:
        raise APIError(ack.error.code, ack.error.err_code, ack.error.description)
    return ack


async def call(requests: Requests, request: str, /, **body: object) -> dict[str, Any]:
    """One request of the JSON API, ``$JS.API.<request>``; the answer is as `_answers.py` says."""
    reply = await requests.request(f"$JS.API.{request}", msgspec.json.encode(body) if body else b"")
    if status_of(reply) is not None:
        raise NoResponders(f"$JS.API.{request}")
    try:
        answer = read_answer(request, body, reply.data)
    except Malformed as exc:
        raise NoAnswer(f"what came back from {request} is no answer: {exc}") from exc
    error = answer.get("error")
    if error is not None:
        raise APIError(error["code"], error.get("err_code", 0), error.get("description", ""))
    return answer


@contextmanager
def refused_for_its_size(size: int, stream: str) -> Iterator[None]:
    """Raise InvalidMessageError if the stream finds an envelope too large."""
    try:
        yield
    except RefusedError as exc:
        if exc.err_code not in MESSAGE_TOO_LARGE:
            raise
        raise InvalidMessageError(
            f"an envelope of {size} bytes is larger than the stream of {stream} takes: {exc}"
        ) from exc


async def direct_get(requests: Requests, stream: str, subject: str) -> Incoming | None:
    """The last message of a subject, from any replica; None if there is none."""
    reply = await requests.request(f"$JS.API.DIRECT.GET.{stream}.{subject}")
    status = status_of(reply)
    if status == "404":
        return None
    if status is not None:
        raise NoResponders(f"a direct get of {stream}")
    if reply.header(b"Nats-Subject") != subject or not parse_count(reply.header(b"Nats-Sequence")):
        raise NoAnswer(f"what came back from a direct get of {stream} is no message of {subject}")
    return reply


def measure_clock(stamp: object, asked_at: float) -> float:
    """What to add to Trio's clock to get the server's, in seconds since 1970.

    Args:
      stamp: The server's time in an answer that has just come. If there is none, the server is
        taken to have this machine's.
      asked_at: When it was asked, by Trio's clock.
    """
    now = trio.current_time()
    try:
        served_at = msgspec.convert(stamp, datetime)
    except msgspec.ValidationError:
        return time.time() - now
    return served_at.timestamp() - (asked_at + now) / 2


# Single messages of a stream that is a queue: looked at, and taken out.
_DENIED: Final = "not permitted"  # the error code is that of any failed deletion


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message, and where it is."""

    stream: str
    seq: int
    subject: str
    time: str
    """When it was stored, in UTC; sorts in that order."""
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
    """Take one message out of its stream; return whether it was there.

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
        failure = exc  # or the message has just gone
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
