# Results to come, and all of those that a dispatcher waits for.
#
# A future is resolved once, by the bytes of the stored result or by an error, and keeps that for
# good. The bytes are decoded by the first `wait`: a result that nobody waits for costs nothing.

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from .._abc import ResultListener, Withdrawal
from .._envelope import Status
from .._errors import BrokerError, ClosedError, InvalidMessageError, SwarmTaskError
from .._message import Result, encode_cancelled, find_capability
from .._util import NoPublicConstructor, fresh, get_logger, shorten
from ._updates import Updates

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .._abc import Outbox, Source

logger: Final = get_logger("trio_swarmtask.dispatcher")


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


@final
class Future(metaclass=NoPublicConstructor):
    """One task's result to come. Made by `Dispatcher.start`."""

    __slots__ = (
        "__weakref__",
        "_capability",
        "_data",
        "_error",
        "_expected",
        "_futures",
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

    def __init__(self, task_id: str, capability: str | None, futures: Futures) -> None:
        self._id = task_id
        self._capability = capability
        self._futures = futures
        self._data: bytes | None = None
        self._result: Result | None = None
        self._error: SwarmTaskError | None = None
        self._waiting: list[trio.lowlevel.Task] = []
        # Whether no handler runs any more. None: not cancelled here, nor asked about.
        self._stopped: bool | None = None
        self._watchers: tuple[Callable[[Future], None], ...] = ()
        self._holders = 0
        self._starting = False  # it was made for a start, which has not ended yet
        self._expected = False
        self._never_delayed = False  # for sure, the task was not kept for later
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
        if not self._is_resolved() or is_failed(self):
            return TaskState.OUTSTANDING
        if not was_cancelled(self):
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
        while not self._is_resolved():  # `Starter.begin` may have woken it early
            await park(self)
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
        await self._futures.cancel(self, 0.0)

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
        return Updates._create(
            self._id,
            self._futures.follow,
            self._is_resolved,
            partial(watch, self),
            partial(unwatch, self),
        )

    # The dispatcher's half

    def _is_resolved(self) -> bool:
        return self._data is not None or self._result is not None or self._error is not None

    def _resolve(self, data: bytes) -> None:
        """Take the bytes of the stored result; only the first resolution counts."""
        if self._data is None and self._result is None and self._error is None:
            self._data = data
            if self._waiting:
                wake(self)
            if self._watchers:
                self._tell_watchers()

    def _fail(self, error: SwarmTaskError) -> None:
        """End every wait, also a later one, with ``error``."""
        if not self._is_resolved():
            self._error = error
            wake(self)
            self._tell_watchers()

    def _look(self) -> Result:
        """The result, for a user: if others have cancelled the task, the workers are asked."""
        result = take(self)
        if result.status is Status.FAILED and self._stopped is None and result.cancelled_by:
            self._futures.ask(self)
        return result

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


# What other modules of this folder need of a future: functions, so that users don't see them.


is_resolved: Final = Future._is_resolved


def take(future: Future) -> Result:
    """The result that it was resolved by; raises the error, if it was one."""
    if future._result is None and future._error is None:
        future._decode()
    if future._error is not None:
        raise fresh(future._error) from future._error
    assert future._result is not None
    return future._result


def result_of(future: Future) -> Result | None:
    """What `take` would give, or has given; None if it would raise, or was not called yet."""
    return future._result


def was_cancelled(future: Future) -> bool:
    """Whether it is resolved by the result of a task that was cancelled."""
    if future._data is not None:
        future._decode()
    return future._result is not None and future._result.cancelled_by != ""


def is_failed(future: Future) -> bool:
    """Whether it can get no result any more."""
    return isinstance(future._error, ClosedError | BrokerError)


async def park(future: Future) -> None:
    # As trio.Event does it, but without an Event for each future: one task waits for many.
    task = trio.lowlevel.current_task()
    future._waiting.append(task)

    def abort(_: object) -> trio.lowlevel.Abort:
        future._waiting.remove(task)
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abort)


def wake(future: Future) -> None:
    for task in future._waiting:
        trio.lowlevel.reschedule(task)
    future._waiting.clear()


def mark_cancelled(future: Future) -> bool:
    """Note that somebody here waits for the end of its handler; whether that was noted before."""
    marked = future._stopped is not None
    if not marked:
        future._stopped = False
    return marked


