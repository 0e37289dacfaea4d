# The core of a dispatcher: how a task gets from it to the broker, and how it is closed.
#
# Pure Trio: the outbox's callback resolves a task's future, and no Trio task waits for it.
#
# Two IDs are told apart. One that this dispatcher made is new by construction, and its result is
# heard through the key it begins with. One that the caller gave may be known already, so its result
# is listened for, then looked up, and only then is the task published: in this order nothing slips
# through.
#
# An ID that is made here is `<key>-<number><secret>`. The key is in everything that the dispatcher
# sends, and the number is the next one; without a secret whoever may start any task at all could
# start one of the ID to come, and the broker would take this dispatcher's for that one. There is
# one dash, at which a server takes the ID apart to say whose it is. The secrets are all of one
# length, so no two numbers make the same ID.

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec
import trio

from .._abc import NewTask, ResultListener, Stop
from .._check import check_capability, check_task_id, make_secrets
from .._envelope import MessageEnvelope, encode
from .._errors import BrokerError, ClosedError, InvalidMessageError, SwarmTaskError
from .._message import Message, Result, encode_cancelled, find_capability
from .._schedule import check_not_before
from .._statistics import DispatcherStatistics
from .._util import fresh, shorten
from ._future import Future, Holder, make_future

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .._abc import Outbox, Source

logger: Final = logging.getLogger("trio_swarmtask.dispatcher")


# The IDs by which a task says which other one has started it.


@dataclass(frozen=True, slots=True)
class Chain:
    """What the tasks that one task or group starts have in common."""

    parent: str
    root: str
    correlation_id: str

    @classmethod
    def begin(cls, task_id: str) -> Self:
        """A new chain."""
        return cls(task_id, task_id, task_id)

    @classmethod
    def below(cls, message: Message) -> Self:
        """The chain of a task that starts others."""
        return cls(message.id, message.root or message.id, message.correlation_id or message.id)

    def fill(self, message: Message) -> Message:
        """A copy with its blank IDs filled; what is no message is the starter's to refuse."""
        if not isinstance(message, Message):
            return message
        return msgspec.structs.replace(
            message,
            parent=message.parent or self.parent,
            root=message.root or self.root,
            correlation_id=message.correlation_id or self.correlation_id,
        )


# Invariant: the futures of a dispatcher hold each from before its task is published until it is
# resolved, failed, or given up by everyone who held it.
#
# A task may be cancelled by others: its result says so, and its handler may be cleaning up still.
# The groups here wait for its end as for what they cancel themselves. Where no group has the task,
# its worker is asked when somebody first looks at the result; a result that nobody looks at, and
# one that says anything else, costs nothing. Whoever asks cancels it once more, which changes
# nothing, and finishes what the other may have left half done: it may have died. But much later the
# ID may be that of another task; so the result is looked up first.
# For so long the end of a handler is waited for that somebody else has cancelled. Nobody waits for
# that; it is for a worker that has died meanwhile.

_CLEAN_UP_SECONDS: Final = 600.0


class _Stop(Stop):
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


