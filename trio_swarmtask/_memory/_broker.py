# The broker in memory: the whole system inside one process, on Trio's clock.
#
# It keeps the promises of the broker on a server: tasks wait until someone takes them, a lease that
# is not renewed lapses, the first result stored wins, results are kept for `result_ttl`. So tests
# run on a MockClock in milliseconds, and a program that needs no server yet needs no other code
# later.
#
# There is no fencing, as there is none on the server: whoever ends a task ends it for everyone.
#
# It may outlive a run of Trio, and be used in another one: see `Runs`.
#
# It owns no nursery. The open intakes do what must happen at a certain time (a lease lapses, a
# delayed task comes due): without an intake nobody could take the task anyway. Where the order
# depends on it, this is done before anything else.

from __future__ import annotations

import math
import weakref
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from .._abc import Broker, Intake, NewTask, Notice, Outbox, ResultListener, Source, Withdrawal
from .._errors import ClosedError
from .._sync import Lifetime
from .._util import open_flat_nursery
from ._bucket import Shelf, open_memory_bucket
from ._queue import MemoryIntake, Queue
from ._schedules import MemorySchedules, MemoryTimetable
from ._store import DeadLetter, Following, Listening, Store, Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from .._abc import Bucket, DeliveryListener


# Several runs of Trio, one after the other. The broker's times are on Trio's clock, which starts at
# an arbitrary time in each run. So the first who opens something in a run moves all times: they go
# on where the last run stopped. The time between two runs does not count, because nobody was there.


class Runs:
    """The runs that use an object; ``shift`` moves the object's times by so many seconds."""

    def __init__(self, shift: Callable[[float], None]) -> None:
        self._shift = shift
        self._token: trio.lowlevel.TrioToken | None = None  # of the last run
        self.ended_at = 0.0  # when the last run ended, on that run's clock

    def enter(self) -> None:
        """Let the current run use the object.

        Raises:
          RuntimeError: if the last run has not ended.
        """
        token = trio.lowlevel.current_trio_token()
        if token is self._token:
            return
        if self._token is not None:
            if not _has_ended(self._token):
                raise RuntimeError(
                    "this MemoryBroker is used by another trio.run that has not ended: only one "
                    "run at a time can use it"
                )
            self._shift(trio.current_time() - self.ended_at)
        self._token = token
        _end_of_this_run().followers.add(self)


def _has_ended(token: trio.lowlevel.TrioToken) -> bool:
    try:
        token.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return True
    return False


class _End(trio.abc.Instrument):
    """Notes when a run ends, for every `Runs` in it."""

    def __init__(self) -> None:
        self.followers: weakref.WeakSet[Runs] = weakref.WeakSet()
        self._clock = trio.lowlevel.current_clock()

    def after_run(self) -> None:
        for runs in self.followers:
            runs.ended_at = self._clock.current_time()


_end: Final[trio.lowlevel.RunVar[_End]] = trio.lowlevel.RunVar("trio_swarmtask.end")


def _end_of_this_run() -> _End:
    try:
        return _end.get()
    except LookupError:
        end = _End()
        _end.set(end)
        trio.lowlevel.add_instrument(end)
        return end


