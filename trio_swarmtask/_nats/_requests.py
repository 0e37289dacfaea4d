# Requests and their replies, over one inbox subscription.
#
# Every role has a `Requests` of its own, so that closing the role ends its waits and nobody
# else's. A reply wakes the waiting Trio task straight from the read loop, or calls a plain
# callback: no event, no queue, no asyncio future.
#
# A request ends in one of four ways: a reply (a status like 503 is one too), no answer (the
# connection went, or REQUEST_SECONDS have passed), a refusal (the server does not permit the
# publish), or the role was closed. What was sent may have arrived in all of them; the caller
# repeats it so that twice is the same as once.
#
# On a slow link a reply may be late behind much else, or have come in part. So one that is overdue
# is given up only once all is here that the server had sent by then: a PONG comes behind it.

from __future__ import annotations

import itertools
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import outcome
import trio
from trio.lowlevel import current_task

from .._errors import BrokerError, ClosedError
from .._lifetime import Lifetime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ._connection import Connection
    from ._error_lines import Refusal
    from ._incoming import Incoming

# A reply takes a millisecond. This is for one that never comes, or a server that is overloaded.
REQUEST_SECONDS: Final = 5.0

STATUS: Final = "Status"
# Of a message that is stored.
_STORED: Final = ("Nats-Stream", "Nats-Sequence")


class NoAnswer(Exception):
    """Nothing came back; the request may have been served all the same."""


class _Waiting:
    __slots__ = ("callback", "sent_in", "subject", "take", "task")

    def __init__(
        self,
        subject: str,
        sent_in: float,
        task: trio.lowlevel.Task | None,
        callback: Callable[[Incoming | None], None] | None,
        take: Callable[[Incoming], None] | None,
    ) -> None:
        self.subject = subject
        self.sent_in = sent_in  # the round of `expire`; inf: never given up
        self.task = task
        self.callback = callback
        self.take = take  # of replies before the last


