# The broker in memory: the whole system inside one process, on Trio's clock.
#
# It keeps the promises of the one on a server: tasks wait until someone takes them, a lease that
# is not renewed lapses, the first result stored wins, results are kept for `result_ttl`. So tests
# run on a MockClock in milliseconds, and a program that needs no server yet needs no other code
# later.
#
# There is no fencing, as there is none on the server: whoever ends a task ends it for everyone.
#
# It may outlive a run of Trio, and be used in another one: see `Runs`.
#
# It owns no nursery. What must happen at a time (a lease lapses, a delayed task is due) is done by
# the intakes that are open, for without one nobody could take the task anyway; and where the order
# depends on it, before anything else is.

from __future__ import annotations

import math
import weakref
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from .._abc import Broker, Intake, NewTask, Notice, Outbox, ResultListener, Source, Stop
from .._errors import ClosedError, InvalidMessageError
from .._sync import Expiring, Lifetime
from .._util import open_flat_nursery
from ._bucket import Shelf, open_memory_bucket
from ._queue import MemoryIntake, Queue, Room, Store, Task
from ._schedules import MemorySchedules, MemoryTimetable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from .._abc import Bucket, DeliveryListener


# Several runs of Trio, one after the other. The broker's times are on Trio's clock, which begins
# anywhere in each run. So the first who opens something in a run moves all of them: they go on
# where the run before stopped. What passes between two runs does not count, for nobody was there.


class Runs:
    """The runs that something lives through; ``shift`` moves its times by so many seconds."""

    def __init__(self, shift: Callable[[float], None]) -> None:
        self._shift = shift
        self._token: trio.lowlevel.TrioToken | None = None  # of the last one
        self.ended_at = 0.0  # on the clock of that one

    def enter(self) -> None:
        """Be in the run that calls this.

        Raises:
          RuntimeError: if the last one has not ended.
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
    """Notes when a run ends, for all that live in it."""

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


# Who follows which task.


class Followers:
    """Those who hear what is reported of a task, by task."""

    def __init__(self) -> None:
        self._all: dict[str, list[Following]] = {}

    def tell(self, task_id: str, data: bytes) -> None:
        for following in list(self._all.get(task_id, ())):
            following.on_report(data)

    def add(self, following: Following) -> None:
        self._all.setdefault(following.task_id, []).append(following)

    def remove(self, following: Following) -> None:
        same = self._all.get(following.task_id, [])
        if following in same:
            same.remove(following)
            if not same:
                del self._all[following.task_id]


class Following(Source):
    """What is reported of one task."""

    def __init__(
        self, followers: Followers, task_id: str, on_report: Callable[[bytes], None]
    ) -> None:
        self.task_id = task_id
        self.on_report = on_report
        self._followers = followers

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()
        self._followers.add(self)

    def end(self) -> None:
        self._followers.remove(self)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A task that was set aside.

    Attributes:
      capability: The one that the task was sent to.
      task_id: The task's ID.
      data: The envelope, as it was.
      reason: Why nobody could do it.
      deliveries: How often it was delivered.
    """

    capability: str
    task_id: str
    data: bytes
    reason: str
    deliveries: int


