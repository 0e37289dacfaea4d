# Lanes: the Trio tasks that run a capability's handlers, each one handler after another.
#
# A Trio task and a cancel scope for each delivery cost a fifth of a worker's time. So a lane whose
# job is settled waits for the next one, and keeps its scope for as long as nothing cancelled it:
# the deadline is set where there is one, and taken back after. A scope that was cancelled is left,
# and what the job came to is settled outside of it.
#
# If all that is left of a job is to store its result, the lane begins that and is free: the
# broker's answer comes by a callback. Only a result that can't be stored this way has a Trio task
# that waits.
#
# Handlers must not notice: each one gets a copy of its own of the context variables that `handle`
# was called with.

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import outcome
import trio

from .._errors import SwarmTaskError

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from .._abc import Delivery
    from ._handler import Handler
    from ._job import Job
    from ._runner import JobRunner


class Lanes:
    """The lanes of one capability at a worker."""

    def __init__(
        self,
        runner: JobRunner,
        handler: Handler,
        nursery: trio.Nursery,
        context: contextvars.Context,
        limit: int,
        on_handler_end: Callable[[], None],
        on_settled: Callable[[Job], None],
    ) -> None:
        self._runner = runner
        self._handler = handler
        self._nursery = nursery
        self._context = context
        self.limit = limit
        self._on_handler_end = on_handler_end
        self._on_settled = on_settled
        self._idle: list[trio.lowlevel.Task] = []
        self._settling: set[Job] = set()  # jobs that are settled without a lane
        self._all_settled = trio.Event()
        self._closed = False

    def start(self, job: Job) -> None:
        """Run a job, in a lane that is idle or in a new one."""
        self._runner.tally.deliveries += 1
        if self._idle:
            lane = self._idle.pop()
            lane.context = self._context.copy()
            trio.lowlevel.reschedule(lane, outcome.Value(job))
        else:
            self._context.run(self._nursery.start_soon, self._run, job)

    def put_off(self, delivery: Delivery, delay: float, on_end: Callable[[], None]) -> None:
        """Have a delivery come again, after ``delay`` seconds; its task has not failed by that."""
        self._nursery.start_soon(self._put_off, delivery, delay, on_end)

    async def _put_off(self, delivery: Delivery, delay: float, on_end: Callable[[], None]) -> None:
        with suppress(SwarmTaskError):  # the broker is going away: the lease lapses by itself
            await delivery.give_back(delay)
        on_end()

    def close(self) -> None:
        """End the lanes that are idle now, and the others once they are idle."""
        self._closed = True
        for lane in self._idle:
            trio.lowlevel.reschedule(lane, outcome.Value(None))
        self._idle.clear()
        self._nursery.start_soon(self._wait_settled)

    async def _run(self, job: Job | None) -> None:
        try:
            while job is not None:
                scope = trio.CancelScope()
                try:
                    with scope:
                        while True:
                            job.scope = scope
                            try:
                                await self._runner.handle(self._handler, job)
                            finally:
                                job.scope = None
                                self._on_handler_end()
                            if job.was_cancelled(scope):
                                break
                            if job.timeout < math.inf:  # setting it costs, and most have none
                                scope.deadline = math.inf
                            if not self._settle_soon(job):
                                await self._runner.settle(job)
                                self._on_settled(job)
                            job = None  # an idle lane holds no job
                            job = await self._next_job()
                            if job is None:
                                return
                except BaseException as exc:  # noqa: ASYNC103 - a cancellation is raised again
                    # What the scope has left of what a handler raised.
                    if job is None or not self._runner.ended_by(
                        job, exc, timed_out=scope.cancel_called
                    ):
                        raise  # the worker gave up waiting
                assert job is not None
                await self._runner.settle(job)
                self._on_settled(job)
                job = None
                job = await self._next_job()
        finally:
            if job is not None:  # the worker gave up waiting
                await self._runner.give_back(job)  # noqa: ASYNC102 - it has shields of its own
                self._on_settled(job)

    # Settling without a task that waits for it

    def _settle_soon(self, job: Job) -> bool:
        if self._closed or not self._runner.settle_soon(job, self._end):
            return False
        self._settling.add(job)
        return True

    def _end(self, job: Job, stored: bool) -> None:
        if job not in self._settling:
            return  # given up
        self._settling.discard(job)
        if stored:
            self._runner.stored(job)
            self._on_settled(job)
        else:
            self._nursery.start_soon(self._settle, job)
        if not self._settling:
            self._all_settled.set()

    async def _settle(self, job: Job) -> None:
        try:
            await self._runner.settle(job)
        finally:
            await self._runner.give_back(job)  # noqa: ASYNC102 - it has shields of its own
            self._on_settled(job)

    async def _wait_settled(self) -> None:
        try:
            while self._settling:
                self._all_settled = trio.Event()
                await self._all_settled.wait()
        finally:
            given_up = list(self._settling)
            self._settling.clear()
            # All at once: one whose note is slow holds up no other.
            async with trio.open_nursery() as nursery:  # noqa: ASYNC102 - as above
                for job in given_up:
                    nursery.start_soon(self._give_up, job)

    async def _give_up(self, job: Job) -> None:
        await self._runner.give_back(job)
        self._on_settled(job)

    async def _next_job(self) -> Job | None:
        if self._closed or len(self._idle) >= self.limit:
            return None
        lane = trio.lowlevel.current_task()
        lane.context = self._context  # the last job's own would keep its objects alive
        self._idle.append(lane)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(lane)
            return trio.lowlevel.Abort.SUCCEEDED

        job: Job | None = await trio.lowlevel.wait_task_rescheduled(abort)
        return job
