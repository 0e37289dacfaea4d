# A nursery whose tasks run elsewhere.
#
# It is a Trio nursery with one task of its own, the keeper, which waits until every child has
# ended. A child costs no Trio task: its future tells the group. So what a nursery does with its
# block, with cancellations, and with several failures at once, is done by Trio's own. A failure of
# a child is raised in a task of the nursery, as if the child had run there. Once the nursery's
# scope is cancelled, by whatever, the keeper cancels the children that are left, in the queue and
# at their workers, and stays until it is confirmed that none of them runs any more, `grace` seconds
# at most once they were told.
#
# Deadlines travel: each child has the deadline of the scopes round the group, and its worker cuts
# it off then. This does not count as a failure of the child, because the same deadline is about to
# cancel the group, or the call that started the child: the group waits for this cancellation.
#
# After a start that is cancelled half way nobody knows whether the task is stored. So the group
# stores it once more (the broker knows it by its ID) and cancels it after that: in the other order
# its worker might start it after all.
#
# A child may be cancelled by others: by its future, by another group, by another dispatcher. The
# group waits for its handler's end all the same, and asks its worker for it.
#
# A call of `start` or `run` may be made, and cancelled, by a task outside the block. So a child is
# let go of only when it is over: it has a result, nobody here is cancelling it any more, whoever
# began that, and it is decided what it counts as.
#
# If the dispatcher is closed while there are children, they are cancelled first, and the block
# raises what a future without a result raises: at once, or at the end if the group collects. If the
# server is lost for good, nobody can be told, and the block raises that error.
#
# One ID may be started and run any number of times at once: that is one child. So the group lets go
# of it when the last of its starts was refused, and counts its end once: each child is in one of
# the counts of `statistics`, from its start on.

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, TypeVar, final

import trio

from .._envelope import Status
from .._errors import BrokerError, ClosedError, SwarmTaskError
from .._interrupts import block
from .._message import Result, TaskTimeoutError
from .._statistics import GroupStatistics
from .._util import NoPublicConstructor, get_logger
from ._core import Chain
from ._future import is_failed, is_resolved, mark_cancelled, take, unwatch, was_cancelled, watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from .._abc import NewTask, Outbox
    from .._message import Message
    from ._core import Core, Start, Starter
    from ._future import Future

logger: Final = get_logger("trio_swarmtask.group")

T = TypeVar("T")

# Seconds after a deadline until every scope with the same deadline is cancelled for sure.
SAME_TIME: Final = 0.1
# Seconds before a deadline from which on a worker, by its clock, may take it to have passed.
_ALMOST: Final = 5.0


def was_cut_off(result: Result, deadline: float) -> bool:
    """Whether it timed out by ``deadline``, not by that of somebody else who started the task."""
    return result.past_deadline and deadline - trio.current_time() < _ALMOST


# A group holds a lease for its tasks, if they are to end with the program that has started them.


class GroupLease:
    """Renewed for as long as `keep` runs."""

    def __init__(self, outbox: Outbox, name: str) -> None:
        self._outbox = outbox
        self._name = name
        self._seconds = 0.0
        self._scope = trio.CancelScope()

    async def begin(self) -> None:
        """Take the lease."""
        self._seconds = await self._outbox.renew_group_lease(self._name)

    async def keep(self) -> None:
        """Renew it, until `end`."""
        with self._scope:
            while True:
                await trio.sleep(self._seconds / 3)
                try:
                    self._seconds = await self._outbox.renew_group_lease(self._name)
                except BrokerError as exc:
                    logger.warning("the lease of a group can't be renewed: %s", exc)

    def end(self) -> None:
        """Stop renewing it. It lapses by itself."""
        self._scope.cancel()


OnFailure = Literal["cancel", "collect"]

# Seconds that telling the broker and the workers of a cancellation may take, apart from the
# clean-up: a handler that was not told would run on.
_TELLING: Final = 5.0


