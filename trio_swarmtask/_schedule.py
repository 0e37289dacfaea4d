# Tasks for later, and again and again: what a user may ask for, and what the brokers make of it.
#
# A schedule is kept by the broker, with the envelope as it was registered. Each firing is a task
# with an ID of its own, `<name>-<milliseconds since 1970>`, which is put into a copy of the
# envelope. Intervals are whole seconds: nats-server rounds the time it counts from to a second, so
# every 1.5 seconds would be every 2.

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ._check import UNFIT, check_capability, is_capability, read_json, reader
from ._cron import parse_cron
from ._envelope import MessageEnvelope, encode
from ._errors import InvalidMessageError, UnsupportedVersionError
from ._message import Message
from ._util import check_seconds, get_logger, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger: Final = get_logger("trio_swarmtask.schedule")

# A time in nanoseconds must fit 64 bits: the server fires at once what is set for a later time.
_LATEST: Final = datetime(2262, 1, 1, tzinfo=UTC)
_LONGEST: Final = 100 * 365 * 24 * 60 * 60
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# The fields of an envelope that say when and by whom it was registered.
_OF_REGISTRATION: Final = ("id", "created_at", "submitted_at", "submitted_by")
_read_fields: Final = reader(dict[str, msgspec.Raw])
_read_values: Final = reader(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A task that is started again and again, as the broker keeps it.

    Attributes:
      name: What `Dispatcher.schedule` was given. Its tasks are ``<name>-<milliseconds>``.
      capability: The one that each task is started in.
      message: What each task is sent with, except ``id`` and ``submitted_at``.
      cron: Six fields, the second first; UTC. None if it has an interval.
      every: Seconds from one task to the next. None if it has a ``cron``.
    """

    name: str
    capability: str
    message: Message
    cron: str | None = None
    every: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule, as it goes to a broker and comes back."""

    name: str
    capability: str
    data: bytes
    """The envelope of its tasks. Its ID is the name."""
    cron: str = ""
    every: int = 0

    def same_as(self, other: Plan) -> bool:
        """Whether both would do the same, whenever and by whomever they were registered."""
        return (
            (self.name, self.capability, self.cron, self.every)
            == (other.name, other.capability, other.cron, other.every)
        ) and _content(self.data) == _content(other.data)


class Timetable(ABC):
    """The schedules of a broker. Its methods wait through outages, as those of an `Outbox` do."""

    @abstractmethod
    async def put(self, plan: Plan) -> None:
        """Make ``plan`` the one schedule of its name; if that does the same already, leave it.

        Raises:
          InvalidMessageError: if its data is larger than the broker takes.
        """

    @abstractmethod
    async def drop(self, name: str) -> bool:
        """End a schedule; return whether there was one. Tasks that it has started stay."""

    @abstractmethod
    async def plans(self) -> Sequence[Plan]:
        """All plans of the broker."""


def check_not_before(time: object) -> datetime | None:
    """A time to come, in UTC; None if it has passed.

    Raises:
      TypeError, ValueError: if it is no time, has no time zone, or is too far away.
    """
    if not isinstance(time, datetime):
        raise TypeError(
            f"not_before must be a datetime, not {shorten(time)}; for example "
            "datetime.now(UTC) + timedelta(minutes=5)"
        )
    if time.utcoffset() is None:
        raise ValueError(
            f"not_before has no time zone: {shorten(time)}; for example "
            "datetime.now(UTC) + timedelta(minutes=5)"
        )
    if time >= _LATEST:
        raise ValueError(f"not_before must be before the year {_LATEST.year}, not {shorten(time)}")
    return None if time <= datetime.now(UTC) else time.astimezone(UTC)


def make_plan(
    name: object,
    capability: str,
    message: object,
    cron: object,
    every: object,
    fill: Callable[[str, MessageEnvelope], None],
) -> Plan:
    """A plan of what a user asks for; ``fill`` fills the blanks of an envelope for an ID.

    Raises:
      InvalidCapabilityError, InvalidMessageError, TypeError, ValueError.
    """
    checked = check_name(name)
    check_capability(capability)
    if not isinstance(message, Message):
        raise InvalidMessageError(f"{shorten(message)} is not a Message")
    if message.id != "":
        raise InvalidMessageError(
            f"the message of schedule {checked!r} has the ID {shorten(message.id)}: leave it "
            "empty, for each task that is started has an ID of its own"
        )
    if (cron is None) == (every is None):
        raise TypeError(f"give schedule {checked!r} either cron or every, one of them")
    data = encode(message, MessageEnvelope, lambda envelope: fill(checked, envelope))
    if cron is None:
        return Plan(checked, capability, data, every=_check_every(every))
    return Plan(checked, capability, data, cron=_check_cron(cron))


def check_name(name: object) -> str:
    """Return ``name``, or raise ValueError unless it is 1 to 64 of ``A-Z a-z 0-9 _ -``."""
    if not isinstance(name, str) or not is_capability(name):
        raise ValueError(
            f"schedule {shorten(name)} must have a name of 1 to 64 letters, digits, '-' or '_', "
            "for example 'nightly-report'"
        )
    return name


def _check_every(every: object) -> int:
    seconds = every.total_seconds() if isinstance(every, timedelta) else every
    seconds = check_seconds("every", seconds, ", or a timedelta")
    if not 1 <= seconds <= _LONGEST or seconds != int(seconds):
        raise ValueError(
            f"every must be whole seconds, from 1 up to 100 years, not {shorten(every)}: the "
            "server fires on whole seconds"
        )
    return int(seconds)


def _check_cron(cron: object) -> str:
    if not isinstance(cron, str):
        raise TypeError(f"cron must be a string, not {shorten(cron)}")
    if parse_cron(cron).after(datetime.now(UTC)) is None:
        raise ValueError(f"cron {shorten(cron)} names a date that never comes")
    return " ".join(cron.split())


def read_plans(plans: Sequence[Plan]) -> list[Schedule]:
    """The schedules as users see them, by name. A plan that can't be read is logged and skipped."""
    schedules = []
    for plan in sorted(plans, key=lambda plan: plan.name):
        try:
            message = Message.decode(plan.data)
        except (InvalidMessageError, UnsupportedVersionError) as exc:
            logger.warning("passed over schedule %s of %s: %s", plan.name, plan.capability, exc)
            continue
        schedules.append(
            Schedule(
                name=plan.name,
                capability=plan.capability,
                message=msgspec.structs.replace(message, id=""),
                cron=plan.cron or None,
                every=plan.every or None,
            )
        )
    return schedules


def make_firing(plan_name: str, data: bytes, milliseconds: int) -> tuple[str, bytes]:
    """The ID and the envelope of the task that is started at this time since 1970."""
    task_id = f"{plan_name}-{milliseconds}"
    try:
        # All but two fields stay as they are, byte for byte.
        fields = _read_fields(data)
        if read_json(fields.get("id", b"null")) != plan_name:
            return task_id, data  # not an envelope of ours: the worker finds that the IDs differ
        fields["id"] = msgspec.Raw(msgspec.json.encode(task_id))
        time = _EPOCH + timedelta(milliseconds=milliseconds)
        fields["submitted_at"] = msgspec.Raw(msgspec.json.encode(time))
    except UNFIT:
        return task_id, data
    return task_id, msgspec.json.encode(fields)


def milliseconds_of(time: datetime) -> int:
    """Milliseconds from 1970 to ``time``."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def _content(data: bytes) -> bytes:
    try:
        fields = _read_values(data)
        for name in _OF_REGISTRATION:
            fields.pop(name, None)
        return msgspec.json.encode(fields, order="sorted")
    except UNFIT:
        return data
