# The interface between the roles (dispatcher, worker) and what stores tasks and results.
#
# It speaks of tasks and results, never of subjects or consumers. Two implementations keep the same
# promises, and one conformance suite runs on both: `_memory/` and `_jetstream/`. Beside the queue
# there are two smaller parts: the progress of a task, told past the queue, and buckets.
#
# Messages come in by plain callbacks in the Trio thread: a task switch for each message would cost
# more than the rest of the way. A callback never blocks and never raises.
#
# Every async method here waits through an outage of the broker until it has an answer; the caller's
# cancel scope is the deadline. It raises BrokerError when the broker is lost for good or refuses in
# a way that waiting can't change, and ClosedError when its own side was closed meanwhile.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    from ._errors import BrokerError
    from ._schedule import Timetable


# A source calls back for a while. Ending one never waits, so any `finally` may do it.


class Source(AbstractAsyncContextManager[None]):
    """Calls back, from entering its block to leaving it."""

    @abstractmethod
    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    @abstractmethod
    def end(self) -> None:
        """What leaving the block does."""


class NoSource(Source):
    """Nothing calls back."""

    async def __aenter__(self) -> None:
        pass

    def end(self) -> None:
        pass


# Progress: what goes from a task's handler to those who follow it. At most once: nothing is stored,
# and nobody waits for it.


class CanReport(ABC):
    """What a delivery does for its handler. Never waits."""

    __slots__ = ()

    @abstractmethod
    def check_report(self, data: bytes) -> None:
        """Raise InvalidMessageError if ``data`` is larger than the broker takes."""

    @abstractmethod
    def report(self, data: bytes) -> None:
        """Tell those who follow the task how far it is. In an outage this is lost."""


class CanFollow(ABC):
    """What an outbox does for its futures."""

    @abstractmethod
    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        """Call ``on_report`` with what `CanReport.report` sends of a task, and perhaps other bytes.

        Entered once it would be called; entering waits through an outage.

        Raises:
          BrokerError: on entering, if the server does not permit it, or is lost for good.
          ClosedError: on entering, if this object is closed.
        """


# A bucket: keys and values that any process can read, each change with a revision. A key that was
# deleted, or has expired, may leave an entry without data behind for a while.


class Entry(NamedTuple):
    """What a bucket has for a key."""

    key: str
    revision: int
    """Grows with each change of any key."""
    data: bytes | None
    """None: deleted, or expired."""
    stored_at: str = ""
    """Tells two entries of one revision apart, if the bucket was made anew between them."""


class Page(NamedTuple):
    """A part of a listing."""

    entries: Sequence[Entry]
    """In the order of their revisions."""
    last: int
    """The revision to go on after."""
    more: bool


class Refused(Exception):
    """Another revision of the key is the newest."""

    def __init__(self, *, unsure: bool = False) -> None:
        super().__init__()
        self.unsure = unsure
        """An attempt before this one had no answer, and may have been stored."""


class Watch(Source):
    """A key that is followed."""

    @abstractmethod
    async def look(self) -> None:
        """Make sure that ``on_entry`` was called with what is stored now."""


class Bucket(ABC):
    """Keys and values. Opened by `Broker.open_bucket`."""

    one_each: bool
    """Whether a listing gives each key once, except keys that change meanwhile."""

    @property
    @abstractmethod
    def max_size(self) -> int | None:
        """Bytes that a value may have; None: no limit."""

    @property
    @abstractmethod
    def lost(self) -> Exception | None:
        """What has ended the bucket, if it was not its user."""

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """The newest entry of a key, or None."""

    @abstractmethod
    async def put(self, key: str, data: bytes, revision: int) -> None:
        """Store ``data`` if ``revision`` is still the newest of ``key`` (0: it has none).

        Raises:
          Refused: if it is not.
        """

    @abstractmethod
    async def remove(self, key: str, revision: int) -> None:
        """Delete ``key`` if ``revision`` is still its newest; raises as `put` does."""

    @abstractmethod
    async def page(self, after: int) -> Page:
        """The entries past a revision, as many as are good to hold at once."""

    @abstractmethod
    def watch(self, key: str, on_entry: Callable[[Entry], None]) -> Watch:
        """Call ``on_entry`` with the entry there is, if any, and then with each change.

        Once the block is entered, ``on_entry`` was called with the entry there is. After an outage,
        what was missed is looked up; of several changes the newest is told. ``on_entry`` never
        blocks or raises.
        """