class Child:
    """One task of a group: of one ID, however often it was started."""

    __slots__ = (
        "_watchers",
        "count",
        "cut_off",
        "deadline",
        "future",
        "runs",
        "stopping",
        "unconfirmed",
    )

    def __init__(self, start: Start) -> None:
        self.future: Future = start.future
        self.deadline: float = start.task.deadline
        self.count: str = "outstanding"  # the one of the group's counts that it is in
        # What its starts under way store, until the broker has confirmed one: it may not be stored.
        self.unconfirmed: tuple[NewTask, ...] = (start.task,)
        self.runs: int = 0  # how many calls of `run` wait for it
        # By a deadline here: the child counts as cancelled until what it counts as is decided.
        self.cut_off: bool = False
        self.stopping: trio.Event | None = None  # while it is cancelled; set when that is over
        self._watchers: list[Callable[[Future], None]] = []

    def confirm(self) -> None:
        """The task is stored for sure, or that makes no difference any more."""
        self.unconfirmed = ()

    def watch(self, watcher: Callable[[Future], None]) -> None:
        """Call ``watcher`` when the task has a result or can't get one, unless let go before."""
        self._watchers.append(watcher)
        watch(self.future, watcher)

    def unwatch(self) -> None:
        """Call no watcher any more."""
        for watcher in self._watchers:
            unwatch(self.future, watcher)

    def is_over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return is_resolved(self.future) and self.stopping is None and not self.cut_off


