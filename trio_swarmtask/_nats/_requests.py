# Requests and their replies, over one inbox subscription; and calls that are repeated until there
# is an answer.
#
# Every role has a `Requests` of its own, so that closing the role ends its waits and nobody
# else's. A reply wakes the waiting Trio task straight from the read loop, or calls a plain
# callback: no event, no queue, no asyncio future.
#
# A request ends in one of four ways: a reply (a status like 503 is one too), no answer (the
# connection went, or REQUEST_SECONDS have passed), a refusal (the server does not permit the
# publish), or the role was closed. In all four the request may have arrived; the caller repeats it
# in a way that twice is the same as once.
#
# On a slow link a reply may be late behind much other data, or be here only in part. So an overdue
# request is given up only once everything that the server had sent by then is here: a PONG comes
# after it.

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from contextlib import ExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import outcome
import trio
from trio.lowlevel import current_task

from .._errors import BrokerError, ClosedError, InvalidMessageError
from .._sync import Lifetime
from .._util import fresh, get_logger
from ._connection import Connection, NotConnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nats.aio.subscription import Subscription

    from ._error_lines import Refusal
    from ._protocol import Incoming

T = TypeVar("T")

# A reply takes a millisecond. This is for one that never comes, or a server that is overloaded.
REQUEST_SECONDS: Final = 5.0
STATUS: Final = "Status"

# Headers of a stored message.
_STORED: Final = ("Nats-Stream", "Nats-Sequence")


logger: Final = get_logger("trio_swarmtask.nats")


class NoAnswer(Exception):
    """Nothing came back; the request may have been served all the same."""


class Waiter(ABC):
    """Waits for the reply to a request; one of its methods is called, once."""

    __slots__ = ("sent_in", "subject")

    subject: bytes  # on which the request was sent
    sent_in: float  # the round of `Requests.expire`; inf: it is never given up

    @abstractmethod
    def on_reply(self, reply: Incoming) -> None: ...

    @abstractmethod
    def on_error(self, error: Exception) -> None:
        """There will be no reply."""


class _Task(Waiter):
    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task = current_task()

    def on_reply(self, reply: Incoming) -> None:
        trio.lowlevel.reschedule(self._task, outcome.Value(reply))

    def on_error(self, error: Exception) -> None:
        trio.lowlevel.reschedule(self._task, outcome.Error(error))


class _Collector(_Task):
    __slots__ = ("_requests", "_take")

    def __init__(self, requests: Requests, take: Callable[[Incoming], None]) -> None:
        super().__init__()
        self._requests = requests
        self._take = take

    def on_reply(self, reply: Incoming) -> None:
        if status_of(reply) is None:
            self._requests._wait_on(self, reply.raw_subject)
            self._take(reply)
        else:
            super().on_reply(reply)


class _Callback(Waiter):
    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[Incoming | None], None]) -> None:
        self._callback = callback

    def on_reply(self, reply: Incoming) -> None:
        self._callback(reply)

    def on_error(self, error: Exception) -> None:
        self._callback(None)


