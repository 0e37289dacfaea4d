# Tasks that are not due yet: kept by the server, and put into the queue when they are.
#
# Such a task is a message schedule on `work.<capability>.<id>.later`, where no durable takes it. At
# its time the server stores it on `work.<capability>.<id>` and removes the schedule, both at once.
# Its Nats-Msg-Id does not survive that. So what is stored again after an outage is looked for on
# its whole way, in the order in which it goes: not due, in the queue, done.
#
# An ID is one task in all capabilities: it is stored only where `work.*.<id>.later` is empty.

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import trio

from .._errors import BrokerError
from ._deadline import DUE, LEASE, RESENT, SECONDS_LEFT, measure_clock, seconds_left
from ._firing import SCHEDULE
from ._jetstream import APIError, NoResponders, call, check_size, publish
from ._refusals import SCHEDULES_DISABLED, STORED_BEFORE
from ._requests import NoAnswer
from ._result_store import FIRST, fetch_result
from ._stored import gone, last_message
from ._streams import SCHEDULES_SINCE, covers
from ._task_store import EMPTY_SUBJECT, later_of, persist_task, subject_of

if TYPE_CHECKING:
    from datetime import datetime

    from .._broker import NewTask
    from ._requests import Requests
    from ._streams import Streams


class LaterStore:
    """Stores the tasks of one dispatcher that are not due."""

    def __init__(self, requests: Requests, streams: Streams) -> None:
        self._requests = requests
        self._streams = streams
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
        if task.lease:
            headers[LEASE] = task.lease
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
            await self._look(task.capability)  # it is another stream by now: this says why
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
            self._requests, self._streams, capability, SCHEDULES_SINCE, "not_before"
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


def size_of(headers: dict[str, str]) -> int:
    """The bytes that these headers have as a block."""
    return len(b"NATS/1.0\r\n\r\n") + sum(
        len(f"{name}: {value}\r\n") for name, value in headers.items()
    )


async def find_schedule_stream(
    requests: Requests, streams: Streams, capability: str, since: tuple[int, int], what: str
) -> str:
    """The stream of a capability's tasks, which keeps what is not due as well.

    Raises:
      BrokerError: if it, or the server, can't; with what to do.
    """
    url = requests.connection.config.safe_url
    if not streams.server_has(since):
        major, minor = requests.connection.client.version
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
