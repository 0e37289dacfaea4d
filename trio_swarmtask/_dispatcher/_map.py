# Many tasks, and their results as they come: a group that starts its tasks by itself.
#
# One Trio task, the feeder, takes the messages and starts their tasks. A result costs no Trio task
# of its own: its future puts it where the reader looks. A place is taken before a message is, and
# is free again once its result was read; so the number of places bounds all that is held here.
#
# An async generator runs in the feeder, and may have a cancel scope of its own open between two
# messages. A task must leave its scopes in reverse order, so the feeder keeps none open meanwhile.

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final, Self, final

import trio

from .._errors import BrokerError, ClosedError
from .._interrupts import block
from .._util import flatten, get_logger, shorten
from ._future import result_of, take
from ._group import SAME_TIME, was_cut_off

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .._message import Message, Result
    from ._core import Start
    from ._future import Future
    from ._group import Child, GroupTasks

logger: Final = get_logger("trio_swarmtask.map")

Messages = Iterable["Message"] | AsyncIterable["Message"]
_END: Final = object()

# After so many messages taken, or results read, without a wait, other Trio tasks may run. A pause
# for each would cost a quarter of the rate.
_BURST: Final = 32


class Place:
    """What has come of one message: a future that is resolved, or an error."""

    __slots__ = ("ended", "outcome")

    def __init__(self) -> None:
        self.ended = False
        self.outcome: Future | Exception | None = None  # until it is read

    def take(self) -> Future | Exception:
        """The outcome, removed here: the future refers to its place, and that would keep it."""
        assert self.outcome is not None
        outcome, self.outcome = self.outcome, None
        return outcome