@final
class MemoryBroker(Broker):
    """Tasks and results of one process, kept in memory, on Trio's clock.

    It may be used in several runs of Trio, one after the other: times go on where the run before
    stopped.

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
        self.dead_letters: list[DeadLetter] = []
        """The dead letters so far, oldest first."""
        self._max_payload = max_payload
        self._room = Room(max_tasks)
        # An ID names one task for two minutes, as on the server, or as long as its result is kept.
        self._recent: Expiring[None] = Expiring(120.0, math.inf)
        self._results: Expiring[bytes] = Expiring(result_ttl, max_results)
        self._lease_seconds = 30.0
        self._leases: Expiring[None] = Expiring(self._lease_seconds, math.inf)
        self._outboxes: dict[str, _MemoryOutbox] = {}
        self._queues: dict[str, Queue] = {}
        self._shelves: dict[str, Shelf] = {}
        self._schedules = MemorySchedules(self._fire)
        self._followers = Followers()
        self._runs = Runs(self._shift)
        self._store = Store(
            ack_wait,
            self._room,
            self._finish,
            self._results.get,
            self._set_aside,
            self._leases,
            self._check_size,
            self._followers.tell,
        )

    def __repr__(self) -> str:
        return f"<MemoryBroker, {self._room.count} tasks, {len(self._results)} results>"

    @asynccontextmanager
    async def open_outbox(
        self, key: str, make_listener: Callable[[Outbox], ResultListener]
    ) -> AsyncIterator[Outbox]:
        self._runs.enter()
        outbox = self._outboxes[key] = _MemoryOutbox(self, make_listener)
        await trio.lowlevel.checkpoint()
        try:
            yield outbox
        finally:
            outbox.close()
            del self._outboxes[key]

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
        async with open_memory_bucket(shelf, ttl, self._max_payload) as bucket:
            yield bucket

    def _shift(self, seconds: float) -> None:
        self._recent.shift(seconds)
        self._results.shift(seconds)
        self._leases.shift(seconds)
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

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._max_payload:
            raise InvalidMessageError(
                f"an envelope of {len(data)} bytes is larger than the {self._max_payload} that the "
                "broker takes; keep large data elsewhere and send a reference"
            )

    def _is_known(self, task_id: str) -> bool:
        return task_id in self._recent or task_id in self._results

    def _add(self, task: Task, due: float = -math.inf) -> None:
        self._recent.put(task.task_id, None)
        self._room.count += 1
        self._queue(task.capability).add(task, due)

    def _fire(self, capability: str, task_id: str, data: bytes, due: float) -> bool:
        if self._is_known(task_id):
            return True  # it was cancelled before anybody looked
        if self._room.is_full():
            return False
        self._add(Task(capability, task_id, data), due)
        return True

    async def _finish(self, task_id: str, data: bytes) -> bool:
        self._check_size(data)
        await trio.lowlevel.checkpoint()
        while not self._finish_soon(task_id, data):
            if task_id in self._results:
                return False
            await self._results.wait_for_expiry()
        return True

    def _finish_soon(self, task_id: str, data: bytes) -> bool:
        """Store a result, unless there is one, or no room for it now."""
        if task_id in self._results or self._results.is_full() or len(data) > self._max_payload:
            return False
        self._results.put(task_id, data)
        key = task_id.partition("-")[0]
        for name, outbox in self._outboxes.items():
            if name == key or task_id in outbox.expected:
                outbox.listener.result_stored(task_id, data)
        return True

    def _set_aside(self, task: Task, reason: str) -> None:
        self.dead_letters.append(
            DeadLetter(task.capability, task.task_id, task.data, reason, task.deliveries)
        )


class _MemoryOutbox(Outbox):
    hears_own_ids = True

    def __init__(
        self, broker: MemoryBroker, make_listener: Callable[[Outbox], ResultListener]
    ) -> None:
        self._broker = broker
        self.expected: set[str] = set()
        self._lifetime = Lifetime()
        self.timetable = MemoryTimetable(broker._schedules, self._lifetime, broker._check_size)
        self.listener = make_listener(self)

    async def store(self, task: NewTask, *, tried: bool = False) -> bool:
        self._broker._check_size(task.data)
        stored = Task(task.capability, task.task_id, task.data, task.deadline, task.lease)
        due = -math.inf
        if task.not_before is not None:
            # Told once: from here on it is Trio's clock that counts.
            due = trio.current_time() + (task.not_before - datetime.now(UTC)).total_seconds()
        return await self._lifetime.run(partial(self._store, stored, due))

    def store_soon(self, task: NewTask, on_end: Callable[[bool | None], None]) -> bool:
        broker = self._broker
        broker._schedules.catch_up()  # what was due before comes before
        if (
            self._lifetime.is_over
            or len(task.data) > broker._max_payload
            or broker._room.is_full()
            or broker._is_known(task.task_id)
        ):
            return False
        broker._add(Task(task.capability, task.task_id, task.data, task.deadline, task.lease))
        on_end(True)
        return True

    async def _store(self, task: Task, due: float) -> bool:
        broker = self._broker
        await trio.lowlevel.checkpoint()
        if any(queue.is_later(task.task_id) for queue in broker._queues.values()):
            return False
        while not broker._is_known(task.task_id):
            broker._schedules.catch_up()  # as above
            if not broker._room.is_full():
                broker._add(task, due)
                return True
            await broker._room.freed.wait()
        return False

    def expect(self, task_id: str) -> None:
        self.expected.add(task_id)

    def forget(self, task_id: str) -> None:
        self.expected.discard(task_id)

    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        return Following(self._broker._followers, task_id, on_report)

    async def fetch(self, task_id: str) -> bytes | None:
        return await self._lifetime.run(partial(self._fetch, task_id))

    async def _fetch(self, task_id: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._broker._results.get(task_id)

    async def store_result(self, task_id: str, result: bytes) -> bytes:
        await self._lifetime.run(partial(self._broker._finish, task_id, result))
        stored = self._broker._results.get(task_id)
        return result if stored is None else stored  # one that was there may just have expired

    async def find(self, task_id: str) -> str | None:
        await self._lifetime.run(trio.lowlevel.checkpoint)
        queues = self._broker._queues.items()
        return next((name for name, queue in queues if queue.holds(task_id)), None)

    async def stop(
        self, capability: str | None, task_id: str, grace: float, *, never_delayed: bool
    ) -> bool | None:
        return await self._lifetime.run(partial(self._stop, capability, task_id, grace))

    async def _stop(self, capability: str | None, task_id: str, grace: float) -> bool | None:
        await trio.lowlevel.checkpoint()
        if capability is not None:
            queues = [self._broker._queue(capability)]
        else:
            # All: whoever runs it hears of it also where it was taken out of its queue before.
            queues = list(self._broker._queues.values())
        notice = self._tell(queues, task_id)
        with trio.move_on_after(grace):
            await notice.wait_ended()
        return notice.verdict()

    def _tell(self, queues: Sequence[Queue], task_id: str) -> _MemoryNotice:
        # As on a server: of what may have been handed out it is known that it has ended if a worker
        # says so.
        notice = _MemoryNotice(task_id)
        notice.never_ran = any(queue.was_never_delivered(task_id) for queue in queues)
        for queue in queues:
            queue.cancel(notice)
        return notice

    async def stop_many(self, stops: Sequence[Stop], grace: float) -> None:
        await trio.lowlevel.checkpoint()
        notices: dict[Stop, _MemoryNotice] = {}
        for stop in stops:
            if self._lifetime.is_over or not self._broker._finish_soon(stop.task_id, stop.result):
                stop.left()
            else:
                stop.stored()
                queue = self._broker._queue(stop.capability)
                notices[stop] = self._tell([queue], stop.task_id)
        with suppress(ClosedError):
            await self._lifetime.run(partial(self._wait_ended, notices.values(), grace))
        for stop, notice in notices.items():
            stop.stopped(notice.verdict())

    async def _wait_ended(self, notices: Iterable[_MemoryNotice], grace: float) -> None:
        with trio.move_on_after(grace):
            for notice in notices:
                await notice.wait_ended()

    async def renew_lease(self, name: str) -> float:
        return await self._lifetime.run(partial(self._renew_lease, name))

    async def _renew_lease(self, name: str) -> float:
        await trio.lowlevel.checkpoint()
        self._broker._leases.put(name, None)
        return self._broker._lease_seconds

    def close(self) -> None:
        self._lifetime.end(lambda: ClosedError("the dispatcher was closed meanwhile"))


class _MemoryNotice(Notice):
    # Those who run the task answer at once, for all are in this process.
    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.never_ran = False
        self._has_run = False  # a worker has said so
        self._running = 0  # workers
        self._ended = trio.Event()

    def verdict(self) -> bool | None:
        """As `Outbox.stop` returns it."""
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
            self._ended = trio.Event()  # another worker may say that it runs it

    async def wait_ended(self) -> None:
        if self._running > 0:
            await self._ended.wait()
