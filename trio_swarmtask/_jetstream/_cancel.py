# Cancelling a task from afar: what the canceller asks of the server, and what a worker hears.
#
# The canceller has stored the task's result before. It tells the workers, by
# `cancel.<capability>.<id>` with an inbox for their answers; asks how far the durable has come; and
# only then takes the task out of the queue. In this order a task that comes after everything that
# was delivered has never run: if it was delivered in between, its worker has heard of the
# cancellation before, and looks for the result first. The task may have been stored twice: then
# this must hold for both messages.
#
# A worker that runs the task answers "running" and, once its handler has cleaned up, "ended". These
# answers count for more than what the server knows. Several workers may run the task; each of them
# says both. A worker answers only to an inbox: on another subject an answer could have a meaning.

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .._abc import Notice
from .._errors import BrokerError
from .._nats._connection import NotConnected
from .._nats._requests import NoAnswer, refused_error, status_of
from .._util import get_logger
from ._api import APIError, call, delete_message, gone, last_message
from ._headers import firings_like
from ._refusals import NO_CONSUMER

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._nats._connection import Connection, Subscription
    from .._nats._error_lines import Refusal
    from .._nats._protocol import Incoming
    from .._nats._requests import Requests
    from ._api import StoredMessage
    from ._streams import JetStream

logger: Final = get_logger("trio_swarmtask.nats")
_INBOX: Final = re.compile(r"_INBOX(\.[A-Za-z0-9_-]+){1,4}")

# Seconds. A worker that has the task answers at once. If none does, that worker has died.
ANSWER_SECONDS: Final = 2.0
_ENDED: Final = b"ended"
_RUNNING: Final = b"running"


class NATSNotice(Notice):
    """A worker's side of a cancellation."""

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
            with suppress(NotConnected, BrokerError):  # the canceller gives up in time
                self._connection.publish(self._reply, what)


class Notices:
    """What a worker hears of cancellations in one capability, from `begin` to `end`."""

    def __init__(
        self, connection: Connection, capability: str, callback: Callable[[Notice], None]
    ) -> None:
        self._connection = connection
        self._prefix = f"cancel.{capability}."
        self._callback = callback
        self._subscription: Subscription | None = None

    def begin(self) -> None:
        self._subscription = self._connection.subscribe(f"{self._prefix}*", self._on_message)

    def _on_message(self, message: Incoming) -> None:
        task_id = message.subject.removeprefix(self._prefix)
        self._callback(NATSNotice(self._connection, task_id, message.reply))

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
    """The capability of a task that is in a queue, or is not due; or None."""
    subject = f"work.*.{task_id}"
    for pattern in (f"{subject}.later", subject, *firings_like(task_id)):
        answer = await call(requests, "STREAM.NAMES", subject=pattern)
        for stream in answer.get("streams") or []:
            message = await last_message(requests, stream, pattern)
            if message is not None:
                return message.subject.split(".")[1]
    return None


class Answers:
    """What the workers say of one task that is cancelled."""

    __slots__ = ("_ended", "_is_unheard", "running")

    def __init__(self) -> None:
        self.running = 0  # workers that have said that they run it
        self._ended = 0  # workers that have said that their handler has ended
        self._is_unheard = False  # no worker listens

    def take(self, message: Incoming) -> None:
        if message.data == _RUNNING:
            self.running += 1
        elif message.data == _ENDED:
            self._ended += 1
        elif status_of(message) is not None:  # 503: nobody listens
            self._is_unheard = True

    def are_all(self) -> bool:
        """Whether no more answers are to be waited for.

        Not at the first "ended": before this task runs, another worker may say "running".
        """
        return self._have_ended() or self._is_unheard

    def verdict(self) -> bool | None:
        """As `Outbox.withdraw` returns it."""
        if self._have_ended():
            return True
        return False if self.running else None

    def _have_ended(self) -> bool:
        return self._ended >= max(1, self.running)