@final
class MapResults:
    """The results of `Dispatcher.map`. Several tasks may iterate: each result goes to one."""

    def __init__(
        self, tasks: GroupTasks, capability: str, messages: Messages, limit: int, *, ordered: bool
    ) -> None:
        self._tasks = tasks
        self._capability = capability
        self._messages = messages
        self._limit = limit
        self._ordered = ordered
        self._places: deque[Place] = deque()  # ordered: all; else those that have an outcome
        self._taken = 0
        self._used = 0  # places
        self._unpaused = 0  # results that were read without a pause
        self._taking = True
        self._left = False
        self.unread: list[Exception] = []  # errors that came too late
        self._readers = trio.lowlevel.ParkingLot()
        self._feeder = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<results of a map over {self._capability!r}, {self._used} places taken>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        self._check_open()
        if self._is_ready() or self._is_over():
            self._unpaused += 1
            if self._unpaused % _BURST:
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                await trio.lowlevel.checkpoint()
        while not self._is_ready():
            self._check_open()
            if self._is_over():
                raise StopAsyncIteration
            await self._readers.park()
        outcome = self._places.popleft().take()
        self._used -= 1
        if self._feeder:
            self._feeder.unpark()
        if self._readers and (self._is_ready() or self._is_over()):
            self._readers.unpark_all()
        if isinstance(outcome, Exception):
            raise outcome
        return take(outcome)

    def _check_open(self) -> None:
        if self._left:
            raise ClosedError("the block of this map was left; its results are read inside of it")

    def _is_ready(self) -> bool:
        return bool(self._places) and self._places[0].ended

    def _is_over(self) -> bool:
        return not self._taking and self._used == 0

    # The feeder

    async def _feed(self) -> None:
        try:
            await self._take_all()
        except Exception as exc:  # noqa: BLE001 - an iterable of the user's may raise anything
            self._fail(exc)
        # Not reached if it was cancelled or interrupted: then the readers are cancelled, too.
        self._taking = False
        self._readers.unpark_all()

    async def _take_all(self) -> None:
        if not isinstance(self._messages, AsyncIterable):
            iterator = iter(self._messages)
            while (self._can_take() or await self._wait_place()) and (
                message := next(iterator, _END)
            ) is not _END:
                start = self._begin(message)
                if start is not None:
                    await self._store(*start)
            return
        source = aiter(self._messages)
        # A generator is closed by the task that has run it, and with no scope round the closing.
        async with aclosing(source) if isinstance(source, AsyncGenerator) else nullcontext():
            while (self._can_take() or await self._wait_place()) and (
                message := await anext(source, _END)
            ) is not _END:
                start = self._begin(message)
                if start is not None:
                    await self._store(*start)

    def _can_take(self) -> bool:
        """Whether there is a place, and no reason to look further."""
        return self._used < self._limit and self._taking and self._taken % _BURST != 0

    async def _wait_place(self) -> bool:
        """Wait for a place; False once there was an error."""
        if self._used < self._limit:
            await trio.lowlevel.checkpoint()
        while self._taking and self._used >= self._limit:
            await self._feeder.park()
        return self._taking

    def _begin(self, message: object) -> tuple[Place, Start, Child] | None:
        """Start the task of a message; what is returned is to be stored, and waited for."""
        tasks = self._tasks
        start, child = tasks.begin(self._capability, message, math.inf)  # type: ignore[arg-type]  # it looks
        future = start.future
        tasks.core.futures.release(future)  # the group holds it
        place = Place()
        self._taken += 1
        self._used += 1
        if self._ordered:
            self._places.append(place)
        child.watch(partial(self._on_end, place, start.task.deadline))
        if tasks.starter.send(start, partial(self._on_sent, place, start, child)):
            return None
        if start.own:
            return place, start, child
        tasks.nursery.start_soon(self._store, place, start, child)  # it takes several round trips
        return None

    def _on_sent(self, place: Place, start: Start, child: Child, stored: bool) -> None:
        if stored:
            child.confirm()
        elif child.future in self._tasks.all:
            self._tasks.nursery.start_soon(partial(self._store, place, start, child, tried=True))

    async def _store(
        self, place: Place, start: Start, child: Child, *, tried: bool = False
    ) -> None:
        try:
            await self._tasks.store(start, child, tried=tried)
        except Exception as exc:  # noqa: BLE001 - it is raised to the reader
            self._taking = False
            self._finish(place, exc)
            self._feeder.unpark_all()

    # Outcomes

    def _on_end(self, place: Place, deadline: float, future: Future) -> None:
        if self._left:
            return
        result = result_of(future)
        if result is not None and was_cut_off(result, deadline):
            self._tasks.nursery.start_soon(self._finish_late, place, deadline, future)
        else:
            self._finish(place, future)

    async def _finish_late(self, place: Place, deadline: float, future: Future) -> None:
        # A scope here has the same deadline: the reader is to hear of its cancellation instead.
        await trio.sleep_until(deadline + SAME_TIME)
        self._finish(place, future)

    def _finish(self, place: Place, outcome: Future | Exception) -> None:
        if place.ended or self._left:
            return
        place.ended = True
        place.outcome = outcome
        if not self._ordered:
            self._places.append(place)
        if self._readers and self._is_ready():
            self._readers.unpark()

    def _fail(self, error: Exception) -> None:
        """The messages ended with an error, which is read as one more result would be."""
        if self._left:
            self.unread.append(error)  # and `_finish` does nothing
        place = Place()
        self._used += 1
        if self._ordered:
            self._places.append(place)
        self._finish(place, error)

    # Leaving

    def _leave(self) -> None:
        """Start and read no more."""
        outcomes = [place.outcome for place in self._places]
        self.unread += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        self._left = True
        self._taking = False
        self._places.clear()
        self._readers.unpark_all()
        self._tasks.nursery.cancel_scope.cancel()


def check_messages(messages: object) -> None:
    if isinstance(messages, AsyncIterable | Iterable):
        return
    if inspect.iscoroutine(messages):
        messages.close()
        raise TypeError(f"{shorten(messages)} has to be awaited: pass the messages that it returns")
    raise TypeError(
        f"messages must be an iterable or an async iterable of Message, not {shorten(messages)}"
    )


@block
@asynccontextmanager
async def open_map(
    opening: AbstractAsyncContextManager[GroupTasks],
    capability: str,
    messages: Messages,
    limit: int,
    *,
    ordered: bool,
) -> AsyncIterator[MapResults]:
    unread: list[Exception] = []
    try:
        async with flatten(opening) as tasks:
            results = MapResults(tasks, capability, messages, limit, ordered=ordered)
            unread = results.unread
            tasks.nursery.start_soon(results._feed)
            try:
                yield results
            finally:
                results._leave()
    except BaseException:
        _log(unread)
        raise
    if unread:
        _log(unread[1:])
        raise unread[0]


def _log(unread: list[Exception]) -> None:
    for error in unread:
        if not isinstance(error, ClosedError | BrokerError):  # those end everything else, too
            logger.warning("a map was left before its error was read", exc_info=error)
