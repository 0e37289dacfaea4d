# The core of a dispatcher: how a task gets from it to the broker, and how it is closed.
#
# Pure Trio: the outbox's callback resolves a task's future, and no Trio task waits for it.
#
# There are two kinds of IDs. An ID that this dispatcher made is new by construction, and its result
# is heard through the key it begins with. An ID that the caller gave may be known already, so its
# result is listened for, then looked up, and only then is the task published: in this order no
# result is missed.
#
# An ID that is made here is `<key>-<number><secret>`. The key is in everything that the dispatcher
# sends, and the number is the next one; without a secret, anybody who may start any task could
# start one with the next ID, and the broker would take this dispatcher's task for that one. There
# is one dash, at which a server splits the ID to say whose it is. The secrets are all of one
# length, so no two numbers make the same ID.

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec
import trio

from .._abc import NewTask
from .._check import check_capability, check_task_id, make_secrets
from .._envelope import MessageEnvelope, encode
from .._errors import BrokerError, ClosedError, InvalidMessageError, SwarmTaskError
from .._message import Message
from .._schedule import check_not_before
from .._statistics import DispatcherStatistics
from .._util import fresh, get_logger, shorten
from ._future import Future, Futures, is_resolved, park, wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._abc import Outbox

logger: Final = get_logger("trio_swarmtask.dispatcher")


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
        """A copy with its blank IDs filled; the starter refuses what is no message."""
        if not isinstance(message, Message):
            return message
        return msgspec.structs.replace(
            message,
            parent=message.parent or self.parent,
            root=message.root or self.root,
            correlation_id=message.correlation_id or self.correlation_id,
        )


class Start:
    """One task on its way to the broker, and the future of its result, which is held."""

    __slots__ = ("future", "own", "task")

    def __init__(self, future: Future, task: NewTask, *, own: bool) -> None:
        self.future: Future = future
        self.task: NewTask = task
        self.own: bool = own  # nobody knows its ID yet


class Starter:
    """Stores the tasks of one dispatcher, with a chain in their blanks if they have one."""

    def __init__(self, core: Core, chain: Chain | None) -> None:
        self.outbox: Outbox = core.outbox
        self.make_id: Callable[[], str] = core.make_id
        self._name = core.name
        self._futures = core.futures
        self._chain = chain

    def prepare(
        self,
        capability: str,
        message: Message,
        deadline: float = math.inf,
        group_lease: str = "",
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
            capability, task_id, data, deadline, group_lease, is_new=own, not_before=not_before
        )
        future = self._futures.hold(task_id, capability, never_delayed=own and not_before is None)
        return Start(future, task, own=own)

    async def store_soon(self, start: Start, on_stored: Callable[[], object] | None = None) -> bool:
        """Send, and wait for the result: it says as much as the confirmation that comes before it.

        ``on_stored`` is called when the confirmation comes.

        Returns:
          False if nothing was sent. True, without a result, if no confirmation came.
        """
        if not self.begin(start, on_stored):
            return False
        await park(start.future)
        return True

    def begin(self, start: Start, on_stored: Callable[[], object] | None = None) -> bool:
        """As `store_soon`, for a caller who then parks at the future.

        The future wakes its waiters when it has a result, or when `store` is to store the task.
        """
        if not self.outbox.hears_own_ids:
            self._futures.expect(start.future)  # else only a look-up finds it
        return self.outbox.store_soon(start.task, partial(self._on_end, start, on_stored))

    def _on_end(
        self, start: Start, on_stored: Callable[[], object] | None, new: bool | None
    ) -> None:
        future = start.future
        if new or is_resolved(future):
            self._futures.confirm(future, start.task.receipt)
            if on_stored is not None:
                on_stored()
        else:
            wake(future)

    def send(self, start: Start, on_end: Callable[[bool], None]) -> bool:
        """Begin `store`, and don't wait: ``on_end`` is told whether it is stored, once at most.

        If it is not, `store` has to finish it.

        Returns:
          False if nothing was sent.
        """
        future = start.future

        def on_answer(new: bool | None) -> None:
            stored = bool(new) or is_resolved(future)
            if stored:
                self._futures.confirm(future, start.task.receipt)
            on_end(stored)

        return (
            start.own
            and self.outbox.hears_own_ids
            and self.outbox.store_soon(start.task, on_answer)
        )

    async def store(self, start: Start, *, tried: bool = False) -> None:
        """Store the task, unless the broker knows it; return once that is confirmed."""
        future = start.future
        if not (start.own and self.outbox.hears_own_ids):
            self._futures.expect(future)
        # An ID that the caller gave may be known. In this order no result is missed: listen, look
        # up, publish, and look up again if the broker knew it.
        known = not start.own and await self._futures.look_up(future)
        if not known and not await self.outbox.store(start.task, tried=tried):
            if not start.own:
                self._futures.doubt_capability(future)
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
# connection, then end what waits. A task that was started alone belongs to nobody: it goes on.


class OpenGroup(Protocol):
    """A group, or a map: its tasks are to end before their dispatcher does."""

    time_to_stop: float

    async def close(self, error: SwarmTaskError) -> None: ...


class Core:
    """What a dispatcher is, for its users, its groups and maps, and the handlers that share it."""

    def __init__(self, name: str, key: str, outbox: Outbox, asking: trio.Nursery) -> None:
        self.name = name
        self.key = key
        self.outbox = outbox
        self.futures: Futures = Futures(name, outbox, asking, self._end)
        self.groups: set[OpenGroup] = set()  # open groups, those of maps too
        self.ended: SwarmTaskError | None = None
        self._closing = False
        self._aborted = 0
        self._numbers = itertools.count(1)
        self._secrets = make_secrets()

    def __repr__(self) -> str:
        return f"<Dispatcher {self.name!r}, {len(self.futures.waiting)} outstanding>"

    def make_id(self, kind: str = "") -> str:
        """A new ID that nobody else makes, or can guess."""
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
        """Cancel the tasks of groups and maps while there is a connection, then end."""
        self._closing = True
        if self.ended is not None:
            return
        self._aborted = max(self._aborted, len(self.futures.waiting))
        error = ClosedError("the dispatcher was closed before the result came")
        try:
            if groups := list(self.groups):
                time_to_stop = max(group.time_to_stop for group in groups)
                with trio.move_on_after(time_to_stop, shield=True):
                    async with trio.open_nursery() as nursery:
                        for group in groups:
                            nursery.start_soon(group.close, error)
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
