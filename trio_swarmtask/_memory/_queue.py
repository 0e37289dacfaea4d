# The tasks of one capability in the memory broker: which wait, who holds which, until when. And a
# worker's side: the intake and its deliveries.
#
# A task is in exactly one place: in `_waiting` or `_again`, in `_later` or `_resting`, or leased by
# the delivery that is its `holder`; or it has ended.
#
# The order is the server's. Tasks that were delivered before (given back, retried, or with a lapsed
# lease) go before those that were not. Each of the two groups is in the order in which its tasks
# became available. A task that must not run before a time enters the queue at that time, at the
# end. A task that has come due counts from its time, not from when somebody looked: nothing happens
# here while no intake is open.

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import TYPE_CHECKING

import trio

from .._abc import Delivery, Intake, Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .._abc import DeliveryListener
    from ._store import Store, Task


class Queue:
    """The tasks of one capability."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.intakes: deque[MemoryIntake] = deque()  # those that take tasks
        self.hearers: list[MemoryIntake] = []  # all that are open, also those that take no more
        self._waiting: deque[Task] = deque()
        self._again: deque[Task] = deque()  # those that were delivered before
        self._later: dict[Task, float] = {}  # not due yet: until when
        self._resting: dict[Task, float] = {}  # put back with a delay: until when
        self._leased: dict[Task, Delivery] = {}
        self._tasks: dict[str, list[Task]] = {}  # by ID; an ID may be stored again after a while
        self._numbers = itertools.count(1)
        self._handled_from = math.inf  # a task's number: it is not known who had older tasks
        self._next_check = math.inf  # nothing comes due before this time
        self._check_earlier = trio.Event()

    def add(self, task: Task, due: float = -math.inf) -> None:
        self._tasks.setdefault(task.task_id, []).append(task)
        task.number = next(self._numbers)
        if due > -math.inf:
            task.was_later = True
            self._later[task] = due
            self._check_at(due)
        else:
            self._catch_up()
            self._waiting.append(task)
        self.hand_out()

    def holds(self, task_id: str) -> bool:
        return task_id in self._tasks

    def is_later(self, task_id: str) -> bool:
        return any(task in self._later for task in self._tasks.get(task_id, ()))

    def begin(self) -> None:
        """Note that a worker is there."""
        if self._handled_from == math.inf:
            self._catch_up()  # tasks that are due by now are older
            self._handled_from = next(self._numbers)

    def was_never_delivered(self, task_id: str) -> bool:
        """Whether the task is here and was never delivered, as far as a server would know.

        On a server the durable knows that. The first worker makes it, and it knows only of tasks
        that are younger than itself. A task that is not due has never been in the queue.
        """
        self._catch_up()
        tasks = self._tasks.get(task_id, ())
        return bool(tasks) and all(self._is_new(task) for task in tasks)

    def _is_new(self, task: Task) -> bool:
        return task in self._later or (not task.deliveries and task.number > self._handled_from)

    def hand_out(self) -> None:
        self._catch_up()
        while first := self._again or self._waiting:
            intake = self._next_intake()
            if intake is None:
                return
            task = first.popleft()
            if not task.ended:
                self._deliver(task, intake)

    def take_back(self, task: Task, delay: float) -> None:
        if delay > 0:
            self.put_off(task, delay)
            return
        task.holder = None
        del self._leased[task]
        self._again.append(task)
        self.hand_out()

    def put_off(self, task: Task, delay: float) -> None:
        """As `take_back`, but never at once: its worker may not have let go of the task yet."""
        task.holder = None
        del self._leased[task]
        self._resting[task] = trio.current_time() + delay
        self._check_at(self._resting[task])

    def end(self, task: Task) -> None:
        if not task.ended:
            task.ended = True
            same = self._tasks[task.task_id]
            same.remove(task)
            if not same:
                del self._tasks[task.task_id]
            for place in (self._leased, self._later, self._resting):
                place.pop(task, None)
            self.store.room.free()

    def shift(self, seconds: float) -> None:
        """Move all times by so many seconds: Trio's clock has started again; no intake is open."""
        for same in self._tasks.values():
            for task in same:
                task.deadline += seconds
        self._later = {task: due + seconds for task, due in self._later.items()}
        self._resting = {task: due + seconds for task, due in self._resting.items()}
        for delivery in self._leased.values():
            delivery.lease_until += seconds
        self._next_check = -math.inf  # look again at the next call

    def cancel(self, notice: Notice) -> None:
        for task in list(self._tasks.get(notice.task_id, ())):
            self.end(task)
        for intake in list(self.hearers):
            intake.listener.cancelled(notice)

    async def keep_time(self) -> None:
        """Hand out each task when it comes due, until cancelled."""
        while True:
            self.hand_out()
            with trio.move_on_at(self._next_check):
                await self._check_earlier.wait()

    def _check_at(self, time: float) -> None:
        # Each new lease ends later than those before, so only the first after a pause needs an
        # earlier check.
        if time < self._next_check:
            self._next_check = time
            self._check_earlier.set()
            self._check_earlier = trio.Event()

    def _catch_up(self) -> None:
        """Move tasks that have come due to where they can be handed out."""
        now = trio.current_time()
        if now < self._next_check:
            return
        lapsed = [task for task, delivery in self._leased.items() if delivery.lease_until <= now]
        lapsed.sort(key=lambda task: task.number)  # as the server does, if several lapse at once
        ends = {task: self._leased[task].lease_until for task in lapsed} | self._resting
        for task in _due(ends, now):
            task.holder = None
            self._leased.pop(task, None)
            self._resting.pop(task, None)
            self._again.append(task)
        for task in _due(self._later, now):
            del self._later[task]
            task.number = next(self._numbers)
            self._waiting.append(task)
        leases = [delivery.lease_until for delivery in self._leased.values()]
        times = (*leases, *self._resting.values(), *self._later.values())
        self._next_check = min(times, default=math.inf)

    def _next_intake(self) -> MemoryIntake | None:
        for _ in range(len(self.intakes)):
            self.intakes.rotate(-1)
            if self.intakes[-1].places > 0:
                return self.intakes[-1]
        return None

    def _deliver(self, task: Task, intake: MemoryIntake) -> None:
        task.deliveries += 1
        delivery = task.holder = self._leased[task] = _MemoryDelivery(self, task)
        self._check_at(delivery.lease_until)
        intake.places -= 1
        intake.listener.delivered(delivery)


