# The dispatcher's hold on a result to come, and what it hears of the task's progress meanwhile.
#
# A future is resolved once, by the bytes of the stored result or by an error, and keeps that for
# good. The bytes are decoded by the first `wait`: a result that nobody waits for costs nothing.

from __future__ import annotations

import enum
import logging
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from .._envelope import Status
from .._errors import (
    BrokerError,
    ClosedError,
    InvalidMessageError,
    InvalidResultError,
    SwarmTaskError,
)
from .._message import Result
from .._record import Result as Record, ResultStatus, decode
from .._sync import Lifetime, LossyBuffer
from .._util import NoPublicConstructor, fresh, shorten

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .._abc import Source

logger: Final = logging.getLogger("trio_swarmtask.dispatcher")


class TaskState(enum.StrEnum):
    """What a `Future` knows of its task."""

    OUTSTANDING = "outstanding"
    """It has no result here: none yet, or the dispatcher was closed or lost before one came."""

    ENDED = "ended"
    """It has a result."""

    STOPPED = "stopped"
    """It was cancelled, and no handler of it runs any more, or ever did."""

    UNCONFIRMED = "unconfirmed"
    """It was cancelled, and its handler may be cleaning up, or run on: nobody says otherwise."""


class Holder(ABC):
    """What a future needs of the dispatcher that holds it."""

    @abstractmethod
    async def cancel(self, future: Future, grace: float) -> bool:
        """Cancel its task and wait so many seconds for the handler; whether that runs no more."""

    def ask(self, future: Future) -> None:  # noqa: B027 - where nobody can be asked, it is nothing
        """Find out whether the handler of a task that another has cancelled runs no more."""

    @abstractmethod
    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        """See `CanFollow.follow`."""


@final
class Future(metaclass=NoPublicConstructor):
    """One task's result to come. Made by `Dispatcher.start`."""

    __slots__ = (
        "__weakref__",
        "_capability",
        "_data",
        "_error",
        "_expected",
        "_holder",
        "_holders",
        "_id",
        "_never_delayed",
        "_receipt",
        "_result",
        "_starting",
        "_stopped",
        "_waiting",
        "_watchers",
    )

    def __init__(self, task_id: str, capability: str | None, holder: Holder) -> None:
        self._id = task_id
        self._capability = capability
        self._holder = holder
        self._data: bytes | None = None
        self._result: Result | None = None
        self._error: SwarmTaskError | None = None
        self._waiting: list[trio.lowlevel.Task] = []
        # Once cancelled here, or asked about: whether no handler runs any more.
        self._stopped: bool | None = None
        self._watchers: tuple[Callable[[Future], None], ...] = ()
        self._holders = 0
        self._starting = False  # it was made for a start, which has not ended yet
        self._expected = False
        self._never_delayed = False  # it was not kept for later, for sure
        self._receipt = b""  # `NewTask.receipt`

    def __repr__(self) -> str:
        return f"<Future of task {self._id}, {'resolved' if self._is_resolved() else 'waiting'}>"

    @property
    def id(self) -> str:
        """The task's ID."""
        return self._id

    @property
    def result(self) -> Result:
        """The task's stored result, once it is here: what `wait` returns, or raises.

        Raises:
          RuntimeError: if it is not here yet.
        """
        if not self._is_resolved():
            raise RuntimeError(f"task {self._id} has no result yet; await the future's wait()")
        return self._look()

    @property
    def state(self) -> TaskState:
        """What is known of the task.

        Of one that somebody else has cancelled, the dispatcher asks the workers whether its handler
        has ended, when its result is first looked at, here or by `wait` or `result`. Until there is
        an answer, it is ``unconfirmed``.
        """
        if not self._is_resolved() or self._is_failed():
            return TaskState.OUTSTANDING
        if not self._was_cancelled():
            return TaskState.ENDED
        self._look()
        return TaskState.STOPPED if self._stopped else TaskState.UNCONFIRMED

    async def wait(self) -> Result:
        """Wait for the task's stored result.

        May be called again, and from any number of tasks: it is the same result each time, also
        after the dispatcher was closed. Cancelling it loses nothing.

        Returns:
          The result; a handler's failure or timeout is one, see its ``status``.

        Raises:
          UnsupportedVersionError: if the result's envelope is of a newer version.
          ClosedError: if the dispatcher was closed before the result came.
          BrokerError: if the server was lost for good before the result came.
        """
        if self._is_resolved():
            await trio.lowlevel.checkpoint()
        while (
            not self._is_resolved()
        ):  # or `Starter.store_soon` woke it, which has a task more to do
            await self._park()
        return self._look()

    async def cancel(self) -> None:
        """Cancel the task, wherever it waits or runs.

        Returns once the task has its one stored result. If it had none, that is a failure which
        says that it was cancelled (`Result.cancelled_by`; `TaskCancelledError` from
        `Result.raise_for_status`), the task is out of the queue, and its worker was told to cancel
        the handler, which may still be cleaning up. A worker that can't be reached hears of it
        when it is back. A task that has ended keeps its result: nothing is done.

        Raises:
          ClosedError: if the dispatcher is closed, unless the result is here.
          BrokerError: if the server is lost for good, or does not permit it.
        """
        await self._holder.cancel(self, 0.0)

    def updates(self) -> Updates:
        """What the task's handler reports: ``async for update in future.updates()``.

        Each update is a `trio_swarmtask.results.Result` that is ``pending``: what
        `CurrentTask.report` sends, and what a publisher announces on the same subject. They come
        from when the iteration begins, or the ``async with`` block of what is returned is entered;
        not those before. It ends when the task has its result (then `wait` returns at once) or can
        get none any more (then `wait` says why). The subscription ends with it, or with the block.

        Delivery is at most once: a report that is sent during an outage is lost, and a reader who
        is slow misses the oldest beyond 16. What comes and is no update is logged once and skipped.

        Raises:
          BrokerError: from the iteration or the block, as it begins: if the server does not permit
            this user to subscribe to ``results.<task id>``.
        """
        return Updates._create(self, self._holder.follow)

    # The dispatcher's half

    def _take(self) -> Result:
        """What it was resolved by."""
        if self._result is None and self._error is None:
            self._decode()
        if self._error is not None:
            raise fresh(self._error) from self._error
        assert self._result is not None
        return self._result

    def _resolve(self, data: bytes) -> None:
        """Take the bytes of the stored result; only the first resolution counts."""
        if self._data is None and self._result is None and self._error is None:
            self._data = data
            if self._waiting:
                self._wake()
            if self._watchers:
                self._tell_watchers()

    def _fail(self, error: SwarmTaskError) -> None:
        """End every wait, also a later one, with ``error``."""
        if not self._is_resolved():
            self._error = error
            self._wake()
            self._tell_watchers()

    def _look(self) -> Result:
        """What it was resolved by, for somebody who may want to know more."""
        result = self._take()
        if result.status is Status.FAILED and self._stopped is None and result.cancelled_by:
            self._holder.ask(self)
        return result

    def _was_cancelled(self) -> bool:
        """Whether it is resolved by the result of a task that was cancelled."""
        if self._data is not None:
            self._decode()
        return self._result is not None and self._result.cancelled_by != ""

    def _is_failed(self) -> bool:
        """Whether it can get no result any more."""
        return isinstance(self._error, ClosedError | BrokerError)

    def _is_resolved(self) -> bool:
        return self._data is not None or self._result is not None or self._error is not None

    async def _park(self) -> None:
        # As trio.Event does it, without one for each of the many futures that one task waits for.
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self) -> None:
        for task in self._waiting:
            trio.lowlevel.reschedule(task)
        self._waiting.clear()

    def _watch(self, watcher: Callable[[Future], None]) -> None:
        """Call it when the task has a result, or can't get one any more."""
        self._watchers += (watcher,)

    def _unwatch(self, watcher: Callable[[Future], None]) -> None:
        if self._watchers:
            self._watchers = tuple(one for one in self._watchers if one != watcher)

    def _tell_watchers(self) -> None:
        while self._watchers:  # one may take away another
            watcher, self._watchers = self._watchers[0], self._watchers[1:]
            try:
                watcher(self)
            except Exception as exc:  # the others are to hear of it all the same
                logger.error("a watcher of task %s has failed", self._id, exc_info=exc)

    def _decode(self) -> None:
        assert self._data is not None
        try:
            result = Result.decode(self._data)
            if result.id not in ("", self._id):
                raise InvalidMessageError(f"it is that of task {shorten(result.id)}")
            self._result = result
        except InvalidMessageError as exc:
            # An answer all the same: whoever waits must hear that the task ended.
            self._result = Result(
                id=self._id, status=Status.FAILED, error=f"the stored result can't be read: {exc}"
            )
        except SwarmTaskError as exc:
            self._error = exc
        self._data = None