class Futures(ResultListener, Holder):
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
        self.started = self.starting = self.attached = self.resolved = self.given_up = 0
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
                self.confirm(future)  # it is stored, whatever the broker has said of that
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

    def hold(self, task_id: str, capability: str | None, *, attached: bool = False) -> Future:
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
        future._holders += 1
        return future

    def confirm(self, future: Future, receipt: bytes = b"") -> None:
        """It is started, for sure; ``receipt`` is that of the task, if it is known."""
        future._receipt = receipt or future._receipt
        if future._starting:  # else it was known before, or nobody holds it any more
            future._starting = False
            self.starting -= 1
            self.started += 1

    def expect(self, future: Future) -> None:
        """See that its result is heard, whatever its ID."""
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
        if future._is_failed():
            assert future._error is not None
            await trio.lowlevel.checkpoint()
            raise fresh(future._error)
        if future._is_resolved():
            await trio.lowlevel.checkpoint()
        else:
            future._stopped = False
            # The result is to say it: once the task is out of the queue, only those who know it can
            # ask its worker.
            future._capability = future._capability or await self.outbox.find(future.id)
            result = encode_cancelled(future.id, self._name, future._capability)
            self._resolve(future, await self.outbox.store_result(future.id, result))
        stopped = not future._was_cancelled() or await self._stop(future, grace)
        _note(future, stopped)
        return bool(stopped)

    async def cancel_many(
        self, futures: Collection[Future], grace: float, on_left: Callable[[Future], object]
    ) -> None:
        """As `cancel`, of many that have no result; ``on_left`` is told those it is to be done for.

        In any order, each as soon as that is known.
        """
        stops = []
        for future in futures:
            capability = future._capability
            if future._never_delayed and capability is not None:
                future._stopped = False
                result = encode_cancelled(future.id, self._name, capability)
                stops.append(_Stop(self, future, capability, result, on_left))
            else:
                on_left(future)
        await self.outbox.stop_many(stops, grace)

    async def _stop(self, future: Future, grace: float) -> bool | None:
        if future._capability is None:  # where it is counts for more than what the result says
            assert future._result is not None
            found = await self.outbox.find(future.id)
            future._capability = found or find_capability(future._result)
        return await self.outbox.stop(
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
        """End every wait; how many futures there were."""
        count = len(self.waiting)
        for future in list(self.waiting.values()):
            self._give_up(future)
            future._fail(error)
        return count

    async def wait_none(self) -> None:
        """Wait until there is none."""
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


class Start:
    """One task on its way to the broker, and the future of its result, which is held."""

    __slots__ = ("future", "own", "task")

    def __init__(self, future: Future, task: NewTask, *, own: bool) -> None:
        self.future = future
        self.task = task
        self.own = own  # nobody knows its ID yet


class Starter:
    """Stores the tasks of one dispatcher, with a chain in their blanks if they have one."""

    def __init__(self, core: Core, chain: Chain | None) -> None:
        self.outbox = core.outbox
        self.make_id = core.make_id
        self._name = core.name
        self._futures = core.futures
        self._chain = chain

    def prepare(
        self,
        capability: str,
        message: Message,
        deadline: float = math.inf,
        lease: str = "",
        not_before: datetime | None = None,
    ) -> Start:
        """A future that somebody holds, and the task that is to be stored for it.

        Raises:
          InvalidCapabilityError, InvalidMessageError: then nothing is held.
          TypeError, ValueError: the same, for `check_not_before`.
        """
        check_capability(capability)
        if not_before is not None:
            not_before = check_not_before(not_before)
        if self._chain is not None:
            message = self._chain.fill(message)
        if not isinstance(message, Message):
            raise InvalidMessageError(f"{shorten(message)} is not a Message")
        if message.id == "":
            task_id, own = self.make_id(), True
        else:
            task_id, own = message.id, False
            check_task_id(task_id)
        data = encode(message, MessageEnvelope, partial(self.fill, task_id))
        task = NewTask(
            capability, task_id, data, deadline, lease, is_new=own, not_before=not_before
        )
        future = self._futures.hold(task_id, capability)
        future._never_delayed = own and not_before is None
        return Start(future, task, own=own)

    async def store_soon(self, start: Start, on_stored: Callable[[], object] | None = None) -> bool:
        """Send, and wait for the result: it tells as much as the confirmation that was before it.

        ``on_stored`` is called when the confirmation comes.

        Returns:
          False if nothing was sent. True, and no result, if the confirmation is not there.
        """
        if not self.begin(start, on_stored):
            return False
        await start.future._park()
        return True

    def begin(self, start: Start, on_stored: Callable[[], object] | None = None) -> bool:
        """As `store_soon`, for who parks at the future then.

        It wakes as soon as it has a result, or is to be stored by `store` after all.
        """
        if not self.outbox.hears_own_ids:
            self._futures.expect(start.future)  # or it would be found by the next look-up only
        return self.outbox.store_soon(start.task, partial(self._on_end, start, on_stored))

    def _on_end(
        self, start: Start, on_stored: Callable[[], object] | None, new: bool | None
    ) -> None:
        future = start.future
        if new or future._is_resolved():
            self._futures.confirm(future, start.task.receipt)
            if on_stored is not None:
                on_stored()
        else:
            future._wake()

    def send(self, start: Start, on_end: Callable[[bool], None]) -> bool:
        """Begin `store`, and don't wait: ``on_end`` is told whether it is stored, once at most.

        If it is not, `store` has to finish it.

        Returns:
          False if nothing was sent.
        """
        future = start.future

        def on_answer(new: bool | None) -> None:
            stored = bool(new) or future._is_resolved()
            if stored:
                self._futures.confirm(future, start.task.receipt)
            on_end(stored)

        return (
            start.own
            and self.outbox.hears_own_ids
            and self.outbox.store_soon(start.task, on_answer)
        )

    async def store(self, start: Start, *, tried: bool = False) -> None:
        """Store it, unless it is known to the broker; return once that is confirmed."""
        future = start.future
        if not (start.own and self.outbox.hears_own_ids):
            self._futures.expect(future)
        # An ID of the caller's own may be known. In this order nothing slips through: listen,
        # look up, publish, and look up again if the broker knew it.
        known = not start.own and await self._futures.look_up(future)
        if not known and not await self.outbox.store(start.task, tried=tried):
            future._capability = None if not start.own else start.task.capability
            await self._futures.look_up(future)  # perhaps it is another capability's
        self._futures.confirm(future, start.task.receipt)

    def fill(self, task_id: str, envelope: MessageEnvelope) -> None:
        """Fill the blanks of an envelope."""
        envelope.id = task_id
        if envelope.created_at is None or envelope.submitted_at is None:
            now = datetime.now(UTC)
            envelope.created_at = envelope.created_at or now
            envelope.submitted_at = envelope.submitted_at or now
        if envelope.submitted_by == "":
            envelope.submitted_by = self._name


# Closing has an order: no new work, then cancel what open groups and maps have, which needs the
# connection, then end what waits. A task that was started by itself is nobody's: it goes on.


class OpenGroup(Protocol):
    """A group, or a map: its tasks are to end before their dispatcher does."""

    _time_to_stop: float

    async def _close(self, error: SwarmTaskError) -> None: ...


class Core:
    """What a dispatcher is, for its users, its groups and maps, and the handlers that share it."""

    def __init__(self, name: str, key: str, outbox: Outbox, asking: trio.Nursery) -> None:
        self.name = name
        self.key = key
        self.outbox = outbox
        self.futures = Futures(name, outbox, asking, self._end)
        self.groups: set[OpenGroup] = set()  # that are open, those of maps too
        self.ended: SwarmTaskError | None = None
        self._closing = False
        self._aborted = 0
        self._numbers = itertools.count(1)
        self._secrets = make_secrets()

    def __repr__(self) -> str:
        return f"<Dispatcher {self.name!r}, {len(self.futures.waiting)} outstanding>"

    def make_id(self, kind: str = "") -> str:
        """One that nobody else makes, or can guess."""
        return f"{self.key}-{kind}{next(self._numbers)}{next(self._secrets)}"

    def check_open(self) -> None:
        if self._closing or self.ended is not None:
            raise self._closed_error()

    async def shutdown(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the deadline's name
        """See `Dispatcher.shutdown`."""
        self._closing = True
        waiting_for = len(self.futures.waiting)
        try:
            with trio.move_on_after(timeout):
                await trio.lowlevel.checkpoint()
                await self.futures.wait_none()
        finally:
            await self.close()  # noqa: ASYNC102 - it has a shield
        if waiting_for and self._aborted:
            raise trio.TooSlowError(
                f"{self._aborted} tasks were outstanding when the dispatcher was closed, after "
                f"{timeout:g} seconds at most"
            )

    def statistics(self) -> DispatcherStatistics:
        """Counts at this moment."""
        futures = self.futures
        return DispatcherStatistics(
            outstanding=len(futures.waiting),
            started=futures.started,
            starting=futures.starting,
            attached=futures.attached,
            resolved=futures.resolved,
            given_up=futures.given_up,
        )

    async def close(self) -> None:
        """End, and before that, while there is a connection, the tasks of groups and maps."""
        self._closing = True
        if self.ended is not None:
            return
        self._aborted = max(self._aborted, len(self.futures.waiting))
        error = ClosedError("the dispatcher was closed before the result came")
        try:
            if groups := list(self.groups):
                time_to_stop = max(group._time_to_stop for group in groups)
                with trio.move_on_after(time_to_stop, shield=True):
                    async with trio.open_nursery() as nursery:
                        for group in groups:
                            nursery.start_soon(group._close, error)
        finally:
            self._end(error)

    def _end(self, error: SwarmTaskError) -> None:
        if self.ended is not None:
            return
        self.ended = error
        self.outbox.close()
        self._aborted = max(self._aborted, self.futures.fail_all(error))

    def _closed_error(self) -> SwarmTaskError:
        if isinstance(self.ended, BrokerError):
            return fresh(self.ended)
        return ClosedError("the dispatcher is closed; open another one to start tasks")