def watch(future: Future, watcher: Callable[[Future], None]) -> None:
    """Call ``watcher`` when the task has a result, or can't get one any more."""
    future._watchers += (watcher,)


def unwatch(future: Future, watcher: Callable[[Future], None]) -> None:
    if future._watchers:
        future._watchers = tuple(one for one in future._watchers if one != watcher)


# As `Future._create`, which is not for users, without a frame for each future.
make_future: Final = partial(type.__call__, Future)


# Invariant: the futures of a dispatcher hold each from before its task is published until it is
# resolved, failed, or given up by everyone who held it.
#
# A task may be cancelled by others: its result says so, and its handler may be cleaning up still.
# The groups here wait for its end as for what they cancel themselves. Where no group has the task,
# its worker is asked when somebody first looks at the result; a result that nobody looks at, and
# one that says anything else, costs nothing. Asking means to cancel the task once more: this
# changes nothing, and finishes what the first canceller may have left half done, if it has died.
# But much later the ID may be that of another task; so the result is looked up first.

# Seconds to wait for the end of a handler that somebody else has cancelled. No user waits for it;
# the limit is for a worker that has died meanwhile.
_CLEAN_UP_SECONDS: Final = 600.0


class _Withdrawal(Withdrawal):
    """A future whose task is cancelled together with others."""

    def __init__(
        self,
        futures: Futures,
        future: Future,
        capability: str,
        result: bytes,
        on_left: Callable[[Future], object],
    ) -> None:
        self.capability = capability
        self.task_id = future.id
        self.receipt = future._receipt
        self.result = result
        self._futures = futures
        self._future = future
        self._on_left = on_left

    def stored(self) -> None:
        self._futures._resolve(self._future, self.result)

    def stopped(self, stopped: bool | None) -> None:
        _note(self._future, stopped)

    def left(self) -> None:
        self._on_left(self._future)


def _note(future: Future, stopped: bool | None) -> None:
    # Another call may know more, unless a worker has told this one that it runs.
    future._stopped = stopped or (stopped is None and future._stopped is True)