@final
class MemoryBroker(Broker):
    """Tasks and results of one process, kept in memory, on Trio's clock.

    It may be used in several runs of Trio, one after the other: times go on where the last
    run stopped.

    Args:
      ack_wait: Seconds that a delivery is a worker's, unless renewed.
      result_ttl: Seconds that a result is kept.
      max_payload: Bytes that one envelope may have.
      max_tasks: How many tasks may be stored; a further `Dispatcher.start` waits for room.
      max_results: How many results may be stored; a further one waits, and its task with it.
    """

    def __init__(
        self,
        *,
        ack_wait: float = 30.0,
        result_ttl: float = 24 * 60 * 60.0,
        max_payload: int = 1024 * 1024,
        max_tasks: float = math.inf,
        max_results: float = math.inf,
    ) -> None:
        self._store = Store(ack_wait, result_ttl, max_payload, max_tasks, max_results)
        self.dead_letters: list[DeadLetter] = self._store.dead_letters
        """The dead letters so far, oldest first."""
        self._queues: dict[str, Queue] = {}
        self._shelves: dict[str, Shelf] = {}
        self._schedules = MemorySchedules(self._fire)
        self._runs = Runs(self._shift)

    def __repr__(self) -> str:
        return f"<MemoryBroker, {self._store.room.count} tasks, {len(self._store.results)} results>"

    @asynccontextmanager
    async def open_outbox(
        self, key: str, make_listener: Callable[[Outbox], ResultListener]
    ) -> AsyncIterator[Outbox]:
        self._runs.enter()
        outbox = _MemoryOutbox(self, make_listener)
        self._store.listening[key] = outbox.listening
        await trio.lowlevel.checkpoint()
        try:
            yield outbox
        finally:
            outbox.close()
            del self._store.listening[key]

    @asynccontextmanager
    async def open_intake(
        self, capability: str, make_listener: Callable[[Intake], DeliveryListener]
    ) -> AsyncIterator[Intake]:
        self._runs.enter()
        queue = self._queue(capability)
        await trio.lowlevel.checkpoint()
        self._schedules.catch_up()
        async with open_flat_nursery() as nursery:
            intake = MemoryIntake(queue, make_listener)
            nursery.start_soon(queue.keep_time)
            nursery.start_soon(self._schedules.keep_time)
            try:
                yield intake
            finally:
                intake.close()
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def open_bucket(self, name: str, ttl: float) -> AsyncIterator[Bucket]:
        self._runs.enter()
        shelf = self._shelves.setdefault(name, Shelf())
        async with open_memory_bucket(shelf, ttl, self._store.max_payload) as bucket:
            yield bucket

    def _shift(self, seconds: float) -> None:
        self._store.shift(seconds)
        self._schedules.shift(seconds)
        for queue in self._queues.values():
            queue.shift(seconds)
        for shelf in self._shelves.values():
            shelf.shift(seconds)

    def _queue(self, capability: str) -> Queue:
        queue = self._queues.get(capability)
        if queue is None:
            queue = self._queues[capability] = Queue(self._store)
        return queue

    def _add(self, task: Task, due: float = -math.inf) -> None:
        self._store.recent.put(task.task_id, None)
        self._store.room.count += 1
        self._queue(task.capability).add(task, due)

    def _fire(self, capability: str, task_id: str, data: bytes, due: float) -> bool:
        if self._store.is_known(task_id):
            return True  # it was cancelled before anybody looked
        if self._store.room.is_full():
            return False
        self._add(Task(capability, task_id, data), due)
        return True


