# Tasks on their way into the queue, at once or when they are due.
#
# A publish without an answer may have been stored. If it is sent again, the server knows the task
# by its Nats-Msg-Id, but only within the duplicate window, and not if it was killed. So a task that
# may be stored is sent again only after a look for its result, and only if the subject is empty:
# then it is neither waiting nor running. In between the task may have ended; the header RESENT
# makes its worker look for the result too.
#
# An ID that the caller chose may also be that of a task which is not due yet, in any capability.
# The server checks that: it stores the task only if `work.*.<id>.later` is empty. If a schedule of
# that name is there, and no task, the task is stored all the same.

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from .._errors import BrokerError
from .._nats._connection import NotConnected
from .._nats._io import encode_headers, size_of
from .._nats._requests import NoAnswer, NoResponders, check_size, persist
from .._subjects import covers
from ._api import (
    APIError,
    Publish,
    call,
    gone,
    last_message,
    measure_clock,
    publish,
    publish_soon,
    refused_for_its_size,
)
from ._headers import DUE, LEASE, RESENT, SCHEDULE, SECONDS_LEFT, seconds_left
from ._refusals import SCHEDULES_DISABLED, STORED_BEFORE
from ._results import FIRST, FIRST_BYTES, fetch_result
from ._streams import SCHEDULES_SINCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from .._abc import NewTask
    from .._nats._requests import Requests
    from ._streams import JetStream

_AGAIN: Final = FIRST | {RESENT: "1"}
EMPTY_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
"""Beside FIRST: this subject, which may have wildcards, has to be empty."""
HEADER_BYTES: Final = FIRST_BYTES + len(
    f"Nats-Msg-Id: \r\n{SECONDS_LEFT}: 2147483647.000\r\n{LEASE}: \r\n{RESENT}: 1\r\n"
    f"{EMPTY_SUBJECT}: work.*..later\r\n"
)


class _Put(Publish):
    __slots__ = ("_on_end", "_task")

    def __init__(self, task: NewTask, on_end: Callable[[bool | None], None]) -> None:
        self._task = task
        self._on_end = on_end

    def on_end(self, *, stored: bool, duplicate: bool = False, receipt: bytes = b"") -> None:
        self._task.receipt = receipt
        self._on_end(not duplicate if stored else None)


class TaskStore:
    """Stores the tasks of one dispatcher."""

    def __init__(self, jetstream: JetStream) -> None:
        self._connection = jetstream.connection
        self._requests = jetstream.requests
        self._streams = jetstream.streams
        self._known_capabilities: set[str] = set()

    async def put(self, task: NewTask, *, tried: bool) -> bool:
        """As `Outbox.store`."""
        check_size(self._connection, task.data, headers_size(task))
        if not tried and task.capability in self._known_capabilities:
            # Nearly every task takes this short way, without the calls that the others need.
            try:
                ack = await publish(self._requests, subject_of(task), task.data, headers_of(task))
            except NoAnswer:
                tried = True
            except (NotConnected, NoResponders, APIError):
                pass  # nothing was stored
            else:
                task.receipt = msgspec.json.encode(ack)
                return not ack.duplicate
        return await self._put_with_retries(task, tried=tried)

    def put_soon(self, task: NewTask, on_end: Callable[[bool | None], None]) -> bool:
        """As `Outbox.store_soon`."""
        if task.capability not in self._known_capabilities:
            return False
        if task.is_new and task.deadline == math.inf and not task.group_lease:
            block = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % task.task_id.encode()
        else:
            block = encode_headers(headers_of(task))
        subject = subject_of(task).encode()
        most = headers_size(task)
        return publish_soon(self._requests, _Put(task, on_end), subject, task.data, block, most)

    async def _put_with_retries(self, task: NewTask, *, tried: bool) -> bool:
        maybe_stored, look_for_later = tried, True

        async def attempt() -> bool:
            nonlocal maybe_stored, look_for_later
            if task.capability not in self._known_capabilities:
                await self._streams.tasks(task.capability)
                self._known_capabilities.add(task.capability)
            headers = headers_of(task, look_for_later=look_for_later and not maybe_stored)
            if maybe_stored:
                headers |= _AGAIN
            try:
                ack = await publish(self._requests, subject_of(task), task.data, headers)
            except NoAnswer:
                maybe_stored = True
                raise
            except NoResponders:
                self._streams.forget()
                self._known_capabilities.clear()
                raise
            except APIError as exc:
                if exc.err_code != STORED_BEFORE:
                    raise
                if maybe_stored or not await self._is_schedule(task):
                    return False
                look_for_later = False
                return await attempt()
            if not maybe_stored:  # else there may be two of it
                task.receipt = msgspec.json.encode(ack)
            return not ack.duplicate

        async def already() -> bool | None:
            # A server that was killed forgets the ID of a task that ended meanwhile: a second
            # publish would run it again.
            results = await self._streams.results()
            found = await fetch_result(self._requests, results, task.task_id)
            return None if found is None else False

        what = f"store task {task.task_id}"
        return await persist_task(self._requests, task, what, attempt, already, tried=tried)

    async def _is_schedule(self, task: NewTask) -> bool:
        """Whether what has the task's ID, and is not due, is a schedule and no task."""
        stream = await self._streams.tasks(task.capability)
        try:
            found = await last_message(self._requests, stream, later_of(task))
        except BrokerError:
            return False  # this user may not look: it counts as a task
        return found is not None and SCHEDULE in found.headers  # else it has just become due


