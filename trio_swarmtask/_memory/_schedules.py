# Schedules of the memory broker.
#
# A server fires whether or not a worker is there, and the queue grows. Here nothing runs while no
# intake is open; so a schedule that has come due meanwhile fires as soon as anybody looks: when an
# intake opens, or before a task is stored, or the schedules are changed or listed. Each firing has
# the ID, the time and the place in the queue that it would have had on a server, so nobody can tell
# the difference.
#
# The time of day is read from the machine when the first schedule is registered, and goes on by
# Trio's clock from there: under a MockClock a day passes at once.

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from .._cron import Cron, parse_cron
from .._schedule import Plan, Timetable, make_firing, milliseconds_of
from .._util import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._sync import Lifetime

T = TypeVar("T")
logger: Final = get_logger("trio_swarmtask.memory")


@dataclass(slots=True)
class _Schedule:
    """A schedule, and when it is due next."""

    plan: Plan
    cron: Cron | None
    time: datetime
    at: float  # the same, on Trio's clock


class MemorySchedules:
    """The schedules of one broker.

    ``fire`` stores a task that was due at a time, or returns False if there is no room.
    """

    def __init__(self, fire: Callable[[str, str, bytes, float], bool]) -> None:
        self._fire = fire
        self._by_name: dict[str, _Schedule] = {}
        self._began: tuple[datetime, float] | None = None  # the first registration, on both clocks
        self._changed = trio.Event()

    def put(self, plan: Plan) -> None:
        self.catch_up()
        known = self._by_name.get(plan.name)
        if known is not None and known.plan.same_as(plan):
            return
        now = trio.current_time()
        if self._began is None:
            self._began = datetime.now(UTC), now
        time = self._began[0] + timedelta(seconds=now - self._began[1])
        cron = parse_cron(plan.cron) if plan.cron else None
        schedule = self._by_name[plan.name] = _Schedule(plan, cron, time, now)
        self._move_on(schedule)
        self._changed.set()
        self._changed = trio.Event()

    def drop(self, name: str) -> bool:
        self.catch_up()
        return self._by_name.pop(name, None) is not None

    def plans(self) -> list[Plan]:
        self.catch_up()
        return [schedule.plan for schedule in self._by_name.values()]

    def catch_up(self) -> None:
        """Fire what is due."""
        while self._by_name:
            first = min(self._by_name.values(), key=lambda schedule: schedule.at)
            if first.at > trio.current_time():
                return
            plan = first.plan
            task_id, data = make_firing(plan.name, plan.data, milliseconds_of(first.time))
            if not self._fire(plan.capability, task_id, data, first.at):
                logger.warning("no room for task %s of schedule %s", task_id, plan.name)
            self._move_on(first)

    def _move_on(self, schedule: _Schedule) -> None:
        assert self._began is not None
        if schedule.cron is not None:
            next_time = schedule.cron.after(schedule.time)
            if next_time is None:
                schedule.at = math.inf  # not within five years from here
                return
            schedule.time = next_time
            schedule.at = self._began[1] + (next_time - self._began[0]).total_seconds()
        else:
            schedule.time += timedelta(seconds=schedule.plan.every)
            schedule.at += schedule.plan.every

    def shift(self, seconds: float) -> None:
        """Move all times by so many seconds: Trio's clock has started again."""
        if self._began is not None:
            self._began = self._began[0], self._began[1] + seconds
        for schedule in self._by_name.values():
            schedule.at += seconds

    async def keep_time(self) -> None:
        """Fire each schedule when it comes due, until cancelled."""
        while True:
            self.catch_up()
            times = [schedule.at for schedule in self._by_name.values()]
            with trio.move_on_at(min(times, default=math.inf)):
                await self._changed.wait()


class MemoryTimetable(Timetable):
    """The schedules, as one outbox sees them."""

    def __init__(
        self, schedules: MemorySchedules, lifetime: Lifetime, check_size: Callable[[bytes], None]
    ) -> None:
        self._schedules = schedules
        self._lifetime = lifetime
        self._check_size = check_size

    async def put(self, plan: Plan) -> None:
        self._check_size(plan.data)
        await self._do(partial(self._schedules.put, plan))

    async def drop(self, name: str) -> bool:
        return await self._do(partial(self._schedules.drop, name))

    async def plans(self) -> Sequence[Plan]:
        return await self._do(self._schedules.plans)

    async def _do(self, act: Callable[[], T]) -> T:
        await self._lifetime.run(trio.lowlevel.checkpoint)
        return act()
