# Cancelling a task from afar: what the canceller asks of the server, and what a worker hears.
#
# The canceller has stored the task's result by then. It tells the workers, by
# `cancel.<capability>.<id>` with an inbox for their answers; asks how far the durable has come;
# and only then takes the task out of the queue. In this order a task that lies behind what was
# delivered has never run: had it been delivered in between, its worker would have heard of the
# cancellation before, and looked for the result first. It may have been sent twice: then that must
# hold for each.
#
# A worker that runs the task answers "running" and, once its handler has cleaned up, "ended". That
# counts for more than what the server knows; and several may run it, each of which says both. A
# worker only answers to an inbox: anywhere else an answer could mean something.

from __future__ import annotations

import logging
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .._broker import Notice
from .._errors import BrokerError
from ._connection import NotConnected
from ._firing import firings_like
from ._jetstream import call
from ._requests import refused_error, status_of
from ._stored import delete_message, last_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.subscription import Subscription

    from ._connection import Connection
    from ._delivered import Delivered
    from ._error_lines import Refusal
    from ._incoming import Incoming
    from ._requests import Requests
    from ._stored import StoredMessage
    from ._streams import Streams

logger: Final = logging.getLogger("trio_swarmtask.nats")

_INBOX: Final = re.compile(r"_INBOX(\.[A-Za-z0-9_-]+){1,4}")
# A worker that has the task answers at once. If nobody does, it was one that has died.
_ANSWER_SECONDS: Final = 2.0
_ENDED: Final = b"ended"
_RUNNING: Final = b"running"


class NATSNotice(Notice):
    """A worker's end."""

    def __init__(self, connection: Connection, task_id: str, reply: str) -> None:
        self.task_id = task_id
        self._connection = connection
        self._reply = reply

    def running(self) -> None:
        self._answer(_RUNNING)

    def ended(self) -> None:
        self._answer(_ENDED)

    def _answer(self, what: bytes) -> None:
        if _INBOX.fullmatch(self._reply):
            with suppress(NotConnected, BrokerError):  # who waits for it gives up in time
                self._connection.publish(self._reply, what)


class Pushes:
    """What a worker hears of one capability."""

    def __init__(self, connection: Connection, capability: str) -> None:
        self._connection = connection
        self._prefix = f"cancel.{capability}."
        self._subscription: Subscription | None = None

    def hear(self, callback: Callable[[Notice], None]) -> None:
        def on_push(message: Incoming) -> None:
            task_id = message.subject.removeprefix(self._prefix)
            callback(NATSNotice(self._connection, task_id, message.reply))

        self._subscription = self._connection.subscribe(f"{self._prefix}*", on_push)

    def on_refused(self, refusal: Refusal) -> None:
        if refusal.is_of(self._subscription):
            logger.warning(
                "%s: what is cancelled is found by looking alone, which takes longer",
                refused_error(self._connection, refusal),
            )

    def end(self) -> None:
        if self._subscription is not None:
            self._connection.unsubscribe(self._subscription)


async def find_task(requests: Requests, task_id: str) -> str | None:
    """The capability of a task that is in a queue, or is not due."""
    subject = f"work.*.{task_id}"
    for pattern in (f"{subject}.later", subject, *firings_like(task_id)):
        answer = await call(requests, "STREAM.NAMES", subject=pattern)
        for stream in answer.get("streams") or []:
            message = await last_message(requests, stream, pattern)
            if message is not None:
                return message.subject.split(".")[1]
    return None


class Cancellation:
    """Takes one task out of the queue and out of its worker's hands."""

    def __init__(
        self,
        requests: Requests,
        streams: Streams,
        delivered: Delivered,
        task_id: str,
        *,
        due: bool,
    ) -> None:
        self._requests = requests
        self._delivered = delivered
        self._due = due
        self._connection = requests.connection
        self._streams = streams
        self._task_id = task_id
        self._inbox = ""
        self._push = ""  # its subject
        self._answered = trio.Event()  # once more
        self._is_unheard = False  # by any worker
        self._was_not_due = False
        self._running = 0  # so many have said that they run it
        self._ended = 0  # and that they don't any more
        self._refusal: Refusal | None = None

    async def stop(self, capability: str | None, grace: float) -> bool | None:
        """As `Outbox.stop`."""
        await self._connection.wait_up()
        self._inbox = self._requests.open_inbox(self._on_answer)
        self._connection.on_refused.append(self._on_refused)
        try:
            never_ran = await self._streams.persist(
                f"cancel task {self._task_id}", partial(self._attempt, capability)
            )
            if never_ran and not self._running:
                return True
            with trio.move_on_after(grace):
                with trio.move_on_after(_ANSWER_SECONDS) as silence:
                    await self._wait_answered()
                if silence.cancelled_caught and self._running:
                    await self._wait_answered()
            if self._have_ended():
                return True
            return False if self._running else None
        finally:
            self._connection.on_refused.remove(self._on_refused)
            self._requests.close_inbox(self._inbox)

    def _on_answer(self, message: Incoming) -> None:
        if message.data == _RUNNING:
            self._running += 1
        if message.data == _ENDED:
            self._ended += 1
        if status_of(message) is not None:  # 503: nobody listens
            self._is_unheard = True
        self._answered.set()
        self._answered = trio.Event()

    async def _wait_answered(self) -> None:
        # Not for the first "ended" alone: before this task runs, another one may say "running".
        while not (self._have_ended() or self._is_unheard):
            await self._answered.wait()

    def _have_ended(self) -> bool:
        return self._ended >= max(1, self._running)

    def _on_refused(self, refusal: Refusal) -> None:
        if refusal.action == "publish" and refusal.subject == self._push:
            self._refusal = refusal

    async def _attempt(self, capability: str | None) -> bool:
        """Whether the task was never delivered."""
        if capability is None:
            capability = await find_task(self._requests, self._task_id)
            if capability is None:
                return False
        stream = await self._streams.tasks(capability)
        subject = f"work.{capability}.{self._task_id}"
        # What is not due yet comes into the queue when it is; so it goes first.
        if not self._due:
            later = f"{subject}.later"
            if await self._remove(stream, later, await last_message(self._requests, stream, later)):
                self._was_not_due = True
        stored = await last_message(self._requests, stream, subject)
        self._push = f"cancel.{capability}.{self._task_id}"
        self._connection.publish(self._push, b"", self._inbox)
        progress = await self._delivered.find(stream, capability)
        if self._refusal is not None:  # that comes before the answer
            raise refused_error(self._connection, self._refusal)
        others = await self._remove(stream, subject, stored)
        if stored is None:
            return self._was_not_due
        return progress is not None and all(map(progress.is_short_of, (stored, *others)))

    async def _remove(
        self, stream: str, subject: str, message: StoredMessage | None
    ) -> list[StoredMessage]:
        """Take out a message, and what else there is of its subject: what was there."""
        removed = []
        while message is not None:
            if await delete_message(self._requests, stream, message.seq, f"task {self._task_id}"):
                removed.append(message)
            message = await last_message(self._requests, stream, subject)
        return removed
