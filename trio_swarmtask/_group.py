# A nursery whose tasks run elsewhere.
#
# It is a Trio nursery with one task of its own, the keeper, which waits until every child has
# ended. A child costs no Trio task: its future tells the group. So what a nursery does with its
# block, with cancellations, and with several failures at once, is done by Trio's own. A failure of
# a child is raised in a task of the nursery, as if the child had run there. Once the nursery's
# scope is cancelled, whatever by, the keeper cancels the children that are left, in the queue and
# at their workers, and stays until they are confirmed to run no more, `grace` seconds at most once
# they were told.
#
# Deadlines travel: each child has that of the scopes round the group, and its worker cuts it off
# then. That is no failure of the child's, for the same deadline is about to cancel the group, or
# the call that started the child: this is waited for.
#
# A start that is cancelled half way leaves open whether the task is stored. It is stored once more
# then (the broker knows it by its ID) and cancelled after that: in the other order its worker might
# start it after all.
#
# One ID may be started and run any number of times at once: that is one child. So it is let go of
# when the last of its starts was refused, and what came of it is counted once: each child is in one
# of the counts of `statistics`, from its start on.

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, final

import trio

from ._cancelled import SAME_TIME, was_cut_off
from ._chain import Chain
from ._envelope import Status
from ._errors import ClosedError, SwarmTaskError, TaskTimeoutError
from ._statistics import GroupStatistics
from ._util import NoPublicConstructor

if TYPE_CHECKING:
    from datetime import datetime

    from ._broker import NewTask
    from ._dispatcher import Dispatcher
    from ._future import Future
    from ._lease import Lease
    from ._starter import Start
    from ._wire import Message, Result

OnFailure = Literal["cancel", "collect"]

# Seconds that telling the broker and the workers of a cancellation may take, beside the clean-up: a
# handler that was not told would run on.
_TELLING: Final = 5.0

logger: Final = logging.getLogger("trio_swarmtask.group")