class Requests:
    """Requests of one role. Made by `open_requests`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._prefix = connection.client.new_inbox() + "."
        self._numbers = itertools.count(1)
        self._waiting: dict[str, _Waiting] = {}
        self._inboxes: dict[str, Callable[[Incoming], None]] = {}
        self._round = 0
        self.on_round: list[Callable[[], None]] = []  # for what is looked at now and then
        self.lifetime = Lifetime()
        self._closed: Exception | None = None
        self._subject = self._prefix + "*"
        self._subscription = connection.subscribe(self._subject, self._on_reply)
        connection.on_down.append(self._on_down)
        connection.on_refused.append(self._on_refused)

    async def request(
        self, subject: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> Incoming:
        """Send and wait for one reply.

        Raises:
          NoAnswer, NotConnected: see the head of this module.
          BrokerError: if the server does not permit it.
          ClosedError: if the role was closed.
        """
        return await self._wait(self._send(subject, data, headers, current_task()))

    async def ask(self, subject: str, data: bytes) -> Incoming:
        """As `request`, for somebody who may take long: the deadline is the caller's.

        An outage does not end it, for the answer may come when the server is back.
        """
        inbox = self._send(subject, data, None, current_task())
        self._waiting[inbox].sent_in = math.inf
        return await self._wait(inbox)

    async def collect(
        self, subject: str, data: bytes, take: Callable[[Incoming], None]
    ) -> Incoming:
        """Send, and have ``take`` called with each reply as it comes; return one with a status.

        Raises:
          As `request`. What has come was taken, and the rest is lost.
        """
        return await self._wait(self._send(subject, data, None, current_task(), take=take))

    def tell(
        self,
        subject: str,
        data: bytes,
        callback: Callable[[Incoming | None], None],
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send, and call ``callback`` with the reply, or None if there is none."""
        self._send(subject, data, headers, None, callback)

    def open_inbox(self, callback: Callable[[Incoming], None]) -> str:
        """Another inbox, for any number of replies to what the caller sends himself.

        It goes with `close_inbox`. An outage does not end it.
        """
        inbox = f"{self._prefix}{next(self._numbers)}"
        self._inboxes[inbox] = callback
        return inbox

    def close_inbox(self, inbox: str) -> None:
        del self._inboxes[inbox]

    async def echo(self) -> None:
        """Wait until the server has served what was sent before."""
        await self._wait(self._send(None, b"", None, current_task()))

    def echo_soon(self, callback: Callable[[Incoming | None], None]) -> None:
        """As `echo`, without waiting: ``callback`` is told None if none came."""
        self._send(None, b"", None, None, callback)

    async def _wait(self, inbox: str) -> Incoming:
        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[inbox]
            return trio.lowlevel.Abort.SUCCEEDED

        reply: Incoming = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    def _send(
        self,
        subject: str | None,
        data: bytes,
        headers: dict[str, str] | None,
        task: trio.lowlevel.Task | None,
        callback: Callable[[Incoming | None], None] | None = None,
        take: Callable[[Incoming], None] | None = None,
    ) -> str:
        if self._closed is not None:
            raise self._closed_error()
        inbox = f"{self._prefix}{next(self._numbers)}"
        if subject is None:
            subject = inbox
            self.connection.publish(subject)  # to ourselves
        else:
            self.connection.publish(subject, data, inbox, headers)
        self._waiting[inbox] = _Waiting(subject, self._round, task, callback, take)
        return inbox

    def _on_reply(self, message: Incoming) -> None:
        waiting = self._waiting.pop(message.subject, None)
        if waiting is None:
            callback = self._inboxes.get(message.subject)
            if callback is not None:
                callback(message)
            return  # else too late, or somebody else's idea
        if waiting.take is not None and status_of(message) is None:
            waiting.sent_in = self._round
            self._waiting[message.subject] = waiting
            waiting.take(message)
            return
        if waiting.task is not None:
            trio.lowlevel.reschedule(waiting.task, outcome.Value(message))
        else:
            assert waiting.callback is not None
            waiting.callback(message)

    def _on_down(self) -> None:
        if self.connection.lost is not None:
            self._fail_all(self.connection.lost_error)
            return
        for inbox, waiting in list(self._waiting.items()):
            if waiting.sent_in < math.inf:
                self._fail(inbox, NoAnswer("the connection was lost"))

    def _on_refused(self, refusal: Refusal) -> None:
        if refusal.action == "subscription":
            if refusal.is_of(self._subscription):
                self.close(refused_error(self.connection, refusal))
            return
        for inbox, waiting in list(self._waiting.items()):
            if waiting.subject == refusal.subject:
                self._fail(inbox, refused_error(self.connection, refusal))

    def _fail(self, inbox: str, error: Exception) -> None:
        waiting = self._waiting.pop(inbox)
        if waiting.task is not None:
            trio.lowlevel.reschedule(waiting.task, outcome.Error(error))
        else:
            assert waiting.callback is not None
            waiting.callback(None)

    def _fail_all(self, make_error: Callable[[], Exception]) -> None:
        for inbox in list(self._waiting):
            self._fail(inbox, make_error())

    def close(self, error: Exception | None = None) -> None:
        """End every wait, and every later request, with ``error``."""
        if self._closed is None:
            self._closed = error or ClosedError("closed meanwhile")
            if self.connection.lost is not None:
                self._closed = self.connection.lost_error()  # that came first
            self._fail_all(self._closed_error)
            self.lifetime.end(self._closed_error)

    def _closed_error(self) -> Exception:
        assert self._closed is not None
        return type(self._closed)(*self._closed.args)

    async def expire(self) -> None:
        """Give up requests that were not answered in time, for ever."""
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

    def _overdue(self) -> list[str]:
        last = self._round - 2
        return [inbox for inbox, waiting in self._waiting.items() if waiting.sent_in < last]

    def release(self) -> None:
        self.connection.on_down.remove(self._on_down)
        self.connection.on_refused.remove(self._on_refused)
        self.connection.unsubscribe(self._subscription)


def refused_error(connection: Connection, refusal: Refusal, subject: str = "") -> BrokerError:
    """What the server refuses, as an error; ``subject``: in place of the one that it names."""
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