class Requests:
    """Requests of one role. Made by `open_requests`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._prefix = connection.client.new_inbox() + "."
        self._raw_prefix = self._prefix.encode()
        self._numbers = itertools.count(1)
        self._waiting: dict[bytes, Waiter] = {}  # by the subject of the reply
        self._inboxes: dict[bytes, Callable[[Incoming], None]] = {}
        self._round = 0
        self.on_round: list[Callable[[], None]] = []  # called in each round of `expire`
        self.lifetime = Lifetime()
        self._closed: Exception | None = None
        self._subject = self._prefix + "*"
        self._subscription = connection.subscribe(self._subject, self._on_reply)
        self._listening = ExitStack()
        self._listening.enter_context(
            connection.listening(on_down=self._on_down, on_refused=self._on_refused)
        )

    async def request(
        self, subject: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> Incoming:
        """Send and wait for one reply.

        Raises:
          NoAnswer, NotConnected: see the head of this module.
          BrokerError: if the server does not permit it.
          ClosedError: if the role was closed.
        """
        return await self._wait(self._send(_Task(), subject, data, headers))

    async def ask(self, subject: str, data: bytes) -> Incoming:
        """As `request`, for somebody who may take long: the deadline is the caller's.

        An outage does not end it, for the answer may come when the server is back.
        """
        waiter = _Task()
        inbox = self._send(waiter, subject, data)
        waiter.sent_in = math.inf
        return await self._wait(inbox)

    async def collect(
        self, subject: str, data: bytes, take: Callable[[Incoming], None]
    ) -> Incoming:
        """Send, and call ``take`` with each reply as it comes; return the one with a status.

        Raises:
          As `request`. What has come was taken, and the rest is lost.
        """
        return await self._wait(self._send(_Collector(self, take), subject, data))

    def tell(self, subject: str, data: bytes, callback: Callable[[Incoming | None], None]) -> None:
        """Send, and call ``callback`` with the reply, or None if there is none."""
        self._send(_Callback(callback), subject, data)

    def send(self, waiter: Waiter, subject: bytes, data: bytes, block: bytes) -> None:
        """Send, by `Connection.publish_raw`, and let ``waiter`` have the reply.

        Raises:
          NotConnected: if there is no connection now.
          ClosedError: if the role was closed.
        """
        if self._closed is not None:
            raise self._closed_error()
        inbox = b"%b%d" % (self._raw_prefix, next(self._numbers))
        self.connection.publish_raw(subject, data, inbox, block)
        waiter.subject = subject
        waiter.sent_in = self._round
        self._waiting[inbox] = waiter

    def open_inbox(self, callback: Callable[[Incoming], None]) -> str:
        """Another inbox, for any number of replies to what the caller sends.

        `close_inbox` ends it. An outage does not.
        """
        inbox = f"{self._prefix}{next(self._numbers)}"
        self._inboxes[inbox.encode()] = callback
        return inbox

    def close_inbox(self, inbox: str) -> None:
        del self._inboxes[inbox.encode()]

    async def echo(self) -> None:
        """Wait until the server has served what was sent before."""
        await self._wait(self._send(_Task(), None))

    def echo_soon(self, callback: Callable[[Incoming | None], None]) -> None:
        """As `echo`, without waiting: ``callback`` is told None if none came."""
        self._send(_Callback(callback), None)

    async def _wait(self, inbox: bytes) -> Incoming:
        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[inbox]
            return trio.lowlevel.Abort.SUCCEEDED

        reply: Incoming = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    def _send(
        self,
        waiter: Waiter,
        subject: str | None,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> bytes:
        if self._closed is not None:
            raise self._closed_error()
        inbox = f"{self._prefix}{next(self._numbers)}"
        if subject is None:
            subject = inbox
            self.connection.publish(subject)  # to ourselves
        else:
            self.connection.publish(subject, data, inbox, headers)
        waiter.subject = subject.encode()
        raw_inbox = inbox.encode()
        self._wait_on(waiter, raw_inbox)
        return raw_inbox

    def _wait_on(self, waiter: Waiter, inbox: bytes) -> None:
        waiter.sent_in = self._round
        self._waiting[inbox] = waiter

    def _on_reply(self, message: Incoming) -> None:
        waiter = self._waiting.pop(message.raw_subject, None)
        if waiter is not None:
            waiter.on_reply(message)
        elif callback := self._inboxes.get(message.raw_subject):
            callback(message)
        # else it came too late, or nobody had asked for it

    def _on_down(self) -> None:
        if self.connection.lost is not None:
            self._fail_all(self.connection.lost_error)
            return
        for inbox, waiter in list(self._waiting.items()):
            if waiter.sent_in < math.inf:
                self._fail(inbox, NoAnswer("the connection was lost"))

    def _on_refused(self, refusal: Refusal) -> None:
        if refusal.action == "subscription":
            if refusal.is_of(self._subscription):
                self.close(refused_error(self.connection, refusal))
            return
        subject = refusal.subject.encode()
        for inbox, waiter in list(self._waiting.items()):
            if waiter.subject == subject:
                self._fail(inbox, refused_error(self.connection, refusal))

    def _fail(self, inbox: bytes, error: Exception) -> None:
        self._waiting.pop(inbox).on_error(error)

    def _fail_all(self, make_error: Callable[[], Exception]) -> None:
        for inbox in list(self._waiting):
            self._fail(inbox, make_error())

    def close(self, error: Exception | None = None) -> None:
        """End every wait, and every later request, with ``error``."""
        if self._closed is None:
            self._closed = error or ClosedError("closed meanwhile")
            if self.connection.lost is not None:
                self._closed = self.connection.lost_error()  # the loss came first
            self._fail_all(self._closed_error)
            self.lifetime.end(self._closed_error)

    def _closed_error(self) -> Exception:
        assert self._closed is not None
        return fresh(self._closed)

    async def expire(self) -> None:
        """Give up requests that get no answer in time, until cancelled."""
        # One slow timer for all. A deadline for each would cost more than the request.
        while True:
            await trio.sleep(REQUEST_SECONDS / 2)
            self._round += 1
            for look in list(self.on_round):
                look()
            if self._overdue():
                await self.connection.catch_up()
                for inbox in self._overdue():
                    self._fail(inbox, NoAnswer(f"no reply within {REQUEST_SECONDS:g} seconds"))

    def _overdue(self) -> list[bytes]:
        last = self._round - 2
        return [inbox for inbox, waiter in self._waiting.items() if waiter.sent_in < last]

    def release(self) -> None:
        self._listening.close()
        self.connection.unsubscribe(self._subscription)


def refused_error(connection: Connection, refusal: Refusal, subject: str = "") -> BrokerError:
    """A refusal as an error; ``subject`` is named in place of the refusal's own, if given."""
    url = connection.config.safe_url
    act = "subscribe" if refusal.action == "subscription" else refusal.action
    what = f"{act} to {subject or refusal.subject}"
    if refusal.why:
        return BrokerError(f"{url} refuses to {what}: {refusal.why}")
    return BrokerError(f"{url} does not permit this user to {what}")


