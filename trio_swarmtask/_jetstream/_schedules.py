# Schedules on the server: tasks that it starts again and again.
#
# A schedule is a message on `work.<capability>.<name>.later`, with the header Swarm-Schedule, which
# goes with each task that it starts. A schedule that is published again starts counting again: with
# `@every 3s`, published each second, nothing is ever started. So the stored one is compared first.
#
# If two programs register at once, each replaces only what it has seen, so one of them looks again.
# A schedule that moves to another capability is removed from the old one before it is stored for
# the new one: if both existed for a moment, both might fire, and two tasks would have one ID. So
# neither may exist for as long as one request takes; a program that dies just then has to register
# again, as each program does when it starts. If two programs that disagree about the capability
# register at once, both schedules exist for a moment; each program then looks, keeps the younger
# one, and removes the other.

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from .._check import is_capability
from .._errors import BrokerError
from .._nats._io import size_of
from .._nats._requests import RefusedError, check_size
from .._schedule import Plan, Timetable
from .._util import get_logger
from ._api import APIError, call, delete_message, next_message, publish, refused_for_its_size
from ._headers import SCHEDULE
from ._refusals import BAD_SCHEDULE, STORED_BEFORE
from ._streams import RECURRENT_SINCE
from ._tasks import find_schedule_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._api import StoredMessage
    from ._streams import JetStream

T = TypeVar("T")
logger: Final = get_logger("trio_swarmtask.nats")
_EVERY: Final = re.compile(r"@every ([1-9][0-9]{0,9})s")
_CRON_FIELDS: Final = 6


class NATSTimetable(Timetable):
    """The schedules, as one outbox sees them."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream
        self._requests = jetstream.requests
        self._streams = jetstream.streams

    async def put(self, plan: Plan) -> None:
        try:
            with refused_for_its_size(len(plan.data), repr(plan.capability)):
                await self._persist(f"register schedule {plan.name}", partial(self._put, plan))
        except RefusedError as exc:
            if exc.err_code == BAD_SCHEDULE:
                raise BrokerError(
                    f"the server does not take {_timing(plan)!r} for schedule {plan.name}: {exc}"
                ) from exc
            raise

    async def drop(self, name: str) -> bool:
        found: list[StoredMessage] = []

        async def drop() -> None:
            found.extend(await self._find(name))
            for message in found:
                await self._delete(message)

        await self._persist(f"end schedule {name}", drop)
        return bool(found)

    async def plans(self) -> Sequence[Plan]:
        messages = await self._persist("list schedules", partial(self._find, "*"))
        plans: dict[str, Plan] = {}
        for message in messages:
            plan = _read(message)
            if plan is not None:
                plans[plan.name] = plan
        return list(plans.values())

    async def _put(self, plan: Plan) -> None:
        await find_schedule_stream(self._jetstream, plan.capability, RECURRENT_SINCE, "a schedule")
        subject = f"work.{plan.capability}.{plan.name}.later"
        headers = {
            "Nats-Schedule": _timing(plan),
            "Nats-Schedule-Target": f"work.{plan.capability}.{plan.name}",
            SCHEDULE: plan.name,
        }
        while True:
            found = await self._look(plan.name)
            mine = next((message for message in found if message.subject == subject), None)
            if mine is not None and not _is_schedule(mine):
                raise BrokerError(
                    f"schedule {plan.name} of {plan.capability} can't be registered: a task that "
                    "is not due has that ID; choose another name"
                )
            if mine is not None and [mine] == list(filter(_is_schedule, found)):
                known = _read(mine)
                if known is not None and known.same_as(plan):
                    return
            for other in filter(_is_schedule, found):
                if other.subject != subject:
                    await self._delete(other)
            headers["Nats-Expected-Last-Subject-Sequence"] = str(mine.seq if mine else 0)
            check_size(self._requests.connection, plan.data, size_of(headers))
            try:
                await publish(self._requests, subject, plan.data, headers)
            except APIError as exc:
                if exc.err_code != STORED_BEFORE:
                    raise
            else:
                return await self._keep_youngest(plan.name)

    async def _keep_youngest(self, name: str) -> None:
        found = await self._find(name)
        for message in sorted(found, key=lambda message: (message.time, message.seq))[:-1]:
            await self._delete(message)

    async def _delete(self, message: StoredMessage) -> None:
        what = f"the schedule on {message.subject}"
        await delete_message(self._requests, message.stream, message.seq, what)

    async def _find(self, name: str) -> list[StoredMessage]:
        """The schedules of a name; all for ``*``."""
        return [message for message in await self._look(name) if _is_schedule(message)]

    async def _look(self, name: str) -> list[StoredMessage]:
        """As `_find`, with the tasks that are not due."""
        pattern = f"work.*.{name}.later"
        found: dict[str, StoredMessage] = {}
        answer = await call(self._requests, "STREAM.NAMES", subject=pattern)
        for stream in answer.get("streams") or ():
            message = await next_message(self._requests, stream, pattern, 1)
            while message is not None:
                found[message.subject] = message  # one that is replaced meanwhile comes again
                message = await next_message(self._requests, stream, pattern, message.seq + 1)
        return list(found.values())

    async def _persist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        return await self._requests.lifetime.run(partial(self._streams.persist, what, attempt))


def _timing(plan: Plan) -> str:
    return plan.cron or f"@every {plan.every}s"


def _is_schedule(message: StoredMessage) -> bool:
    return SCHEDULE in message.headers


def _read(message: StoredMessage) -> Plan | None:
    _, capability, name, _ = message.subject.split(".")
    timing = message.headers.get("Nats-Schedule", "")
    if message.headers[SCHEDULE] == name and is_capability(capability) and is_capability(name):
        every = _EVERY.fullmatch(timing)
        if every is not None:
            return Plan(name, capability, message.data, every=int(every[1]))
        if len(timing.split()) == _CRON_FIELDS:
            return Plan(name, capability, message.data, cron=timing)
    logger.warning(
        "passed over the schedule on %s, which is none of ours: %r", message.subject, timing[:100]
    )
    return None
