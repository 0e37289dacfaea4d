# One task in hand at a worker, from its arrival until it is settled; and what its handler sees of
# it.
#
# A job has exactly one `Outcome`, which is set once: its result is stored and the task ended (a
# success, a failure, a timeout, a cancellation), or there was one before; it is a dead letter; it
# is put back for another attempt, or given back; or its lease was lost and it is let be. Which one
# is decided after the handler's scope was left (`JobRunner.settle`), from what the handler gave and
# what has cut it short: if it gave nothing and nothing has, it was the scope's deadline: a timeout.

from __future__ import annotations

import enum
import math
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol, final

import msgspec
import trio

from .._dispatcher._dispatcher import below
from .._errors import InvalidMessageError
from .._record import Result as Record, ResultStatus, encode
from .._sync import Paced
from .._util import NoPublicConstructor, shorten
from ._handler import count_attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from .._abc import Delivery, Notice
    from .._dispatcher._dispatcher import Dispatcher
    from .._message import Message, Result
    from .._statistics import Outcome
    from ._handler import Value
    from ._observers import Ending
    from ._own_dispatcher import OwnDispatcher
    from ._retry import Retry


class Cut(enum.IntEnum):
    """Why a handler is cut short, or not called. The highest counts."""

    NOT = 0
    BY_WORKER = 1
    """The worker stops: the task is given back."""
    CANCELLED = 2
    """The task has a result: another worker's, or that of whoever cancelled it."""
    LOST = 3
    """The lease lapsed: the task is another worker's."""


class Job:
    """One delivery in hand, and what it came to."""

    __slots__ = (
        "afterwards",
        "blocked",
        "by_senders_deadline",
        "call",
        "current",
        "cut",
        "delivery",
        "encoded",
        "ending",
        "failure",
        "in_order",
        "lapsed",
        "message",
        "needs_lease",
        "notices",
        "outcome",
        "result",
        "retry",
        "retry_at",
        "scope",
        "started",
        "stored",
        "timeout",
    )

    def __init__(self, delivery: Delivery, retry: Retry) -> None:
        self.delivery: Delivery = delivery
        self.retry: Retry = retry
        self.scope: trio.CancelScope | None = None  # while its handler runs
        self.call: Awaitable[object] | None = None  # of the handler, once it was called
        self.message: Message | None = None
        self.current: CurrentTask | None = None  # if the handler has asked for it
        self.result: Result | Value | None = None
        self.failure: BaseException | None = None  # of the handler, and worth another attempt
        self.retry_at: float = 0.0  # the task is put back, and not to be tried again before that
        self.afterwards: str = ""  # what the handler raised once it was cancelled
        self.in_order: bool = True  # if it is given back, that is no failed delivery
        self.encoded: bytes = b""  # the result, as it was sent to be stored
        self.ending: Ending | None = None  # if somebody follows the task
        self.started: float = 0.0  # when the handler was called
        self.timeout: float = math.inf
        # `timeout` is what was left of the deadline that came with the task.
        self.by_senders_deadline: bool = False
        self.blocked: bool = False  # its handler kept the Trio thread to itself
        self.cut: Cut = Cut.NOT
        self.stored: bytes | None = None  # the result of a task that was cancelled, once looked up
        self.notices: list[Notice] = []  # of those who wait for the handler to end
        # The lease has lapsed, and the handler, which had kept the thread to itself, goes on.
        self.lapsed: bool = False
        # Round what needs the lease after the handler has ended.
        self.needs_lease: trio.CancelScope | None = None
        self.outcome: Outcome | None = None  # until nothing is left to do for it

    def was_cancelled(self, scope: trio.CancelScope) -> bool:
        """Whether its handler's scope was cancelled: by `cut_short`, or by the deadline."""
        return self.cut > Cut.NOT or (self.timeout < math.inf and scope.cancel_called)

    def runs_since(self, time: float) -> bool:
        """Whether its handler runs, and was called before ``time``."""
        return self.call is not None and self.scope is not None and self.started < time

    def cut_short(self, cut: Cut) -> None:
        """Cancel its handler, if it runs, or make sure that it is not called."""
        self.cut = max(self.cut, cut)
        if self.scope is not None:
            self.scope.cancel()
        if cut is Cut.LOST and self.needs_lease is not None:
            self.needs_lease.cancel()

    def end(self, outcome: Outcome) -> None:
        """Nothing is left to do for it."""
        assert self.outcome is None, f"task {self.delivery.task_id} has ended twice here"
        self.outcome = outcome

    def has_lost_lease(self) -> bool:
        """Whether the task is another worker's by now, or may be."""
        return self.cut is Cut.LOST or self.lapsed or self.delivery.is_lost()


class Host(Protocol):
    """What `CurrentTask` needs of the runner that has called the handler."""

    own_dispatcher: OwnDispatcher
    background: trio.Nursery
    name: str


# For its view of the task, a handler costs no more than this; the rest is made on demand.
CURRENT: Final[ContextVar[tuple[Host, Job]]] = ContextVar("trio_swarmtask.current_task")
"""Set for each handler, in the copy of the context that is its own."""

# The entries of a report's metadata that the library writes.
_PROGRESS: Final = "progress"
_NOTE: Final = "note"
_AGENT: Final = "agent"
_ATTEMPT: Final = "attempt"
_OWN: Final = frozenset((_PROGRESS, _NOTE, _AGENT, _ATTEMPT))