class _MemoryOutbox(Outbox):
    hears_own_ids = True

    def __init__(
        self, broker: MemoryBroker, make_listener: Callable[[Outbox], ResultListener]
    ) -> None:
        self._broker = broker
        self._store = broker._store
        self._lifetime = Lifetime()
        self.timetable = MemoryTimetable(
            broker._schedules, self._lifetime, broker._store.check_size
        )
        self.listening = Listening(make_listener(self))

    async def store(self, task: NewTask, *, tried: bool = False) -> bool:
        self._store.check_size(task.data)
        stored = Task(task.capability, task.task_id, task.data, task.deadline, task.group_lease)
        due = -math.inf
        if task.not_before is not None:
            # The time of day is read once: from here on Trio's clock counts.
            due = trio.current_time() + (task.not_before - datetime.now(UTC)).total_seconds()
        return await self._lifetime.run(partial(self._store_task, stored, due))

    def store_soon(self, task: NewTask, on_end: Callable[[bool | None], None]) -> bool:
        broker = self._broker
        broker._schedules.catch_up()  # what is due already goes first
        if (
            self._lifetime.is_over
            or len(task.data) > self._store.max_payload
            or self._store.room.is_full()
            or self._store.is_known(task.task_id)
        ):
            return False
        broker._add(Task(task.capability, task.task_id, task.data, task.deadline, task.group_lease))
        on_end(True)
        return True

    async def _store_task(self, task: Task, due: float) -> bool:
        broker = self._broker
        await trio.lowlevel.checkpoint()
        if any(queue.is_later(task.task_id) for queue in broker._queues.values()):
            return False
        while not self._store.is_known(task.task_id):
            broker._schedules.catch_up()  # as in `store_soon`
            if not self._store.room.is_full():
                broker._add(task, due)
                return True
            await self._store.room.freed.wait()
        return False

    def expect(self, task_id: str) -> None:
        self.listening.expected.add(task_id)

    def forget(self, task_id: str) -> None:
        self.listening.expected.discard(task_id)

    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        return Following(self._store.followers, task_id, on_report)

    async def fetch(self, task_id: str) -> bytes | None:
        return await self._lifetime.run(partial(self._fetch, task_id))

    async def _fetch(self, task_id: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._store.results.get(task_id)

    async def store_result(self, task_id: str, result: bytes) -> bytes:
        await self._lifetime.run(partial(self._store.finish, task_id, result))
        stored = self._store.results.get(task_id)
        return result if stored is None else stored  # an earlier result may just have expired

    async def find(self, task_id: str) -> str | None:
        await self._lifetime.run(trio.lowlevel.checkpoint)
        queues = self._broker._queues.items()
        return next((name for name, queue in queues if queue.holds(task_id)), None)

    async def withdraw(
        self, capability: str | None, task_id: str, grace: float, *, never_delayed: bool
    ) -> bool | None:
        return await self._lifetime.run(partial(self._withdraw, capability, task_id, grace))

    async def _withdraw(self, capability: str | None, task_id: str, grace: float) -> bool | None:
        await trio.lowlevel.checkpoint()
        if capability is not None:
            queues = [self._broker._queue(capability)]
        else:
            # All: a worker that runs the task hears of it even if the task has left its queue.
            queues = list(self._broker._queues.values())
        notice = self._tell(queues, task_id)
        with trio.move_on_after(grace):
            await notice.wait_ended()
        return notice.verdict()

    def _tell(self, queues: Sequence[Queue], task_id: str) -> _MemoryNotice:
        # As on a server: if a task may have been handed out, only a worker can say that it has
        # ended.
        notice = _MemoryNotice(task_id)
        notice.never_ran = any(queue.was_never_delivered(task_id) for queue in queues)
        for queue in queues:
            queue.cancel(notice)
        return notice

    async def withdraw_many(self, withdrawals: Sequence[Withdrawal], grace: float) -> None:
        await trio.lowlevel.checkpoint()
        notices: dict[Withdrawal, _MemoryNotice] = {}
        for withdrawal in withdrawals:
            if self._lifetime.is_over or not self._store.finish_soon(
                withdrawal.task_id, withdrawal.result
            ):
                withdrawal.left()
            else:
                withdrawal.stored()
                queue = self._broker._queue(withdrawal.capability)
                notices[withdrawal] = self._tell([queue], withdrawal.task_id)
        with suppress(ClosedError):
            await self._lifetime.run(partial(self._wait_ended, notices.values(), grace))
        for withdrawal, notice in notices.items():
            withdrawal.stopped(notice.verdict())

    async def _wait_ended(self, notices: Iterable[_MemoryNotice], grace: float) -> None:
        with trio.move_on_after(grace):
            for notice in notices:
                await notice.wait_ended()

    async def renew_group_lease(self, name: str) -> float:
        return await self._lifetime.run(partial(self._renew_group_lease, name))

    async def _renew_group_lease(self, name: str) -> float:
        await trio.lowlevel.checkpoint()
        self._store.leases.put(name, None)
        return self._store.lease_seconds

    def close(self) -> None:
        self._lifetime.end(lambda: ClosedError("the dispatcher was closed meanwhile"))


class _MemoryNotice(Notice):
    # The workers that run the task answer at once: all are in this process.
    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.never_ran = False
        self._has_run = False  # a worker has said that it runs the task
        self._running = 0  # workers that run it now
        self._ended = trio.Event()

    def verdict(self) -> bool | None:
        """As `Outbox.withdraw` returns it."""
        if self._has_run:
            return self._running == 0
        return True if self.never_ran else None

    def running(self) -> None:
        self._running += 1
        self._has_run = True

    def ended(self) -> None:
        self._running -= 1
        if self._running == 0:
            self._ended.set()
            self._ended = trio.Event()  # another worker may still say that it runs the task

    async def wait_ended(self) -> None:
        if self._running > 0:
            await self._ended.wait()