async def persist_task(
    requests: Requests,
    task: NewTask,
    what: str,
    attempt: Callable[[], Awaitable[bool]],
    already: Callable[[], Awaitable[bool | None]],
    *,
    tried: bool,
) -> bool:
    """As `persist`, until the role is closed.

    Raises:
      InvalidMessageError: if the task is larger than the stream takes.
    """
    with refused_for_its_size(len(task.data), repr(task.capability)):
        return await requests.lifetime.run(
            partial(persist, requests.connection, what, attempt, already, tried=tried)
        )


def subject_of(task: NewTask) -> str:
    return f"work.{task.capability}.{task.task_id}"


def later_of(task: NewTask) -> str:
    """The subjects of tasks that have its ID and are not due."""
    return f"work.*.{task.task_id}.later"


def headers_size(task: NewTask) -> int:
    """The bytes of a task's headers, at most."""
    return HEADER_BYTES + 2 * len(task.task_id) + len(task.group_lease)


def headers_of(task: NewTask, *, look_for_later: bool = True) -> dict[str, str]:
    """A task's headers: the server knows it again by them, and its worker reads them."""
    headers = {"Nats-Msg-Id": task.task_id}
    if look_for_later and not task.is_new:
        headers |= FIRST
        headers[EMPTY_SUBJECT] = later_of(task)
    if task.deadline < math.inf:
        headers[SECONDS_LEFT] = seconds_left(task.deadline)
    if task.group_lease:
        headers[LEASE] = task.group_lease
    return headers


# A task that is not due yet is a message schedule on `work.<capability>.<id>.later`, where no
# durable takes it. At its time the server stores it on `work.<capability>.<id>` and removes the
# schedule, both at once. Its Nats-Msg-Id does not survive that. So before a task is stored again
# after an outage, it is looked for in all its places, in the order in which it passes them: not
# due, in the queue, done.
#
# An ID is one task in all capabilities: it is stored only where `work.*.<id>.later` is empty.


