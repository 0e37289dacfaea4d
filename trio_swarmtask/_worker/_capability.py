# One capability at a worker: its tasks in hand, their leases, their cancellations.
#
# Leases. A delivery is ours for the durable's ack_wait. One Trio task for each capability renews
# all leases in hand, every third of that time. It outlives the handlers: during a shutdown they may
# run on, and a lease that lapses then starts the same task in a second worker. A delivery that
# could not be renewed for ack_wait is another worker's by now, so its handler is cancelled, and the
# task is let be: it is not given back, put back for another attempt, buried, or noted, also if the
# lease lapses while one of these waits for the broker. The exception is a handler that itself held
# up the renewal by keeping the Trio thread: it would do the same at the next worker, so it may
# finish; but its task, too, is ended only by a result. If the broker changes ack_wait, all that is
# in hand is renewed at once; the worker looks at ack_wait in each round, when a task comes after a
# pause, and when a task that is in hand comes again.
#
# A task that is in hand may be delivered again: the lease lapsed while the Trio thread was held up,
# or the durable was made anew. It is not run a second time here; the job has the newer lease. Nor
# is another task of the same ID run, which was sent when the broker had forgotten the first: that
# one is put off, which counts as no failure, until the first one has ended.
#
# Cancellations. The broker tells of each task that is cancelled: its handler's scope is cancelled,
# and the one who asked is told when the task is let go. A cancellation that is not heard (the
# connection was down, the push got lost) is found by looking for results of running tasks: after a
# gap, and in each round of renewal for tasks that have run since the round before. A task that is
# not here yet may be on its way: it is remembered, and its result is looked for before it is
# started; the one who asked is told then. A task is also remembered if it was cancelled and has
# ended here, or had ended with a result that came after the canceller's: others who hold it may ask
# later still. A task with a group lease is cancelled here when that lease has lapsed.
#
# A delivery may have waited in the socket while the thread was held up, and be another worker's by
# now. So a delivery that comes in while a round of renewal is overdue, or soon after, is marked: a
# result of its task is looked for first.
#
# Invariant: a job is in `jobs` from its arrival until it is settled.

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .._abc import DeliveryListener
from .._errors import BrokerError
from .._statistics import Outcome
from .._util import get_logger, open_flat_nursery
from ._job import Cut, Job
from ._lanes import Lanes

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Sequence

    from .._abc import Delivery, Intake, Notice
    from ._handler import Handler
    from ._retry import Retry
    from ._runner import JobRunner

logger: Final = get_logger("trio_swarmtask.worker")

# How long a task that has ended, or was cancelled before it came, is remembered, and how many are.
# Anybody may cancel tasks that never come, so fewer of those are remembered.
_REMEMBERED_SECONDS: Final = 60.0
_REMEMBERED: Final = 200_000
_EARLY: Final = 100_000

# How many notices may wait for one handler to end; anybody may send any number.
_NOTICES: Final = 100

# So many more results than handlers may wait to be stored before no more tasks are asked for.
_UNSETTLED: Final = 100

_ANSWERED_FOR: Final = (Outcome.SUPERSEDED, Outcome.CANCELLED, Outcome.RETRIED)


class Remembered:
    """A task that is not in hand, and of which somebody may ask whether it runs here.

    Either it was in hand and has ended, or rests until its next attempt, so nobody has it; or it
    was cancelled before it came: whoever did that is answered as soon as it comes.
    """

    __slots__ = ("notices", "until")

    def __init__(self, until: float = 0.0, notices: Sequence[Notice] = ()) -> None:
        self.until = until or trio.current_time() + _REMEMBERED_SECONDS
        self.notices = list(notices)  # of those who have cancelled it