def current_task() -> CurrentTask:
    """The task that this handler was called for; in the Trio tasks and threads it started, too.

    Raises:
      RuntimeError: outside of a handler.
    """
    try:
        runner, job = CURRENT.get()
    except LookupError:
        raise RuntimeError(
            "there is no current task here: call current_task() in a handler that a worker has "
            "called, or in what that handler has started"
        ) from None
    if job.current is None:
        job.current = CurrentTask._create(runner, job)
    return job.current


@final
class CurrentTask(metaclass=NoPublicConstructor):
    """The task that a handler was called for. Given by `current_task`, in the handler."""

    def __init__(self, runner: Host, job: Job) -> None:
        self._runner = runner
        self._job = job
        self._first_report: datetime | None = None
        self._reports: Paced[Record] | None = None

    def __repr__(self) -> str:
        return f"<CurrentTask {self.message.id!r} of {self.capability}>"

    @property
    def capability(self) -> str:
        """The capability that it was sent to."""
        return self._job.delivery.capability

    @property
    def message(self) -> Message:
        """What the handler was called with."""
        assert self._job.message is not None
        return self._job.message

    @property
    def attempt(self) -> int:
        """Which attempt this is, counted from 1: that of the result."""
        return count_attempt(self.message, self._job.delivery.number)

    @property
    def deadline(self) -> float:
        """When the handler is cut off, on Trio's clock; ``math.inf`` if it may take any time."""
        job = self._job
        return job.started + job.timeout if job.timeout < math.inf else math.inf

    async def dispatcher(self) -> Dispatcher:
        """A dispatcher to start tasks below this one with.

        It fills a blank ``parent``, ``root`` and ``correlation_id`` of the tasks that it starts,
        and of those of its groups. It is a view of the worker's one dispatcher, on the worker's
        broker, which is opened when a handler first asks and closed after the last one has ended.
        So it can't be closed here, and its `statistics` are those of the whole worker.

        Raises:
          RuntimeError: if the handler has ended.
          BrokerError: if the server refuses what a dispatcher needs, or is lost for good.
        """
        self._check_running("start tasks below it")
        dispatcher = await self._runner.own_dispatcher.dispatcher()
        return below(dispatcher, self.message)

    async def report(
        self,
        progress: float | None,
        note: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Tell those who follow the task how far it has come.

        They get it from `Future.updates`, and, as a ``pending`` result, from a publisher of
        `trio_swarmtask.results`. A report is sent once and not waited for: it is lost in an outage,
        and if nobody follows. Once the task was cancelled, this does nothing.

        In the long run ten a second go out at most (fewer of those above 10 kB), up to 16 at once.
        Of faster reports the newest goes out, as soon as it may, and the last one always goes out
        before the task's result.

        Args:
          progress: From 0 to 1; None if there is no telling.
          note: Anything to go with it.
          metadata: More of the kind, string to string. The update's ``metadata`` holds it, beside
            ``progress`` and ``note`` where they are given, ``agent`` and ``attempt``.

        Raises:
          RuntimeError: if the handler has ended.
          TypeError: if an argument has another type.
          ValueError: if ``progress`` is not from 0 to 1, or ``metadata`` has an entry that is
            written here.
          InvalidMessageError: if it holds text that is not Unicode, or is larger than the server
            takes.
        """
        self._check_running("report its progress")
        job = self._job
        now = datetime.now(UTC)
        self._first_report = self._first_report or now
        record = Record(
            task_id=self.message.id,
            status=ResultStatus.PENDING,
            metadata=self._describe(progress, note, metadata),
            created_at=self._first_report,
            updated_at=now,
        )
        try:
            data = encode(record)
        except UnicodeError as exc:
            raise InvalidMessageError(f"a report holds text that is not Unicode: {exc}") from exc
        await trio.lowlevel.checkpoint()
        if job.scope is None or job.cut >= Cut.CANCELLED:
            return  # somebody else tells how the task ends
        job.delivery.check_report(data)
        if self._reports is None:
            self._reports = Paced(self._send, self._runner.background)
        self._reports.tell(data, record)

    def _send(self, data: bytes, record: Record) -> None:
        job = self._job
        if job.cut < Cut.CANCELLED:
            job.delivery.report(data)
            if job.ending is not None:
                job.ending.report(record)

    def _describe(self, progress: object, note: object, metadata: object) -> dict[str, str]:
        described = {_AGENT: self._runner.name, _ATTEMPT: str(self.attempt)}
        if progress is not None:
            if isinstance(progress, bool) or not isinstance(progress, int | float):
                raise TypeError(
                    f"progress must be a number from 0 to 1, or None, not {shorten(progress)}"
                )
            if not 0 <= progress <= 1:
                raise ValueError(f"progress must be from 0 to 1, not {shorten(progress)}")
            described[_PROGRESS] = str(progress)
        if not isinstance(note, str):
            raise TypeError(f"note must be a string, not {shorten(note)}")
        if note:
            described[_NOTE] = note
        if metadata is None:
            return described
        try:
            more = msgspec.convert(metadata, dict[str, str], strict=True)
        except msgspec.ValidationError as exc:
            raise TypeError(f"metadata {shorten(metadata)} must be of strings: {exc}") from exc
        if taken := sorted(_OWN & more.keys()):
            raise ValueError(f"metadata can't hold {taken[0]!r}, which is written by the library")
        return {**described, **more}

    def _check_running(self, what: str) -> None:
        if self._job.scope is None:
            raise RuntimeError(
                f"task {self.message.id} has ended at this worker, so nobody can {what}; finish "
                "what a handler has started before it returns"
            )


def end_reports(current: CurrentTask) -> None:
    """Its handler has ended: what that has reported is sent before what came of the task."""
    if current._reports is not None:
        current._reports.end()
