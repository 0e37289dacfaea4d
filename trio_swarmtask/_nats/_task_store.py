# Tasks on their way into the queue.
#
# A publish without an answer may have been stored. Sent again, the server knows the task by its
# Nats-Msg-Id, but for the duplicate window only, and it may have been killed. So what may be stored
# goes out again only after a look for its result, and only where the subject is empty: then it is
# neither waiting nor running. In between a task may have ended; the header RESENT has its worker
# look for the result as well.
#
# An ID of the caller's own may be that of a task which is not due yet, also in another capability.
# The server looks: it stores the one only where `work.*.<id>.later` is empty. What is there may be
# no task, but a schedule of that name, which is no reason not to store it.

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from .._errors import BrokerError, InvalidMessageError
from ._connection import NotConnected
from ._deadline import LEASE, RESENT, SECONDS_LEFT, seconds_left
from ._firing import SCHEDULE
from ._jetstream import (
    APIError,
    NoResponders,
    Publish,
    RefusedError,
    check_size,
    persist,
    publish,
    publish_soon,
)
from ._outgoing import encode_headers
from ._refusals import MESSAGE_TOO_LARGE, STORED_BEFORE
from ._requests import NoAnswer
from ._result_store import FIRST, FIRST_BYTES, fetch_result
from ._stored import last_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._broker import NewTask
    from ._requests import Requests
    from ._streams import Streams

_AGAIN: Final = FIRST | {RESENT: "1"}
EMPTY_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
"""Beside FIRST: it is this subject, which may have wildcards, that has to be empty."""

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

    def __init__(self, requests: Requests, streams: Streams) -> None:
        self._connection = requests.connection
        self._requests = requests
        self._streams = streams
        self._known_capabilities: set[str] = set()

    async def put(self, task: NewTask, *, tried: bool) -> bool:
        """As `Outbox.store`."""
        check_size(self._connection, task.data, headers_size(task))
        if not tried and task.capability in self._known_capabilities:
            # The way of nearly every task, without the frames that are for the rest.
            try:
                ack = await publish(self._requests, subject_of(task), task.data, headers_of(task))
            except NoAnswer:
                tried = True
            except (NotConnected, NoResponders, APIError):
                pass  # nothing was stored
            else:
                task.receipt = msgspec.json.encode(ack)
                return not ack.duplicate
        return await self._put_in_the_end(task, tried=tried)

    def put_soon(self, task: NewTask, on_end: Callable[[bool | None], None]) -> bool:
        """As `Outbox.store_soon`."""
        if task.capability not in self._known_capabilities:
            return False
        if task.is_new and task.deadline == math.inf and not task.lease:
            block = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % task.task_id.encode()
        else:
            block = encode_headers(headers_of(task))
        subject = subject_of(task).encode()
        most = headers_size(task)
        return publish_soon(self._requests, _Put(task, on_end), subject, task.data, block, most)

    async def _put_in_the_end(self, task: NewTask, *, tried: bool) -> bool:
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
            # The ID of a task that ended meanwhile is forgotten if the server was killed: a second
            # publish would then run it again.
            results = await self._streams.results()
            found = await fetch_result(self._requests, results, task.task_id)
            return None if found is None else False

        what = f"store task {task.task_id}"
        return await persist_task(self._requests, task, what, attempt, already, tried=tried)

    async def _is_schedule(self, task: NewTask) -> bool:
        """Whether what has the ID of the task, and is not due, is none, but a schedule."""
        stream = await self._streams.tasks(task.capability)
        try:
            found = await last_message(self._requests, stream, later_of(task))
        except BrokerError:
            return False  # this user may not look: it is a task for all that it may know
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
    try:
        return await requests.lifetime.run(
            partial(persist, requests.connection, what, attempt, already, tried=tried)
        )
    except RefusedError as exc:
        if exc.err_code in MESSAGE_TOO_LARGE:
            raise InvalidMessageError(
                f"an envelope of {len(task.data)} bytes is larger than the stream of "
                f"{task.capability!r} takes: {exc}"
            ) from exc
        raise


def subject_of(task: NewTask) -> str:
    return f"work.{task.capability}.{task.task_id}"


def later_of(task: NewTask) -> str:
    """Where tasks of its ID are that are not due."""
    return f"work.*.{task.task_id}.later"


def headers_size(task: NewTask) -> int:
    """The bytes of them, at most."""
    return HEADER_BYTES + 2 * len(task.task_id) + len(task.lease)


def headers_of(task: NewTask, *, look_for_later: bool = True) -> dict[str, str]:
    """For the server to know it again, and for its worker."""
    headers = {"Nats-Msg-Id": task.task_id}
    if look_for_later and not task.is_new:
        headers |= FIRST
        headers[EMPTY_SUBJECT] = later_of(task)
    if task.deadline < math.inf:
        headers[SECONDS_LEFT] = seconds_left(task.deadline)
    if task.lease:
        headers[LEASE] = task.lease
    return headers
