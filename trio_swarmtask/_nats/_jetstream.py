# JetStream's requests: publish with an acknowledgement, and the JSON API.
#
# An answer that says no is one of two kinds (`_refusals.py` has the table). What time may change (a
# stream that is full, a leader that is being elected, another publish that is on its way) is tried
# again, with a growing pause and one warning; so a task is only ever late. What time does not
# change is an error for the caller.

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio

from .._errors import BrokerError, InvalidMessageError, SwarmTaskError
from .._untrusted import Malformed
from ._ack_subject import parse_count
from ._answers import PubAck as PubAck, read_ack, read_answer
from ._connection import Connection, NotConnected
from ._refusals import IN_FLIGHT, passes
from ._requests import NoAnswer, Requests, Waiter, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._incoming import Incoming

T = TypeVar("T")

logger: Final = logging.getLogger("trio_swarmtask.nats")

NO_RESPONDERS: Final = "503"

# An acknowledgement in the form in which the server writes nearly every one.
_is_usual_ack: Final = re.compile(
    rb'\{"stream":"[\w-]+"(?:, ?"domain":"[\w-]+")?, ?"seq": ?[1-9]\d{0,17}\}', re.ASCII
).fullmatch

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
# Of what passes in milliseconds where all is well: told when the pauses have grown to this. They
# stay there, for a stall that ends is to be noticed soon.
_IN_FLIGHT_PAUSE: Final = 0.4

_last_problem: Final[ContextVar[list[str]]] = ContextVar("trio_swarmtask.last_problem")
"""What `in_time` says if the time is over."""


class APIError(Exception):
    """The server's no."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} (code {err_code})")
        self.err_code = err_code
        self.description = description
        self.may_pass = passes(code, err_code)


class NoResponders(Exception):
    """Nobody listens on the subject: no such stream, or it has no leader now."""


class RefusedError(BrokerError):
    """A refusal that no waiting will change."""

    err_code = 0


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
    def on_end(self, *, stored: bool, duplicate: bool = False) -> None:
        """Whether it was stored; if not, or not for sure, `publish` is to be called."""

    def on_reply(self, reply: Incoming) -> None:
        if _is_usual_ack(reply.data):  # the way of nearly every one
            self.on_end(stored=True)
            return
        try:
            ack = _read_ack(self.subject.decode(), reply)
        except (APIError, NoAnswer, NoResponders):
            self.on_end(stored=False)
        else:
            self.on_end(stored=True, duplicate=ack.duplicate)

    def on_error(self, error: Exception) -> None:
        self.on_end(stored=False)


def publish_soon(
    requests: Requests, publish: Publish, subject: bytes, data: bytes, block: bytes, most: int
) -> bool:
    """As `publish`, without waiting, and with the headers as they go onto the wire.

    Args:
      most: Bytes of the headers that it may need when it is published again: what is too large
        then is not sent now.

    Returns:
      False if nothing was sent: there is no connection, or no room.
    """
    connection = requests.connection
    if connection.is_congested or len(data) + most > connection.client.max_payload:
        return False
    try:
        requests.send(publish, subject, data, block)
    except (NotConnected, SwarmTaskError):
        return False  # as above
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


async def persist(
    connection: Connection,
    what: str,
    attempt: Callable[[], Awaitable[T]],
    before_retry: Callable[[], Awaitable[T | None]] | None = None,
    *,
    tried: bool = False,
) -> T:
    """Call ``attempt`` until it has an answer: through outages, and refusals that may pass.

    ``before_retry`` is called before each further attempt; what it returns, if not None, is the
    answer. ``tried``: the caller has made the first one, and it had none.

    Raises:
      RefusedError: if the server says no for good.
    """
    pause = _FIRST_PAUSE if tried else 0.0
    with connection.troubles.open() as trouble:
        while True:
            longest = _LONGEST_PAUSE
            try:
                if pause and before_retry is not None:
                    found = await before_retry()
                    if found is not None:
                        return found
                return await attempt()
            except NotConnected:
                await connection.wait_up()
                pause = pause or _FIRST_PAUSE
                continue
            except NoAnswer as exc:
                problem = str(exc)
            except NoResponders as exc:
                problem = f"nobody answers on {exc}: no stream, or no leader now"
            except APIError as exc:
                if not exc.may_pass:
                    url = connection.config.safe_url
                    error = RefusedError(f"{url} refuses to {what}: {exc}")
                    error.err_code = exc.err_code
                    raise error from exc
                problem = str(exc)
                if exc.err_code in IN_FLIGHT:
                    longest = _IN_FLIGHT_PAUSE
                    if pause < longest:
                        pause = await _pause(pause, longest)
                        continue
            _last_problem.get([]).append(problem)
            if connection.is_up and trouble.is_news(problem):
                logger.warning("could not %s, trying again: %s", what, problem)
            pause = await _pause(pause, longest)


async def _pause(last: float, longest: float) -> float:
    """Wait for longer than the last time, and say how long that was."""
    pause = min(max(_FIRST_PAUSE, 2 * last), longest)
    await trio.sleep(pause)
    return pause


async def in_time(connection: Connection, what: str, act: Callable[[], Awaitable[T]]) -> T:
    """``act`` within the config's ``connect_timeout``, or BrokerError."""
    seconds = connection.config.connect_timeout
    problems: list[str] = []
    token = _last_problem.set(problems)
    try:
        with trio.move_on_after(seconds):
            return await act()
    finally:
        _last_problem.reset(token)
    why = f": {problems[-1]}" if problems else ""
    raise BrokerError(
        f"{connection.config.safe_url} did not {what} within {seconds:g} seconds{why}"
    )


def check_size(connection: Connection, data: bytes, header_bytes: int) -> None:
    """Raise InvalidMessageError if the server would close the connection over this message."""
    limit = connection.client.max_payload - header_bytes
    if len(data) > limit:
        raise InvalidMessageError(
            f"an envelope of {len(data)} bytes is larger than the {limit} that the server takes; "
            "keep large data elsewhere and send a reference"
        )