@dataclass(slots=True)
class NewTask:
    """A task that is to be stored."""

    capability: str
    task_id: str
    data: bytes
    deadline: float = math.inf
    """On Trio's clock. Goes with the task, as the seconds that are left."""
    group_lease: str = ""
    """The lease of the task's group, if it has one: without it the task is not to be run."""
    is_new: bool = False
    """Its ID was made for it, so no other task has it."""
    not_before: datetime | None = None
    """In UTC. Until then nobody gets it."""
    receipt: bytes = b""
    """The broker's confirmation, if it says where the task is stored: see `Withdrawal`."""


class Withdrawal(ABC):
    """A task of `Outbox.withdraw_many`. Its methods are told what becomes of it; none raises."""

    capability: str
    task_id: str
    receipt: bytes
    """The one of `NewTask`."""
    result: bytes
    """The result to store in its worker's place."""

    @abstractmethod
    def stored(self) -> None:
        """`result` is stored, and the one that counts."""

    @abstractmethod
    def stopped(self, stopped: bool | None) -> None:
        """Called after `stored`, with what `Outbox.withdraw` returns; again if that changes."""

    @abstractmethod
    def left(self) -> None:
        """The last call: `Outbox.store_result` and `Outbox.withdraw` are to do what is missing."""


class ResultListener(ABC):
    """What an outbox tells its dispatcher. Called in the Trio thread; never blocks or raises."""

    @abstractmethod
    def result_stored(self, task_id: str, data: bytes) -> None:
        """The first result of ``task_id`` was stored. May be called more than once for one task."""

    @abstractmethod
    def outstanding(self) -> Collection[str]:
        """The tasks whose results are waited for: what an outbox looks up after an outage."""

    @abstractmethod
    def broker_lost(self, error: BrokerError) -> None:
        """The broker is lost for good; nothing more will come."""

    @abstractmethod
    def own_ids_unheard(self) -> None:
        """`Outbox.hears_own_ids` has become False: `Outbox.expect` each task waited for."""


class Outbox(CanFollow):
    """A dispatcher's side of the broker: store tasks, hear of their results, fetch results."""

    hears_own_ids: bool
    """Whether results of its own key are heard without `expect`, as they should be."""

    timetable: Timetable
    """Tasks that are started again and again."""

    @abstractmethod
    async def store(self, task: NewTask, *, tried: bool = False) -> bool:
        """Store one task; return once the broker has confirmed it.

        Args:
          tried: `store_soon` was called, and had no answer that counts.

        Returns:
          True if it is new. False if the broker knew the task already, or may have, in whatever
          capability, due or not: it was not stored again, and its result may be there.

        Raises:
          InvalidMessageError: if its data is larger than the broker takes.
        """

    @abstractmethod
    def store_soon(self, task: NewTask, on_end: Callable[[bool | None], None]) -> bool:
        """Begin `store` and don't wait: ``on_end`` gets what `store` returns, once at most.

        If there is no answer, or one that says no, ``on_end`` gets None: then `store` finds out.

        Returns:
          False if that can't be done now: nothing was sent.
        """

    @abstractmethod
    def expect(self, task_id: str) -> None:
        """Hear of the result of one task, whatever its ID."""

    @abstractmethod
    def forget(self, task_id: str) -> None:
        """Undo `expect`."""

    @abstractmethod
    async def fetch(self, task_id: str) -> bytes | None:
        """The first result stored for ``task_id``, or None."""

    @abstractmethod
    async def store_result(self, task_id: str, result: bytes) -> bytes:
        """Store the result of a task in its worker's place, unless one is there.

        Returns:
          The result that counts: this one, or the one that was there.
        """

    @abstractmethod
    async def find(self, task_id: str) -> str | None:
        """The capability in whose queue a task is, due or not.

        Returns:
          None if it is in none, or that can't be told soon.
        """

    @abstractmethod
    async def withdraw(
        self, capability: str | None, task_id: str, grace: float, *, never_delayed: bool
    ) -> bool | None:
        """Take a task whose result is stored out of the queue, and have its handler cancelled.

        Args:
          capability: None if it is not known; then a task that is in no queue is not found.
          grace: Seconds to wait until the handler has ended.
          never_delayed: It was stored without a ``not_before``.

        Returns:
          Whether no handler of it runs any more: True if none was ever called, or its worker says
          so; False if a worker has said that one runs; None if nobody says.
        """

    @abstractmethod
    async def withdraw_many(self, withdrawals: Sequence[Withdrawal], grace: float) -> None:
        """As `store_result` and then `withdraw`, for many tasks that were stored here, due at once.

        Each step takes hardly longer for all of them than for one. Whatever is unusual about a task
        is no error: its `Withdrawal.left` is called.
        """

    @abstractmethod
    async def renew_group_lease(self, name: str) -> float:
        """Let the tasks that were stored with this lease run, from now on for a while.

        Returns:
          For how many seconds.
        """

    @abstractmethod
    def close(self) -> None:
        """End everything that waits in a method of this object with `ClosedError`."""