# As `Future._create`, which is not for users, without a frame for each future.
make_future: Final = partial(type.__call__, Future)

# Progress is heard by no generator, and no task: an object that anybody may drop half way. Its
# subscription ends with the future that it is of, whichever way that ends, or before, when it is
# closed.

# Reports that wait for a slow reader.
_BUFFER_SIZE: Final = 16


@final
class Updates(metaclass=NoPublicConstructor):
    """What the handler of a task reports, as it comes. Made by `Future.updates`.

    ``async for`` it, or ``async with`` it first to end it before the task does.
    """

    def __init__(
        self, future: Future, follow: Callable[[str, Callable[[bytes], None]], Source]
    ) -> None:
        self._future = future
        self._source = follow(future.id, self._hear)
        self._buffer: LossyBuffer[Record] = LossyBuffer(_BUFFER_SIZE)
        self._lifetime = Lifetime()
        self._entering = trio.Lock()
        self._entered = False
        self._has_told = False

    async def aclose(self) -> None:
        """End the iteration now; what was not read is dropped."""
        self._close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        if not self._entered:
            await self._enter()
        return await self._buffer.get()

    async def _enter(self) -> None:
        async with self._entering:  # several tasks may begin to read
            if self._entered or self._lifetime.is_over:
                return
            if self._future._is_resolved():
                self._end()
                return
            self._future._watch(self._on_future_end)
            try:
                await self._lifetime.run(self._source.__aenter__)
                self._entered = True
            except SwarmTaskError:
                if not self._lifetime.is_over:  # else it ends as the future does, which says why
                    raise
            finally:
                if not self._entered:
                    self._future._unwatch(self._on_future_end)
                elif self._lifetime.is_over:  # in the moment in which it began
                    self._source.end()

    def _hear(self, data: bytes) -> None:
        try:
            record = decode(data, self._future.id)
        except InvalidResultError as exc:
            if not self._has_told:
                self._has_told = True
                logger.error("skipped what came as progress of task %s: %s", self._future.id, exc)
            return
        if record.status is ResultStatus.PENDING:
            self._buffer.put(record)

    def _on_future_end(self, _: Future) -> None:
        self._end()

    def _close(self) -> None:
        self._end(discard=True)

    def _end(self, *, discard: bool = False) -> None:
        self._future._unwatch(self._on_future_end)
        self._buffer.end(discard=discard)
        self._source.end()
        self._lifetime.end(partial(_Ended, "the task has ended"))


class _Ended(SwarmTaskError):
    """Never seen by users."""
