# One capability at a worker: what it holds of it, and the leases.
#
# Leases. A delivery is ours for the durable's ack_wait. One task a capability renews all that are
# in hand, every third of that time. It outlives the handlers: during a shutdown they may run on,
# and a lease that lapses then starts the same task in a second worker. One that could not be
# renewed for ack_wait is another worker's by now, so its handler is cancelled, and the task
# neither ended nor given back. Except where the handler itself held up the renewal by keeping the
# Trio thread: it would do the same at the next worker, so it is left to finish.
#
# A task that is in hand may be delivered again: the lease lapsed while the Trio thread was held up,
# or the durable was made anew. It is not run a second time here; the job has the newer lease.
#
# A delivery may have waited in the socket while the thread was held up, and be another's by now. So
# what comes in while a round of renewal is overdue, or soon after, is marked: its result is looked
# for first.
#
# Invariant: a job is in `jobs` from its arrival until it is settled; no longer, no less.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from ._job import Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._broker import Delivery, Intake
    from ._lane import Lanes

# Results that may wait to be stored, above the number of handlers, before no more is asked for.
_UNSETTLED: Final = 100


class Service:
    """One capability that a worker handles."""

    def __init__(self) -> None:
        self.intake: Intake  # these two are set before the first delivery
        self.lanes: Lanes
        self.jobs: dict[str, Job] = {}  # by task
        self.running = 0  # handlers that have not ended
        self._owed = 0  # places that are free, and not asked for yet
        # Of the leases of deliveries that can't have waited anywhere for long.
        self._fresh_from = 0.0
        self._fresh_until = math.inf

    @property
    def ack_wait(self) -> float:
        return self.intake.ack_wait

    def receive(self, delivery: Delivery) -> None:
        """Run a task that has arrived."""
        held = self.jobs.get(delivery.task_id)
        if held is not None:
            # Another one of that ID, or one whose handler has yet to clean up, is left to come
            # again.
            if delivery.data == held.delivery.data and not held.lost:
                held.delivery = delivery
            self.intake.ask(1)
            return
        if not self._fresh_from <= delivery.lease_until <= self._fresh_until:
            delivery.again = True
        self.jobs[delivery.task_id] = job = Job(delivery)
        self.running += 1
        self.lanes.start(job)

    def let_go(self, job: Job) -> None:
        """The job is settled."""
        del self.jobs[job.delivery.task_id]
        if self._owed:
            self._owed -= 1
            self.intake.ask(1)

    def free_place(self) -> None:
        """A handler has ended: ask for another task, unless too many results wait to be stored."""
        if len(self.jobs) - self.running > self.lanes.limit + _UNSETTLED:
            self._owed += 1
        else:
            self.intake.ask(1)

    async def keep_leases(self, on_round: Callable[[], None]) -> None:
        """Renew what is held, and cancel what could not be renewed, for ever."""
        next_round = self._plan_round()
        while True:
            held = [job.delivery.lease_until for job in self.jobs.values() if not job.lost]
            await trio.sleep_until(min([next_round, *held]))
            now = trio.current_time()
            for job in self.jobs.values():
                if job.lost:
                    continue
                if job.blocked:
                    job.blocked = False
                    job.delivery.lease_until = now + self.intake.ack_wait
                    job.delivery.renew()
                elif job.delivery.lease_until <= now:
                    job.lose_lease()
                elif now >= next_round:
                    job.delivery.renew()
            if now >= next_round:
                if now + self.ack_wait > self._fresh_until:
                    self._fresh_from = now + 4 / 3 * self.ack_wait
                next_round = self._plan_round()
                on_round()

    def _plan_round(self) -> float:
        now, ack_wait = trio.current_time(), self.ack_wait
        self._fresh_until = now + 2 / 3 * ack_wait + ack_wait  # another third overdue
        return now + ack_wait / 3