class Service(DeliveryListener):
    """One capability that a worker handles."""

    def __init__(
        self,
        intake: Intake,
        runner: JobRunner,
        handler: Handler,
        retry: Retry,
        max_in_flight: int,
        context: contextvars.Context,
        nursery: trio.Nursery,
        stopping: trio.Event,
        on_stopped: Callable[[], None],
    ) -> None:
        self.intake = intake
        self.lanes: Lanes = Lanes(
            runner,
            handler,
            nursery,
            context,
            max_in_flight,
            self._on_handler_end,
            self._on_settled,
        )
        self._tally = runner.tally
        self._retry = retry
        self._stopping = stopping
        self._on_stopped = on_stopped
        self.jobs: dict[str, Job] = {}  # by task
        self.running: int = 0  # how many handlers have not ended
        self.remembered: dict[str, Remembered] = {}  # tasks that are not in hand
        self._look_due = trio.Event()
        self._look_at_all = False
        self._groups_due = trio.Event()
        self._places_not_asked = 0  # places that are free, and not asked for yet
        # Between these ends the lease of a delivery that can't have waited anywhere for long.
        self._fresh_from = 0.0
        self._fresh_until = math.inf
        self._look_from = math.inf  # a lease that ends later: no round has looked for so long
        self._all_due = trio.Event()  # all leases are to be renewed at once

    @property
    def ack_wait(self) -> float:
        return self.intake.ack_wait

    def delivered(self, delivery: Delivery) -> None:
        held = self.jobs.get(delivery.task_id)
        if held is not None:
            if delivery.repeats(held.delivery) and held.cut is not Cut.LOST:
                held.delivery = delivery
                held.lapsed = False
                self._look_due.set()  # for the broker, the lease has lapsed
                self.intake.ask(1)
            else:
                # Another task of that ID, or one whose handler has yet to clean up, is to come
                # again. Not by letting its lease lapse: that would count as a failure each time.
                self.lanes.put_off(delivery, self.ack_wait, partial(self.intake.ask, 1))
            return
        if delivery.lease_until > self._look_from:
            self._look_due.set()
        if not self._fresh_from <= delivery.lease_until <= self._fresh_until:
            delivery.maybe_redelivered = True
        self.jobs[delivery.task_id] = job = Job(delivery, self._retry)
        if self.remembered and (known := self._recall(delivery.task_id)) is not None:
            delivery.maybe_redelivered = True
            for notice in known.notices:
                notice.running()
                job.notices.append(notice)
        self.running += 1
        self.lanes.start(job)

    def _on_settled(self, job: Job) -> None:
        assert job.outcome is not None
        self._tally.end(job.outcome)
        del self.jobs[job.delivery.task_id]
        for notice in job.notices:
            notice.ended()
        if job.outcome in _ANSWERED_FOR:
            self._remember(job.delivery.task_id, Remembered(job.retry_at), _REMEMBERED)
        if self._places_not_asked:
            self._places_not_asked -= 1
            self.intake.ask(1)

    def _on_handler_end(self) -> None:
        self.running -= 1
        if self._stopping.is_set():
            self._on_stopped()
        elif len(self.jobs) - self.running > self.lanes.limit + _UNSETTLED:
            self._places_not_asked += 1  # until some waiting results are stored
        else:
            self.intake.ask(1)

    # Cancellations

    def cancelled(self, notice: Notice) -> None:
        job = self.jobs.get(notice.task_id)
        if job is not None:
            notice.running()
            if len(job.notices) < _NOTICES:
                job.notices.append(notice)
            job.cut_short(Cut.CANCELLED)
            return
        known = self._recall(notice.task_id)
        if known is None:
            self._remember(notice.task_id, Remembered(notices=[notice]), _EARLY)
        elif known.notices:
            if len(known.notices) < _NOTICES:
                known.notices.append(notice)
        else:
            notice.running()  # both: whoever asks counts the workers that have had the task
            notice.ended()

    def _remember(self, task_id: str, known: Remembered, most: int) -> None:
        if len(self.remembered) < most or task_id in self.remembered:
            self.remembered[task_id] = known

    def _recall(self, task_id: str) -> Remembered | None:
        known = self.remembered.get(task_id)
        return known if known is not None and known.until > trio.current_time() else None

    def notices_missed(self) -> None:
        self._look_at_all = True
        self._look_due.set()
        self._groups_due.set()

    async def _find_cancelled(self) -> None:
        logged = ""
        while True:
            await self._look_due.wait()
            self._look_due = trio.Event()
            since = math.inf if self._look_at_all else trio.current_time() - self.ack_wait / 3
            self._look_at_all = False
            await self.intake.look()
            self._look_from = trio.current_time() + 4 / 3 * self.ack_wait
            running = [name for name, job in self.jobs.items() if job.runs_since(since)]
            try:
                found = await self.intake.find_done(running)
            except BrokerError as exc:
                if str(exc) != logged:
                    logged = str(exc)
                    logger.warning("can't look whether running tasks are cancelled: %s", exc)
                continue
            for task_id, result in found.items():
                job = self.jobs.get(task_id)
                if job is not None and job.scope is not None:  # else it may be ours
                    job.stored = result
                    job.cut_short(Cut.CANCELLED)

    async def _find_orphans(self) -> None:
        # Apart from `_find_cancelled`: leases that can't be looked up concern only their tasks.
        logged = ""
        while True:
            await self._groups_due.wait()
            self._groups_due = trio.Event()
            leased = [job for job in self.jobs.values() if job.delivery.group_lease]
            if not leased:
                continue
            try:
                held = await self.intake.find_group_leases(
                    {job.delivery.group_lease for job in leased}
                )
            except BrokerError as exc:
                if str(exc) != logged:
                    logged = str(exc)
                    logger.warning("can't look whether the groups of running tasks live: %s", exc)
                continue
            for job in leased:
                if job.delivery.group_lease not in held:
                    job.cut_short(Cut.CANCELLED)

    # Leases

    def ack_wait_changed(self) -> None:
        self._all_due.set()

    async def stand(self, on_round: Callable[[], None]) -> None:
        """Renew leases and look for cancellations, for ever."""
        self._look_from = trio.current_time() + 4 / 3 * self.ack_wait
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._find_cancelled)
            nursery.start_soon(self._find_orphans)
            await self.keep_leases(on_round)

    async def keep_leases(self, on_round: Callable[[], None]) -> None:
        """Renew what is held, and cancel what could not be renewed, for ever."""
        next_round = self._plan_round()
        while True:
            lapses = [
                job.delivery.lease_until for job in self.jobs.values() if job.cut is not Cut.LOST
            ]
            with trio.move_on_at(min([next_round, *lapses])):
                await self._all_due.wait()
            now = trio.current_time()
            if self._all_due.is_set():
                self._all_due, next_round = trio.Event(), now
            for job in self.jobs.values():
                if job.cut is Cut.LOST:
                    continue
                if job.blocked:
                    job.blocked = False
                    job.lapsed |= job.delivery.is_lost()
                    job.delivery.lease_until = now + self.intake.ack_wait
                    job.delivery.renew()
                elif job.delivery.lease_until <= now:
                    job.cut_short(Cut.LOST)
                elif now >= next_round:
                    job.delivery.lease_until = min(job.delivery.lease_until, now + self.ack_wait)
                    job.delivery.renew()
            if now >= next_round:
                if now + self.ack_wait > self._fresh_until:
                    self._fresh_from = now + 4 / 3 * self.ack_wait
                next_round = self._plan_round()
                self.remembered = {
                    task_id: known
                    for task_id, known in self.remembered.items()
                    if known.until > now
                }
                on_round()
                if self.jobs:
                    self._look_due.set()
                    self._groups_due.set()

    def _plan_round(self) -> float:
        now, ack_wait = trio.current_time(), self.ack_wait
        self._fresh_until = now + 2 / 3 * ack_wait + ack_wait  # another third overdue
        return now + ack_wait / 3