class Cancellation:
    """Takes one task out of the queue and out of its worker's hands."""

    def __init__(
        self,
        jetstream: JetStream,
        delivered: Delivered,
        task_id: str,
        *,
        never_delayed: bool,
    ) -> None:
        self._requests = jetstream.requests
        self._delivered = delivered
        self._never_delayed = never_delayed
        self._connection = jetstream.connection
        self._streams = jetstream.streams
        self._task_id = task_id
        self._inbox = ""
        self._push = ""  # the subject on which the workers are told
        self._answers = Answers()
        self._answered = trio.Event()  # set by the next answer
        self._was_not_due = False
        self._refusal: Refusal | None = None

    async def withdraw(self, capability: str | None, grace: float) -> bool | None:
        """As `Outbox.withdraw`."""
        await self._connection.wait_up()
        self._inbox = self._requests.open_inbox(self._on_answer)
        try:
            with self._connection.listening(on_refused=self._on_refused):
                never_ran = await self._streams.persist(
                    f"cancel task {self._task_id}", partial(self._attempt, capability)
                )
                if never_ran and not self._answers.running:
                    return True
                with trio.move_on_after(grace):
                    with trio.move_on_after(ANSWER_SECONDS) as silence:
                        await self._wait_answered()
                    if silence.cancelled_caught and self._answers.running:
                        await self._wait_answered()
                return self._answers.verdict()
        finally:
            self._requests.close_inbox(self._inbox)

    def _on_answer(self, message: Incoming) -> None:
        self._answers.take(message)
        self._answered.set()
        self._answered = trio.Event()

    async def _wait_answered(self) -> None:
        while not self._answers.are_all():
            await self._answered.wait()

    def _on_refused(self, refusal: Refusal) -> None:
        if refusal.action == "publish" and refusal.subject == self._push:
            self._refusal = refusal

    async def _attempt(self, capability: str | None) -> bool:
        """Take the task out of the queue; return whether it was never delivered."""
        if capability is None:
            capability = await find_task(self._requests, self._task_id)
            if capability is None:
                return False
        stream = await self._streams.tasks(capability)
        subject = f"work.{capability}.{self._task_id}"
        # A task that is not due yet enters the queue when it is; so that place is emptied first.
        if not self._never_delayed:
            later = f"{subject}.later"
            if await self._remove(stream, later, await last_message(self._requests, stream, later)):
                self._was_not_due = True
        stored = await last_message(self._requests, stream, subject)
        self._push = f"cancel.{capability}.{self._task_id}"
        self._connection.publish(self._push, b"", self._inbox)
        progress = await self._delivered.find(stream, capability)
        if self._refusal is not None:  # a refusal comes before the answer
            raise refused_error(self._connection, self._refusal)
        others = await self._remove(stream, subject, stored)
        if stored is None:
            return self._was_not_due
        return progress is not None and all(map(progress.is_short_of, (stored, *others)))

    async def _remove(
        self, stream: str, subject: str, message: StoredMessage | None
    ) -> list[StoredMessage]:
        """Take out a message, and all others of its subject; return those that were there."""
        removed = []
        while message is not None:
            if await delete_message(self._requests, stream, message.seq, f"task {self._task_id}"):
                removed.append(message)
            message = await last_message(self._requests, stream, subject)
        return removed


# The server is asked once how far a durable has come, for all who want to know. The answer is good
# for everybody who had asked before the request was sent.
#
# A durable knows what it has delivered itself. One that was deleted and made again knows nothing of
# the deliveries of the one before, whose tasks may still run. So a durable tells only of tasks that
# are younger than itself, and a missing one tells of none.


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a durable has come."""

    created: str
    """When it was made, by the server's clock; as `StoredMessage.time`."""
    sequence: int
    """Of the last task that it has delivered."""

    def is_short_of(self, message: StoredMessage) -> bool:
        """Whether ``message`` was never delivered, for sure."""
        return self.created < message.time and self.sequence < message.seq


class Delivered:
    """Looks up what the durables of tasks have delivered, for one role."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._look_ups: dict[str, _ProgressLookUp] = {}

    async def find(self, stream: str, capability: str) -> Progress | None:
        """How far the durable had come, at some time from now on; None if there is none.

        Raises:
          What a request raises, also one that another caller has made: what this caller has
            published before may be lost with it.
        """
        name = f"{stream}.work-{capability}"
        look_up = self._look_ups.get(name)
        if look_up is None:
            look_up = self._look_ups[name] = _ProgressLookUp(self._requests, stream, name)
        return await look_up.find()


class _ProgressLookUp:
    def __init__(self, requests: Requests, stream: str, name: str) -> None:
        self._requests = requests
        self._stream = stream
        self._name = name
        self._asked = 0  # by so many callers, ever
        self._answered = 0  # to so many of them
        self._failures = 0
        self._progress: Progress | None = None
        self._round: trio.Event | None = None  # set when the answer is here

    async def find(self) -> Progress | None:
        self._asked += 1
        mine, failures = self._asked, self._failures
        while self._answered < mine:
            if self._failures > failures:
                raise NoAnswer("the connection was lost, or the server is overloaded")
            if self._round is None:
                await self._ask()
            else:
                await self._round.wait()
        return self._progress

    async def _ask(self) -> None:
        self._round = trio.Event()
        asked = self._asked
        try:
            self._progress = await self._look_up()
            self._answered = asked
        except (NoAnswer, NotConnected):
            self._failures += 1
            raise
        finally:
            self._round.set()
            self._round = None

    async def _look_up(self) -> Progress | None:
        try:
            info = await call(self._requests, f"CONSUMER.INFO.{self._name}")
        except APIError as exc:
            if exc.err_code == NO_CONSUMER:
                return None
            raise gone(exc, self._stream) from exc
        return Progress(info["created"].removesuffix("Z"), info["delivered"]["stream_seq"])
