# What a memory broker keeps beside its queues: results, leases of groups and dead letters; and who
# hears of results and reports.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from .._abc import Delivery, ResultListener, Source
from .._errors import InvalidMessageError
from .._sync import Expiring

if TYPE_CHECKING:
    from collections.abc import Callable

_LEASE_SECONDS: Final = 30.0
_KNOWN_SECONDS: Final = 120.0  # as on the server


class Room:
    """A count with a limit, and an event for those who wait until it is below the limit."""

    def __init__(self, limit: float) -> None:
        self.count = 0
        self._limit = limit
        self.freed = trio.Event()

    def is_full(self) -> bool:
        return self.count >= self._limit

    def free(self) -> None:
        self.count -= 1
        self.freed.set()
        self.freed = trio.Event()


@dataclass(eq=False, slots=True)
class Task:
    """A task that was stored."""

    capability: str
    task_id: str
    data: bytes
    deadline: float = math.inf
    group_lease: str = ""
    number: int = 0
    deliveries: int = 0
    given_back: int = 0
    retried: int = 0
    was_later: bool = False
    """It was not due when it was stored."""
    holder: Delivery | None = None
    ended: bool = False


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


# Who follows which task.


class Followers:
    """Those who hear the reports of tasks, by task."""

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
    """Calls ``on_report`` with each report of one task, while it is entered."""

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


class Listening:
    """What one outbox hears of results."""

    def __init__(self, listener: ResultListener) -> None:
        self.listener = listener
        self.expected: set[str] = set()  # tasks whose IDs do not begin with its key


class Store:
    """What one memory broker keeps."""

    def __init__(
        self,
        ack_wait: float,
        result_ttl: float,
        max_payload: int,
        max_tasks: float,
        max_results: float,
    ) -> None:
        self.ack_wait = ack_wait
        self.max_payload = max_payload
        self.room = Room(max_tasks)
        # An ID names one task for two minutes, or as long as its result is kept.
        self.recent: Expiring[None] = Expiring(_KNOWN_SECONDS, math.inf)
        self.results: Expiring[bytes] = Expiring(result_ttl, max_results)
        self.lease_seconds = _LEASE_SECONDS
        self.leases: Expiring[None] = Expiring(_LEASE_SECONDS, math.inf)
        self.dead_letters: list[DeadLetter] = []
        self.followers = Followers()
        self.listening: dict[str, Listening] = {}  # outboxes, by key

    def shift(self, seconds: float) -> None:
        """Move all times by so many seconds."""
        self.recent.shift(seconds)
        self.results.shift(seconds)
        self.leases.shift(seconds)

    def check_size(self, data: bytes) -> None:
        if len(data) > self.max_payload:
            raise InvalidMessageError(
                f"an envelope of {len(data)} bytes is larger than the {self.max_payload} that the "
                "broker takes; keep large data elsewhere and send a reference"
            )

    def is_known(self, task_id: str) -> bool:
        """Whether a task of that ID was stored, or has a result."""
        return task_id in self.recent or task_id in self.results

    async def finish(self, task_id: str, data: bytes) -> bool:
        """Store the result of a task and return True, or False if there is one; wait for room."""
        self.check_size(data)
        await trio.lowlevel.checkpoint()
        while not self.finish_soon(task_id, data):
            if task_id in self.results:
                return False
            await self.results.wait_for_expiry()
        return True

    def finish_soon(self, task_id: str, data: bytes) -> bool:
        """Store a result, unless there is one, or no room now; return whether it was stored."""
        if task_id in self.results or self.results.is_full() or len(data) > self.max_payload:
            return False
        self.results.put(task_id, data)
        key = task_id.partition("-")[0]
        for name, outbox in self.listening.items():
            if name == key or task_id in outbox.expected:
                outbox.listener.result_stored(task_id, data)
        return True

    def bury(self, task: Task, reason: str) -> None:
        self.dead_letters.append(
            DeadLetter(task.capability, task.task_id, task.data, reason, task.deliveries)
        )