class LaterStore:
    """Stores the tasks of one dispatcher that are not due."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream
        self._requests = jetstream.requests
        self._streams = jetstream.streams
        self._known: dict[str, str] = {}  # streams that keep schedules, by capability

    async def put(self, task: NewTask, not_before: datetime, *, tried: bool) -> bool:
        """As `Outbox.store`."""
        maybe_stored = tried

        async def attempt() -> bool:
            nonlocal maybe_stored
            try:
                return await self._attempt(task, not_before, again=maybe_stored)
            except NoAnswer:
                maybe_stored = True
                raise

        what = f"keep task {task.task_id} until it is due"
        find = partial(self._find, task)
        return await persist_task(self._requests, task, what, attempt, find, tried=tried)

    async def _attempt(self, task: NewTask, not_before: datetime, *, again: bool) -> bool:
        stream = self._known.get(task.capability)
        if stream is None:
            stream = await self._look(task.capability)
            self._known[task.capability] = stream
        subject = subject_of(task)
        headers = {
            "Nats-Msg-Id": task.task_id,
            **FIRST,
            EMPTY_SUBJECT: later_of(task),
            "Nats-Schedule": f"@at {not_before.isoformat()}",
            "Nats-Schedule-Target": subject,
            DUE: f"{not_before.timestamp():.6f}",
        }
        if task.deadline < math.inf:
            # A worker counts from when the task is due, by the server's clock.
            delay = not_before.timestamp() - await self._server_time(stream)
            headers[SECONDS_LEFT] = seconds_left(task.deadline - delay)
        if task.group_lease:
            headers[LEASE] = task.group_lease
        if again:  # it may have become due, and have ended, since it was looked for
            headers[RESENT] = "1"
        check_size(self._requests.connection, task.data, size_of(headers))
        try:
            ack = await publish(self._requests, f"{subject}.later", task.data, headers)
        except NoResponders:
            self._forget()
            raise
        except APIError as exc:
            refusal = exc
        else:
            return not ack.duplicate
        if refusal.err_code == SCHEDULES_DISABLED:
            self._forget()
            await self._look(task.capability)  # the stream is another by now: this says why
        if refusal.err_code != STORED_BEFORE:
            raise refusal
        await self._check_no_schedule(stream, task)
        return False

    async def _server_time(self, stream: str) -> float:
        asked_at = trio.current_time()
        try:
            answer = await call(self._requests, f"STREAM.INFO.{stream}")
        except APIError as exc:
            self._forget()
            raise gone(exc, stream) from exc
        return trio.current_time() + measure_clock(answer.get("ts"), asked_at)

    def _forget(self) -> None:
        self._known.clear()
        self._streams.forget()

    async def _look(self, capability: str) -> str:
        return await find_schedule_stream(
            self._jetstream, capability, SCHEDULES_SINCE, "not_before"
        )

    async def _check_no_schedule(self, stream: str, task: NewTask) -> None:
        message = await last_message(self._requests, stream, later_of(task))
        if message is not None and SCHEDULE in message.headers:
            raise BrokerError(
                f"task {task.task_id} of {task.capability} can't be kept until it is due: a "
                "schedule has that name; give the task another ID"
            )

    async def _find(self, task: NewTask) -> bool | None:
        stream = await self._streams.tasks(task.capability)
        subject = subject_of(task)
        try:
            for place in (later_of(task), subject):
                if await last_message(self._requests, stream, place) is not None:
                    return False
        except NoResponders:
            self._forget()
            raise
        results = await self._streams.results()
        found = await fetch_result(self._requests, results, task.task_id)
        return None if found is None else False


async def find_schedule_stream(
    jetstream: JetStream, capability: str, since: tuple[int, int], what: str
) -> str:
    """The stream of a capability's tasks, which also keeps tasks that are not due.

    Raises:
      BrokerError: if the stream or the server can't do that; it says what to do.
    """
    connection, streams = jetstream.connection, jetstream.streams
    url = connection.config.safe_url
    if not streams.server_has(since):
        major, minor = connection.client.version
        raise BrokerError(
            f"{url} runs nats-server {major}.{minor}, and {what} needs {since[0]}.{since[1]} or "
            "newer: upgrade it"
        )
    subject = f"work.{capability}.*.later"
    config = await streams.find(subject)
    if config is None:
        streams.forget()
        name = await streams.tasks(capability)
        config = await streams.find(subject)
        if config is None:
            raise BrokerError(
                f"{what} needs a stream that holds {subject} beside work.{capability}.*: add that "
                f"subject to stream {name}"
            )
    name = str(config["name"])
    if not any(covers(held, f"work.{capability}.*") for held in config.get("subjects") or ()):
        raise BrokerError(
            f"{what} needs one stream that holds both work.{capability}.* and {subject}, and "
            f"{name} holds only {subject}: add that subject to the stream of {capability}"
        )
    if config.get("discard") == "new":
        raise BrokerError(
            f"{what} does not go with stream {name}: it discards new messages where it is full, "
            "and so the server lets it take no schedules. Make it anew with discard old, without "
            "limits, or start tasks when they are due"
        )
    if not config.get("allow_msg_schedules"):
        raise BrokerError(
            f"{what} needs a stream that takes message schedules, and {name} does not: set "
            "allow_msg_schedules in its configuration"
        )
    return name