def status_of(message: Incoming) -> str | None:
    """The status line of a reply that carries one (``"503"``: nobody listens), else None."""
    if not message.head or message.data:
        return None
    headers = message.headers
    # A stored message may have a header of that name; it says where it is stored.
    return headers.get(STATUS) if headers.keys().isdisjoint(_STORED) else None


@asynccontextmanager
async def open_requests(connection: Connection, nursery: trio.Nursery) -> AsyncIterator[Requests]:
    """An inbox for one role; ``nursery`` runs its timer."""
    await connection.wait_up()
    requests = Requests(connection)
    nursery.start_soon(requests.expire)
    try:
        yield requests
    finally:
        requests.close()
        requests.release()


NO_RESPONDERS: Final = "503"
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0

# For refusals that usually pass within milliseconds: a warning is logged once the pauses have grown
# to this. They grow no longer, so that the end of a stall is noticed soon.
_IN_FLIGHT_PAUSE: Final = 0.4

_last_problem: Final[ContextVar[list[str]]] = ContextVar("trio_swarmtask.last_problem")
"""The problems so far: `in_time` names the last one if the time is over."""


class Refused(Exception):
    """The server refuses a request. `_jetstream` raises a subclass."""

    err_code = 0
    may_pass = False
    is_in_flight = False
    """Something of the same name is on its way, which takes milliseconds."""


class NoResponders(Exception):
    """Nobody listens on the subject: no such stream, or it has no leader now."""


class RefusedError(BrokerError):
    """A refusal that no waiting will change."""

    err_code = 0


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
    answer. ``tried``: the caller has made the first attempt, and it had no answer.

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
            except Refused as exc:
                if not exc.may_pass:
                    url = connection.config.safe_url
                    error = RefusedError(f"{url} refuses to {what}: {exc}")
                    error.err_code = exc.err_code
                    raise error from exc
                problem = str(exc)
                if exc.is_in_flight:
                    longest = _IN_FLIGHT_PAUSE
                    if pause < longest:
                        pause = await _pause(pause, longest)
                        continue
            _last_problem.get([]).append(problem)
            if connection.is_up and trouble.is_news(problem):
                logger.warning("could not %s, trying again: %s", what, problem)
            pause = await _pause(pause, longest)


async def _pause(last: float, longest: float) -> float:
    """Wait for longer than the last time; return for how long."""
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


# A subscription stands once the server has it and permits it. SUB has no answer. A refusal comes as
# an error line, before the answer to the next request: so an echo shows that the server listens for
# us and has refused nothing. After an error line that names no subject, we wait until it is known
# which subscription it is about.


async def subscribe(
    requests: Requests, subject: str, callback: Callable[[Incoming], None], queue: str = ""
) -> Subscription:
    """Subscribe; return when the server listens for us. Waits through an outage.

    Raises:
      BrokerError: if the server does not permit it, or is lost for good.
      ClosedError: if the role was closed.
    """
    connection = requests.connection
    refused: list[Refusal] = []

    def on_refused(refusal: Refusal) -> None:
        if refusal.is_of(subscription):
            refused.append(refusal)

    async def stand() -> None:
        await requests.echo()
        await connection.wait_certain()

    subscription = connection.subscribe(subject, callback, queue)
    stands = False
    try:
        with connection.listening(on_refused=on_refused):
            await requests.lifetime.run(
                partial(persist, connection, f"subscribe to {subject}", stand)
            )
        stands = not refused
    finally:
        if not stands:
            connection.unsubscribe(subscription)
    if refused:
        raise refused_error(connection, refused[0])
    return subscription