@final
class TaskGroup(metaclass=NoPublicConstructor):
    """Tasks that end together. Made by `Dispatcher.open_group`.

    Safe to use from any number of tasks of one Trio run, until the block is left.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        nursery: trio.Nursery,
        task_id: str,
        parent: Message | None,
        on_failure: OnFailure,
        grace: float,
        lease: Lease | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._nursery = nursery
        self._id = task_id
        self._chain = Chain.begin(task_id) if parent is None else Chain.below(parent)
        self._cancels_on_failure = on_failure == "cancel"
        self._grace = grace
        self._time_to_stop = _TELLING + grace
        self._lease = lease
        self._deadline = trio.current_effective_deadline()
        self._children: dict[Future, float] = {}  # that have not ended, and their deadlines
        # By the broker, so it may not be stored: what its starts, all that are under way, store.
        self._unconfirmed: dict[Future, tuple[NewTask, ...]] = {}
        self._runs: dict[Future, int] = {}  # how many calls of `run` wait for it
        self._cut_off: set[Future] = set()  # by a deadline here; so they count as cancelled
        self._stopping: dict[Future, trio.Event] = {}  # set when that is over
        self._left = trio.Event()
        self._all_ended = trio.Event()
        self._started = self._succeeded = self._failed = self._cancelled = 0
        self._given_up = 0  # as the block was left, without a result

    def __repr__(self) -> str:
        return f"<TaskGroup {self._id!r}, {len(self._children)} outstanding>"

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope of the block. Cancelling it cancels every task of the group."""
        return self._nursery.cancel_scope

    def statistics(self) -> GroupStatistics:
        """Counts at this moment."""
        return GroupStatistics(
            started=self._started,
            outstanding=len(self._children) + self._given_up,
            succeeded=self._succeeded,
            failed=self._failed,
            cancelled=self._cancelled,
        )

    async def start(
        self, capability: str, message: Message, *, not_before: datetime | None = None
    ) -> Future:
        """As `Dispatcher.start`; the task belongs to the group from now on.

        A blank ``parent``, ``root`` and ``correlation_id`` are filled in a copy of the message. If
        cancelled, the task is cancelled.

        Raises:
          ClosedError: if the block was left or has been cancelled, or the dispatcher is closed.
          And what else `Dispatcher.start` raises.
        """
        start = self._begin(capability, message, math.inf, not_before)
        try:
            await self._store(start)
        except BaseException:
            self._dispatcher._futures.release(start.future)
            raise
        return start.future

    async def run(self, capability: str, message: Message) -> Result:
        """As `Dispatcher.run`, for a task of the group: if cancelled, the task is cancelled.

        That is waited for, as for any call in Trio: until its handler has cleaned up, or for the
        group's ``grace``. A result that is not a success ends the group as that of any other task,
        and this call by the cancellation; with ``on_failure="collect"`` it is returned.

        Raises:
          What `start` and `Future.wait` raise.
        """
        start = self._begin(capability, message, trio.current_effective_deadline())
        future = start.future
        self._runs[future] = self._runs.get(future, 0) + 1
        try:
            on_stored = partial(self._unconfirmed.pop, future, None)
            tried = start.own and await self._dispatcher._starter.store_soon(start, on_stored)
            if not future._is_resolved():
                await self._store(start, tried=tried)
                await future.wait()
            self._unconfirmed.pop(future, None)
            result = future._take()
            if result.status is not Status.SUCCESS:
                if was_cut_off(result, start.task.deadline):
                    await trio.sleep_until(start.task.deadline + SAME_TIME)
                self._count_cut_off(future, result)  # the scopes of this call have more time
            await trio.lowlevel.checkpoint_if_cancelled()  # a failure has cancelled the group
            return result
        except trio.Cancelled:
            with trio.move_on_after(self._time_to_stop, shield=True):
                await self._stop(future)
            self._stop_in_the_end(future)
            raise
        finally:
            self._runs[future] -= 1
            if not self._runs[future]:
                del self._runs[future]
                self._cut_off.discard(future)  # what it counts as is decided
            self._dispatcher._futures.release(future)

    def _begin(
        self,
        capability: str,
        message: Message,
        deadline: float,
        not_before: datetime | None = None,
    ) -> Start:
        if self._left.is_set():
            raise ClosedError("this group was left, or cancelled; open another one to start tasks")
        self._dispatcher._check_open()
        deadline = min(deadline, self._deadline, self._nursery.cancel_scope.deadline)
        start = self._dispatcher._starter.prepare(
            capability,
            self._chain.fill(message),
            deadline,
            self._id if self._lease else "",
            not_before=not_before,
        )
        future = start.future
        if future not in self._children:
            self._started += 1
            self._children[future] = deadline
            self._unconfirmed[future] = (start.task,)
            future._watchers += (self._on_end,)
            future._holders += 1  # the group, until `_let_go`
        elif future in self._unconfirmed:
            self._unconfirmed[future] += (start.task,)
        return start

    async def _store(self, start: Start, *, tried: bool = False) -> None:
        future = start.future
        try:
            await self._dispatcher._starter.store(start, tried=tried)
        except trio.Cancelled:
            with trio.move_on_after(self._time_to_stop, shield=True):
                await self._stop(future)
            self._stop_in_the_end(future)
            raise
        except Exception:
            left = [task for task in self._unconfirmed.get(future, ()) if task is not start.task]
            if left:
                self._unconfirmed[future] = tuple(left)
            elif future in self._unconfirmed:
                self._let_go(future)  # it is told here, and not once more at the end of the block
                self._failed += 1
            raise
        self._unconfirmed.pop(future, None)

    def _on_end(self, future: Future) -> None:
        """A child has a result, or can't get one any more."""
        deadline = self._children.get(future)
        if deadline is None:
            return  # it was let go before
        self._let_go(future)
        try:
            result = future._take()
            if result.status is Status.SUCCESS:
                self._succeeded += 1
                return
            if was_cut_off(result, deadline):
                self._cancelled += 1
                self._cut_off.add(future)
                if future not in self._runs:
                    self._nursery.start_soon(self._await_deadline, future, deadline, result)
                return
            result.raise_for_status()
        except SwarmTaskError as exc:
            if future._was_cancelled() and future._stopped is not None:
                self._cancelled += 1
                if future not in self._stopping:  # the user did, who does not wait for its end
                    self._nursery.start_soon(self._wait_stopped, future)
                return
            self._count_failure(exc)

    async def _await_deadline(self, future: Future, deadline: float, result: Result) -> None:
        """A child was cut off by the deadline of a scope here, which is about to pass."""
        await trio.sleep_until(deadline + SAME_TIME)
        self._count_cut_off(future, result)  # that scope was given more time

    def _count_cut_off(self, future: Future, result: Result) -> None:
        """A child that was cut off has failed, for somebody here has more time than it had."""
        if future in self._cut_off:
            self._cut_off.discard(future)
            self._cancelled -= 1
            self._count_failure(TaskTimeoutError(result))

    def _count_failure(self, exc: SwarmTaskError) -> None:
        self._failed += 1
        if self._cancels_on_failure:
            self._nursery.start_soon(_raise, exc)
            self._nursery.cancel_scope.cancel()

    def _let_go(self, future: Future) -> None:
        del self._children[future]
        self._unconfirmed.pop(future, None)
        self._dispatcher._futures.release(future)
        if not self._children:
            self._all_ended.set()

    async def _keep(self) -> None:
        try:
            await self._left.wait()
            while self._children:
                self._all_ended = trio.Event()
                await self._all_ended.wait()
        finally:
            with trio.move_on_after(self._time_to_stop, shield=True):
                told: set[Future] = set()
                while new := self._children.keys() - told:  # begun while others were stopped
                    told |= new
                    async with trio.open_nursery() as nursery:
                        for future in new:
                            nursery.start_soon(self._stop, future)
            self._left.set()  # nobody would cancel a child that is begun from here on
            for future in list(self._children):
                self._let_go(future)  # and no longer waited for
                self._given_up += 1
            if self._lease is not None:
                self._lease.end()

    async def _stop(self, future: Future) -> None:
        """Cancel a child, and wait until its handler has ended."""
        while future in self._stopping:  # by its `run` or `start`, which may give up before
            await self._stopping[future].wait()
        if not future._is_resolved():
            self._stopping[future] = trio.Event()
            try:
                await self._cancel(future)
            finally:
                self._stopping.pop(future).set()

    def _stop_in_the_end(self, future: Future) -> None:
        if future in self._children:  # the broker was away: the block is not left before it is back
            self._nursery.start_soon(self._stop, future)

    async def _wait_stopped(self, future: Future) -> None:
        with trio.move_on_after(self._time_to_stop, shield=True):
            await self._cancel(future)

    async def _cancel(self, future: Future) -> None:
        dispatcher = self._dispatcher
        try:
            if future in self._unconfirmed:
                await dispatcher._outbox.store(self._unconfirmed[future][0], tried=True)
                self._unconfirmed.pop(future, None)
            await dispatcher._futures.cancel(future, self._grace)
        except SwarmTaskError as exc:
            logger.warning("task %s of a group could not be cancelled: %s", future.id, exc)
            if future in self._unconfirmed:
                self._let_go(future)  # nor is it stored
                self._cancelled += 1


async def _raise(exc: SwarmTaskError) -> None:  # noqa: ASYNC124 - a task of the nursery
    raise exc