class Delivery(CanReport):
    """One arrival of a task at a worker."""

    __slots__ = (
        "capability",
        "data",
        "deadline",
        "group_lease",
        "lease_until",
        "maybe_redelivered",
        "number",
        "task_id",
    )

    capability: str
    task_id: str  # as the broker filed it; what the envelope says is the worker's to compare
    data: bytes
    number: int  # how often the task was delivered, this time included
    maybe_redelivered: bool  # it may have been delivered before, whatever the number says
    group_lease: str  # without it the task must not run; empty: none. `Intake.find_group_leases`
    deadline: float  # Trio's clock: of whoever started the task, as it came with the task
    lease_until: float  # Trio's clock; until then the task is nobody else's

    def is_lost(self) -> bool:
        """Whether its lease has lapsed: the task is another's by now.

        Then nothing may be done with this delivery but to store a result: the broker would take it
        for the other's delivery. A task that is put back goes out again while it runs there.
        """
        return self.lease_until <= trio.current_time()

    @abstractmethod
    def repeats(self, other: Delivery) -> bool:
        """Whether both deliver one stored task; two tasks may have been stored with one ID."""

    @abstractmethod
    def renew(self) -> None:
        """Ask for another ``ack_wait``; `lease_until` moves when the broker has confirmed it."""

    @abstractmethod
    async def doubt(self) -> float:
        """For how many seconds the task, which was delivered before, is to be left to others.

        Above 0 where its lease seems to have lapsed and may not have: a worker may be running it.
        """

    @abstractmethod
    async def is_group_alive(self) -> bool | None:
        """Whether its `group_lease` has not lapsed; None if that can't be told for some time.

        Raises:
          BrokerError: if the lease may not be looked up.
        """

    @abstractmethod
    async def measure_deadline(self) -> float:
        """`deadline`, by the clocks as they are now: one may have been set meanwhile."""

    @abstractmethod
    async def complete(self, result: bytes) -> bool:
        """Store the task's result unless one is there, and only then end the task.

        Returns:
          Whether this result is the one that was stored.

        Raises:
          InvalidMessageError: if ``result`` is larger than the broker takes; nothing was stored.
        """

    def complete_soon(self, result: bytes, on_end: Callable[[bool], None]) -> bool:
        """Begin `complete` and don't wait. ``on_end`` is called once at most.

        It gets True if all is done, and this result is the one that was stored. If not, or if the
        broker is closed before there is an answer, `complete` has to finish the task.

        Returns:
          False if that can't be done now: nothing was sent.
        """
        return False

    @abstractmethod
    async def is_done(self) -> bool:
        """Whether a result of this task is stored already; if so, end the task."""

    @abstractmethod
    async def give_back(self, delay: float = 0, *, in_order: bool = True) -> bool:
        """Give the task to others, after ``delay`` seconds; in order, that is no failed delivery.

        A cancellation does not prevent this. Does not wait through an outage: the lease lapses by
        itself.

        Returns:
          False if the delivery is lost: nothing was done.
        """

    @abstractmethod
    async def count_given_back(self) -> int:
        """How many of the deliveries so far ended in `give_back`."""

    @abstractmethod
    async def retry(self, delay: float) -> bool:
        """Put the task back for ``delay`` seconds after its handler has failed; note the failure.

        Waits through an outage for the note to be stored.

        Returns:
          False if the delivery is lost, by now or before: it was not put back.
        """

    @abstractmethod
    async def count_retries(self) -> int:
        """How many of the deliveries so far ended in `retry`."""

    @abstractmethod
    async def rests_for(self) -> float:
        """Seconds that are left of the last `retry`'s delay: a broker may deliver early."""

    @abstractmethod
    async def bury(self, reason: str, result: bytes | None) -> bool:
        """Keep the task as a dead letter, store ``result``, and end the task, in this order.

        Does nothing if the delivery is lost.

        Returns:
          Whether this result is the one that was stored.
        """