class Futures(ResultListener):
    """Futures that wait for their results, by task."""

    def __init__(
        self,
        name: str,
        outbox: Outbox,
        asking: trio.Nursery,
        on_lost: Callable[[BrokerError], None],
    ) -> None:
        self.waiting: dict[str, Future] = {}
        # See `DispatcherStatistics`.
        self.started: int = 0
        self.starting: int = 0
        self.attached: int = 0
        self.resolved: int = 0
        self.given_up: int = 0
        self.outbox = outbox
        self.asking: trio.Nursery | None = asking  # until the dispatcher is closed
        self._name = name
        self._on_lost = on_lost
        self._none_waiting = trio.Event()

    # What the broker tells

    def result_stored(self, task_id: str, data: bytes) -> None:
        future = self.waiting.pop(task_id, None)
        if future is not None:
            if future._starting:
                self.confirm(future)  # the task is stored, whatever the broker has said of it
            self.resolved += 1
            future._resolve(data)
            self._let_go(future)

    def outstanding(self) -> Collection[str]:
        return self.waiting

    def broker_lost(self, error: BrokerError) -> None:
        self._on_lost(error)

    def own_ids_unheard(self) -> None:
        for future in self.waiting.values():
            future._expected = True
            self.outbox.expect(future.id)

    # Holding

    def hold(
        self,
        task_id: str,
        capability: str | None,
        *,
        attached: bool = False,
        never_delayed: bool = False,
    ) -> Future:
        """The future of a task, for one more holder."""
        future = self.waiting.get(task_id)
        if future is None:
            future = make_future(task_id, capability, self)
            self.waiting[task_id] = future
            future._starting = not attached
            self.starting += future._starting
            self.attached += attached
        elif not attached and future._capability != capability:
            future._capability = None  # which of them the task has is to be looked up
        if not attached:
            future._never_delayed = never_delayed
        future._holders += 1
        return future

    def share(self, future: Future) -> None:
        """One more holder."""
        future._holders += 1

    def doubt_capability(self, future: Future) -> None:
        """Its task may be of another capability, which is to be looked up."""
        future._capability = None

    def confirm(self, future: Future, receipt: bytes = b"") -> None:
        """The task is started, for sure; ``receipt`` is its receipt, if known."""
        future._receipt = receipt or future._receipt
        if future._starting:  # else it was known before, or nobody holds it any more
            future._starting = False
            self.starting -= 1
            self.started += 1

    def expect(self, future: Future) -> None:
        """Make sure that its result is heard, whatever its ID."""
        if not future._expected:
            future._expected = True
            self.outbox.expect(future.id)

    async def look_up(self, future: Future) -> bool:
        """Resolve it if its result is stored."""
        data = await self.outbox.fetch(future.id)
        if data is None:
            return False
        self._resolve(future, data)
        return True

    def release(self, future: Future) -> None:
        """One holder less."""
        future._holders -= 1
        if future._holders == 0 and self.waiting.get(future.id) is future:
            self._give_up(future)

    async def cancel(self, future: Future, grace: float) -> bool:
        """See `Future.cancel`; then wait for the handler's clean-up, for ``grace`` seconds."""
        if is_failed(future):
            assert future._error is not None
            await trio.lowlevel.checkpoint()
            raise fresh(future._error)
        if is_resolved(future):
            await trio.lowlevel.checkpoint()
        else:
            future._stopped = False
            # The result is to name the capability: once the task is out of the queue, only those
            # who know its capability can ask its worker.
            future._capability = future._capability or await self.outbox.find(future.id)
            result = encode_cancelled(future.id, self._name, future._capability)
            self._resolve(future, await self.outbox.store_result(future.id, result))
        stopped = not was_cancelled(future) or await self._withdraw(future, grace)
        _note(future, stopped)
        return bool(stopped)

    async def cancel_many(
        self, futures: Collection[Future], grace: float, on_left: Callable[[Future], object]
    ) -> None:
        """As `cancel`, for many without a result; ``on_left`` gets those that still need `cancel`.

        In any order, each as soon as that is known.
        """
        withdrawals = []
        for future in futures:
            capability = future._capability
            if future._never_delayed and capability is not None:
                future._stopped = False
                result = encode_cancelled(future.id, self._name, capability)
                withdrawals.append(_Withdrawal(self, future, capability, result, on_left))
            else:
                on_left(future)
        await self.outbox.withdraw_many(withdrawals, grace)

    async def _withdraw(self, future: Future, grace: float) -> bool | None:
        if future._capability is None:  # its queue counts for more than what the result says
            assert future._result is not None
            found = await self.outbox.find(future.id)
            future._capability = found or find_capability(future._result)
        return await self.outbox.withdraw(
            future._capability, future.id, grace, never_delayed=future._never_delayed
        )

    def ask(self, future: Future) -> None:
        future._stopped = False
        assert future._result is not None
        future._capability = future._capability or find_capability(future._result)
        if self.asking is not None:
            self.asking.start_soon(self._ask, future)

    async def _ask(self, future: Future) -> None:
        try:
            data = await self.outbox.fetch(future.id)
            if data is not None and Result.decode(data) == future._result:
                await self.cancel(future, _CLEAN_UP_SECONDS)
        except SwarmTaskError as exc:
            logger.debug("can't ask whether task %s has ended: %s", future.id, exc)

    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        return self.outbox.follow(task_id, on_report)

    def forget(self, future: Future) -> None:
        """See `Dispatcher.forget`."""
        if self.waiting.get(future.id) is future:
            self.release(future)
            if future._holders == 0:
                future._fail(ClosedError(f"task {future.id} was forgotten by its dispatcher"))

    def fail_all(self, error: SwarmTaskError) -> int:
        """End every wait; return how many futures there were."""
        count = len(self.waiting)
        for future in list(self.waiting.values()):
            self._give_up(future)
            future._fail(error)
        return count

    async def wait_none(self) -> None:
        """Wait until no future waits for its result."""
        while self.waiting:
            if self._none_waiting.is_set():
                self._none_waiting = trio.Event()
            await self._none_waiting.wait()

    def _resolve(self, future: Future, data: bytes) -> None:
        self.result_stored(future.id, data)
        future._resolve(data)  # also if it was released meanwhile

    def _give_up(self, future: Future) -> None:
        del self.waiting[future.id]
        if future._starting:
            future._starting = False
            self.starting -= 1
        else:
            self.given_up += 1
        self._let_go(future)

    def _let_go(self, future: Future) -> None:
        if not self.waiting:
            self._none_waiting.set()
        if future._expected:
            self.outbox.forget(future.id)