class GroupTasks:
    """The tasks of a group, and what its block is to hear of them."""

    def __init__(
        self,
        core: Core,
        starter: Starter,
        nursery: trio.Nursery,
        group_id: str,
        parent: Message | None,
        on_failure: OnFailure,
        grace: float,
        lease: GroupLease | None,
    ) -> None:
        self.core = core
        self.starter = starter
        self.nursery = nursery
        self.group_id = group_id
        self._chain = Chain.begin(group_id) if parent is None else Chain.below(parent)
        self._cancels_on_failure = on_failure == "cancel"
        self._grace = grace
        self.time_to_stop: float = _TELLING + grace
        self._lease = lease
        self._deadline = trio.current_effective_deadline()
        self.all: dict[Future, Child] = {}  # children that are not over
        self.counts: dict[str, int] = {
            "outstanding": 0,
            "succeeded": 0,
            "failed": 0,
            "cancelled": 0,
        }
        self._is_stopping = False  # the keeper is cancelling all children
        self._ended_by: SwarmTaskError | None = None  # once the dispatcher was closed, or lost
        self.left: trio.Event = trio.Event()
        self._all_ended = trio.Event()

    def begin(
        self,
        capability: str,
        message: Message,
        deadline: float,
        not_before: datetime | None = None,
    ) -> tuple[Start, Child]:
        if self.left.is_set():
            raise ClosedError("this group was left, or cancelled; open another one to start tasks")
        self.core.check_open()
        deadline = min(deadline, self._deadline, self.nursery.cancel_scope.deadline)
        start = self.starter.prepare(
            capability,
            self._chain.fill(message),
            deadline,
            self.group_id if self._lease else "",
            not_before=not_before,
        )
        future = start.future
        child = self.all.get(future)
        if child is None:
            child = self.all[future] = Child(start)
            self.counts[child.count] += 1
            child.watch(self._on_end)
            self.core.futures.share(future)  # the group's, until `_let_go`
        elif child.unconfirmed:
            child.unconfirmed += (start.task,)
        return start, child

    async def store(self, start: Start, child: Child, *, tried: bool = False) -> None:
        try:
            await self.starter.store(start, tried=tried)
        except (trio.Cancelled, KeyboardInterrupt):
            await self.stop_for_caller(child)  # noqa: ASYNC102 - it has a shield
            raise
        except Exception:
            if child.unconfirmed:
                child.unconfirmed = tuple(one for one in child.unconfirmed if one is not start.task)
                if not child.unconfirmed:
                    self._count(child, "failed")
                    # The error is raised here, and not once more at the end of the block.
                    self._let_go(child)
            raise
        child.confirm()

    def _on_end(self, future: Future) -> None:
        """A child has a result, or can't get one any more."""
        child = self.all[future]
        child.confirm()
        try:
            result = take(future)
            if result.status is Status.SUCCESS:
                self._count(child, "succeeded")
            elif was_cut_off(result, child.deadline):
                self._count(child, "cancelled")
                child.cut_off = True
                if not child.runs:
                    self.nursery.start_soon(self._await_deadline, child, result)
            else:
                result.raise_for_status()
        except SwarmTaskError as exc:
            if is_failed(future):
                self._count(child, "failed")
                self._end_by(exc)
                return
            if not was_cancelled(future):
                self._count_failure(child, exc)
                return
            if mark_cancelled(future):
                self._count(child, "cancelled")
            else:
                self._count_failure(child, exc)
            if child.stopping is None:  # whoever cancelled it does not wait for its end
                child.stopping = trio.Event()
                self.nursery.start_soon(self._wait_stopped, child)
        finally:
            self.let_go_if_over(child)

    async def _await_deadline(self, child: Child, result: Result) -> None:
        """A child was cut off by the deadline of a scope here, which is about to pass."""
        await trio.sleep_until(child.deadline + SAME_TIME)
        self.count_cut_off(child, result)  # that scope was given more time

    def count_cut_off(self, child: Child, result: Result) -> None:
        """Count a child that was cut off as failed: somebody here has more time than it had."""
        if child.cut_off:
            child.cut_off = False
            self._count_failure(child, TaskTimeoutError(result))
            self.let_go_if_over(child)

    def _count_failure(self, child: Child, exc: SwarmTaskError) -> None:
        self._count(child, "failed")
        if self._cancels_on_failure:
            self.nursery.start_soon(_raise, exc)
            self.nursery.cancel_scope.cancel()

    def _count(self, child: Child, count: str) -> None:
        """A child counts as something else from now on."""
        self.counts[child.count] -= 1
        self.counts[count] += 1
        child.count = count

    def let_go_if_over(self, child: Child) -> None:
        if child.is_over() and child.future in self.all:
            self._let_go(child)

    def _let_go(self, child: Child) -> None:
        del self.all[child.future]
        child.confirm()
        if not is_resolved(child.future):
            child.unwatch()
        child.cut_off = False
        self.core.futures.release(child.future)
        if not self.all:
            self._all_ended.set()

    async def keep(self) -> None:
        try:
            await self.left.wait()
            while self.all:
                self._all_ended = trio.Event()
                await self._all_ended.wait()
        finally:
            self._is_stopping = True
            await self._stop_all()  # noqa: ASYNC102 - it has a shield
            self.left.set()  # nobody would cancel a child that is begun from here on
            for child in list(self.all.values()):
                self._let_go(child)  # the group waits for it no longer
            self.core.groups.discard(self)
            if self._lease is not None:
                self._lease.end()
            if self._ended_by is not None and not self._cancels_on_failure:
                self.nursery.start_soon(_raise, self._ended_by)

    async def _stop_all(self) -> None:
        """Cancel the children, and wait until their handlers have ended, if anybody says so."""
        with trio.move_on_after(self.time_to_stop, shield=True):
            told: set[Child] = set()
            while new := set(self.all.values()) - told:  # begun while others were stopped
                told |= new
                async with trio.open_nursery() as nursery:
                    together: dict[Future, Child] = {}
                    for child in new:
                        if (
                            child.unconfirmed
                            or child.stopping is not None
                            or is_resolved(child.future)
                        ):
                            nursery.start_soon(self._stop, child)
                        else:
                            child.stopping = trio.Event()
                            together[child.future] = child
                    if together:
                        nursery.start_soon(self._stop_together, together, nursery)

    async def _stop_together(self, children: dict[Future, Child], nursery: trio.Nursery) -> None:
        """Cancel children that are marked as being stopped; ``nursery`` runs what takes longer."""

        def on_left(future: Future) -> None:
            nursery.start_soon(self._finish_stopping, children.pop(future))

        try:
            await self.core.futures.cancel_many(list(children), self._grace, on_left)
        finally:
            for child in children.values():
                self._end_stopping(child)

    async def close(self, error: SwarmTaskError) -> None:
        """The dispatcher is about to be closed, with ``error``; nothing is begun any more."""
        if self.counts["outstanding"] and not self._is_stopping:
            self._end_by(error)
        await self._stop_all()

    def _end_by(self, error: SwarmTaskError) -> None:
        """Tasks of the group can get no result any more: the block raises ``error``."""
        if self._ended_by is None:
            self._ended_by = error
            if self._cancels_on_failure:
                self.nursery.start_soon(_raise, error)
                self.nursery.cancel_scope.cancel()

    async def _stop(self, child: Child) -> None:
        """Cancel a child, and wait until its handler has ended."""
        while child.stopping is not None:  # by its `run` or `start`, which may give up before
            await child.stopping.wait()
        if not is_resolved(child.future):
            child.stopping = trio.Event()
            await self._finish_stopping(child)

    async def stop_for_caller(self, child: Child) -> None:
        """Its `run` or `start` was cancelled."""
        with trio.move_on_after(self.time_to_stop, shield=True):
            # If the keeper was cancelled too, it is to stop this child with all the others.
            await trio.lowlevel.checkpoint()
            await self._stop(child)
        if child.future in self.all:
            # The broker was away: the block is not left before the broker is back.
            self.nursery.start_soon(self._stop, child)

    async def _wait_stopped(self, child: Child) -> None:
        """Somebody else has cancelled it, and need not wait for its handler's end."""
        with trio.move_on_after(self.time_to_stop, shield=True):
            await self._finish_stopping(child)

    async def _finish_stopping(self, child: Child) -> None:
        try:
            await self._cancel(child)
        finally:
            self._end_stopping(child)

    def _end_stopping(self, child: Child) -> None:
        stopping, child.stopping = child.stopping, None
        assert stopping is not None
        stopping.set()
        self.let_go_if_over(child)

    async def _cancel(self, child: Child) -> None:
        try:
            if child.unconfirmed:
                await self.core.outbox.store(child.unconfirmed[0], tried=True)
                self.core.futures.confirm(child.future)
                child.confirm()
            await self.core.futures.cancel(child.future, self._grace)
        except SwarmTaskError as exc:
            logger.warning("task %s of a group could not be cancelled: %s", child.future.id, exc)
            if child.unconfirmed:
                self._count(child, "cancelled")
                self._let_go(child)  # it is not stored either