class Notice(ABC):
    """A task is cancelled: its result is stored. Called in the Trio thread; never raises."""

    task_id: str

    @abstractmethod
    def running(self) -> None:
        """Answer: the task is in hand here."""

    @abstractmethod
    def ended(self) -> None:
        """Answer, after `running`: its handler, which ran here, has ended."""


class DeliveryListener(ABC):
    """What an intake tells its worker. Called in the Trio thread; never blocks or raises."""

    @abstractmethod
    def delivered(self, delivery: Delivery) -> None:
        """A task has arrived, in one of the places that were asked for."""

    @abstractmethod
    def cancelled(self, notice: Notice) -> None:
        """A task of the capability was cancelled, wherever it is."""

    @abstractmethod
    def notices_missed(self) -> None:
        """Notices may be missing: `Intake.find_done` tells which tasks in hand have a result."""

    @abstractmethod
    def ack_wait_changed(self) -> None:
        """`Intake.ack_wait` has changed: all that is in hand is to be renewed."""


class Intake(ABC):
    """A worker's side of the broker, for one capability."""

    ack_wait: float
    """Seconds that a delivery is the worker's, from its arrival or the last renewal."""

    @abstractmethod
    def ask(self, places: int) -> None:
        """Allow ``places`` more deliveries. Each arrival uses one up."""

    @abstractmethod
    async def look(self) -> None:
        """Look whether `ack_wait` was changed. Call it now and then, while tasks are in hand.

        Raises no error of the broker's.
        """

    @abstractmethod
    async def find_done(self, task_ids: Sequence[str]) -> Mapping[str, bytes]:
        """The results that are stored for these tasks."""

    @abstractmethod
    async def find_group_leases(self, names: Collection[str]) -> Collection[str]:
        """Those of these leases that have not lapsed."""

    @abstractmethod
    async def stop(self) -> None:
        """Allow no more. Deliveries that were under way are handed over before this returns.

        Raises no error of the broker's: without a broker, nothing more will come.
        """


class Broker(ABC):
    """What stores tasks and results. Open one with `open_broker`, or make a `MemoryBroker`."""

    @abstractmethod
    def open_outbox(
        self, key: str, make_listener: Callable[[Outbox], ResultListener]
    ) -> AbstractAsyncContextManager[Outbox]:
        """A dispatcher's side; it hears of the results of all IDs that begin with ``<key>-``.

        ``make_listener`` is called with the outbox before anything can be heard, or is returned.
        """

    @abstractmethod
    def open_intake(
        self, capability: str, make_listener: Callable[[Intake], DeliveryListener]
    ) -> AbstractAsyncContextManager[Intake]:
        """A worker's side; entered once tasks of ``capability`` would reach it, if asked for.

        ``make_listener`` is called with the intake before anything can arrive, or is returned.
        """

    @abstractmethod
    def open_bucket(self, name: str, ttl: float) -> AbstractAsyncContextManager[Bucket]:
        """Keys and values; an entry expires ``ttl`` seconds after it was stored."""