def _due(times: Mapping[Task, float], now: float) -> list[Task]:
    """The tasks that are due, by their times; those of one time stay in their order."""
    return sorted((task for task, time in times.items() if time <= now), key=times.__getitem__)


class MemoryIntake(Intake):
    """A worker's side of a queue."""

    def __init__(self, queue: Queue, make_listener: Callable[[Intake], DeliveryListener]) -> None:
        self.ack_wait = queue.store.ack_wait
        self.places = 0
        self._queue = queue
        self.listener = make_listener(self)
        queue.begin()
        queue.intakes.append(self)
        queue.hearers.append(self)

    def ask(self, places: int) -> None:
        self.places += places
        self._queue.hand_out()

    async def look(self) -> None:
        await trio.lowlevel.checkpoint()

    async def find_done(self, task_ids: Sequence[str]) -> Mapping[str, bytes]:
        await trio.lowlevel.checkpoint()
        results = {task_id: self._queue.store.results.get(task_id) for task_id in task_ids}
        return {task_id: result for task_id, result in results.items() if result is not None}

    async def find_group_leases(self, names: Collection[str]) -> Collection[str]:
        await trio.lowlevel.checkpoint()
        return [name for name in names if name in self._queue.store.leases]

    async def stop(self) -> None:
        self._leave()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._leave()
        self._queue.hearers.remove(self)

    def _leave(self) -> None:
        if self in self._queue.intakes:
            self._queue.intakes.remove(self)


class _MemoryDelivery(Delivery):
    __slots__ = ("_queue", "_task")

    def __init__(self, queue: Queue, task: Task) -> None:
        self.capability = task.capability
        self.task_id = task.task_id
        self.data = task.data
        self.number = task.deliveries
        self.maybe_redelivered = task.deliveries > 1 or task.was_later
        self.deadline = task.deadline
        self.group_lease = task.group_lease
        self.lease_until = trio.current_time() + queue.store.ack_wait
        self._queue = queue
        self._task = task

    def repeats(self, other: Delivery) -> bool:
        assert isinstance(other, _MemoryDelivery)
        return self._task is other._task

    def renew(self) -> None:
        if self._task.holder is self:
            self.lease_until = trio.current_time() + self._queue.store.ack_wait

    async def doubt(self) -> float:
        await trio.lowlevel.checkpoint()
        return 0.0

    async def is_group_alive(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.group_lease in self._queue.store.leases

    async def measure_deadline(self) -> float:
        await trio.lowlevel.checkpoint()
        return self.deadline

    def check_report(self, data: bytes) -> None:
        self._queue.store.check_size(data)

    def report(self, data: bytes) -> None:
        self._queue.store.followers.tell(self.task_id, data)

    async def complete(self, result: bytes) -> bool:
        first = await self._queue.store.finish(self.task_id, result)
        self._queue.end(self._task)
        return first

    async def is_done(self) -> bool:
        await trio.lowlevel.checkpoint()
        if self._queue.store.results.get(self.task_id) is None:
            return False
        self._queue.end(self._task)
        return True

    def is_lost(self) -> bool:
        return super().is_lost() or not (self._task.ended or self._task.holder is self)

    async def give_back(self, delay: float = 0, *, in_order: bool = True) -> bool:
        await trio.lowlevel.cancel_shielded_checkpoint()  # given back even if cancelled
        if self.is_lost():
            return False
        if not self._task.ended:
            self._task.given_back += in_order
            self._queue.take_back(self._task, delay)
        return True

    async def count_given_back(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._task.given_back

    async def retry(self, delay: float) -> bool:
        await trio.lowlevel.checkpoint()
        if self.is_lost():
            return False
        if not self._task.ended:
            self._task.retried += 1
            self._queue.put_off(self._task, delay)
        return True

    async def count_retries(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._task.retried

    async def rests_for(self) -> float:
        await trio.lowlevel.checkpoint()
        return 0.0  # this broker is never early

    async def bury(self, reason: str, result: bytes | None) -> bool:
        if self.is_lost():
            await trio.lowlevel.checkpoint()
            return False
        self._queue.store.bury(self._task, reason)
        first = result is not None and await self._queue.store.finish(self.task_id, result)
        self._queue.end(self._task)
        return first