@final
class TaskGroup(metaclass=NoPublicConstructor):
    """Tasks that end together. Made by `Dispatcher.open_group`.

    Safe to use from any number of tasks of one Trio run, until the block is left.
    """

    def __init__(self, tasks: GroupTasks) -> None:
        self._tasks = tasks

    def __repr__(self) -> str:
        return f"<TaskGroup {self._tasks.group_id!r}, {len(self._tasks.all)} outstanding>"

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope of the block. Cancelling it cancels every task of the group."""
        return self._tasks.nursery.cancel_scope

    def statistics(self) -> GroupStatistics:
        """Counts at this moment."""
        counts = self._tasks.counts
        return GroupStatistics(started=sum(counts.values()), **counts)

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
        start, child = self._tasks.begin(capability, message, math.inf, not_before)
        try:
            await self._tasks.store(start, child)
        except BaseException:
            self._tasks.core.futures.release(start.future)
            raise
        return start.future

    async def run(self, capability: str, message: Message) -> Result:
        """As `Dispatcher.run`, for a task of the group: if cancelled, the task is cancelled.

        As any call in Trio, this one waits for that: until the handler has cleaned up, or for the
        group's ``grace``. A result that is not a success cancels the group, as that of any other
        task does, and so this call; with ``on_failure="collect"`` it is returned.

        Raises:
          What `start` and `Future.wait` raise.
        """
        start, child = self._tasks.begin(capability, message, trio.current_effective_deadline())
        future = start.future
        child.runs += 1
        try:
            tried = start.own and await self._tasks.starter.store_soon(start, child.confirm)
            if not is_resolved(future):
                await self._tasks.store(start, child, tried=tried)
                await future.wait()
            child.confirm()
            result = take(future)
            if result.status is not Status.SUCCESS:
                if was_cut_off(result, start.task.deadline):
                    await trio.sleep_until(start.task.deadline + SAME_TIME)
                self._tasks.count_cut_off(child, result)  # the scopes of this call have more time
            await trio.lowlevel.checkpoint_if_cancelled()  # a failure has cancelled the group
            return result
        except (trio.Cancelled, KeyboardInterrupt):
            await self._tasks.stop_for_caller(child)  # noqa: ASYNC102 - it has a shield
            raise
        finally:
            child.runs -= 1
            if not child.runs and child.cut_off:
                child.cut_off = False  # what it counts as is decided
                self._tasks.let_go_if_over(child)
            self._tasks.core.futures.release(future)


async def _raise(exc: SwarmTaskError) -> None:  # noqa: ASYNC124 - a task of the nursery
    raise exc


Orphans = Literal["finish", "cancel"]


@block
@asynccontextmanager
async def open_group(
    show: Callable[[GroupTasks], T],
    core: Core,
    starter: Starter,
    group_id: str,
    parent: Message | None,
    on_failure: OnFailure,
    grace: float,
    orphans: Orphans,
) -> AsyncIterator[T]:
    """Run a group, and give its block what ``show`` makes of it."""
    lease = None
    if orphans == "cancel":
        lease = GroupLease(core.outbox, group_id)
        await lease.begin()
    async with trio.open_nursery(strict_exception_groups=True) as nursery:
        tasks = GroupTasks(core, starter, nursery, group_id, parent, on_failure, grace, lease)
        core.groups.add(tasks)  # until its keeper has ended
        nursery.start_soon(tasks.keep)
        if lease is not None:
            nursery.start_soon(lease.keep)
        try:
            yield show(tasks)
        finally:
            tasks.left.set()
