# What a dispatcher is made of, and how it is closed.
#
# Pure Trio: the outbox's callback resolves the future, and no task here waits for it.
#
# Closing has an order: no new work, then cancel what open groups and maps have, which needs the
# connection, then end what waits. A task that was started by itself is nobody's: it goes on.

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from ._errors import BrokerError, ClosedError, SwarmTaskError
from ._futures import Futures
from ._names import check_timeout, make_key
from ._starter import Starter
from ._statistics import DispatcherStatistics

if TYPE_CHECKING:
    from ._broker import Outbox
    from ._wire import Message


class OpenGroup(Protocol):
    """A group, or a map: its tasks are to end before their dispatcher does."""

    _time_to_stop: float

    async def _close(self, error: SwarmTaskError) -> None: ...


class DispatcherBase:
    """A dispatcher without the ways to start tasks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._key = make_key()
        self._futures = Futures(name, self._end)
        self._starter = Starter(name, self._key, self._futures)
        self._closing = False
        self._ended: SwarmTaskError | None = None
        self._outbox: Outbox  # set by host_dispatcher before anyone sees the dispatcher
        self._groups: set[OpenGroup] = set()  # that are open, those of maps too
        self._aborted = 0
        self._host: DispatcherBase | None = None  # of a worker, of which this is one task's view
        self._parent: Message | None = None  # that task

    def __repr__(self) -> str:
        return f"<Dispatcher {self._name!r}, {len(self._futures.waiting)} outstanding>"

    def _check_open(self) -> None:
        if self._closing or self._ended is not None:
            raise self._closed_error()
        if self._host is not None:
            self._host._check_open()

    def _check_own(self) -> None:
        if self._host is not None:
            raise RuntimeError(
                "this dispatcher is the worker's, which closes it once its handlers have ended; "
                "nothing is to be closed here"
            )

    async def shutdown(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the deadline's name
        """Take no new work, and wait for the outstanding futures.

        Args:
          timeout: Seconds; below 0 is 0. What is outstanding then is aborted, as by `aclose`, which
            takes its own time.

        Raises:
          trio.TooSlowError: if something was aborted. Also closed if cancelled.
        """
        self._check_own()
        timeout = check_timeout(timeout)
        self._closing = True
        waiting_for = len(self._futures.waiting)
        try:
            with trio.move_on_after(timeout):
                await trio.lowlevel.checkpoint()
                await self._futures.wait_none()
        finally:
            await self._close()  # noqa: ASYNC102 - it has a shield
        if waiting_for and self._aborted:
            raise trio.TooSlowError(
                f"{self._aborted} tasks were outstanding when the dispatcher was closed, after "
                f"{timeout:g} seconds at most"
            )

    async def aclose(self) -> None:
        """Take no new work, and abort what is outstanding: its waiters get `ClosedError`.

        Tasks that were started one by one go on. Those of open groups and maps are cancelled first,
        and their handlers' clean-up is waited for: for the group's ``grace``, and five seconds that
        telling may take. Their block then raises `ClosedError`. Also closed if cancelled.
        """
        self._check_own()
        await self._close()
        await trio.lowlevel.checkpoint()

    def statistics(self) -> DispatcherStatistics:
        """Counts at this moment."""
        futures = self._futures
        return DispatcherStatistics(
            outstanding=len(futures.waiting),
            started=futures.started,
            starting=futures.starting,
            attached=futures.attached,
            resolved=futures.resolved,
            given_up=futures.given_up,
        )

    async def _close(self) -> None:
        """End, and before that, while there is a connection, the tasks of groups and maps."""
        self._closing = True
        if self._ended is not None:
            return
        self._aborted = max(self._aborted, len(self._futures.waiting))
        error = ClosedError("the dispatcher was closed before the result came")
        try:
            if groups := list(self._groups):
                time_to_stop = max(group._time_to_stop for group in groups)
                with trio.move_on_after(time_to_stop, shield=True):
                    async with trio.open_nursery() as nursery:
                        for group in groups:
                            nursery.start_soon(group._close, error)
        finally:
            self._end(error)

    def _end(self, error: SwarmTaskError) -> None:
        if self._ended is not None:
            return
        self._ended = error
        self._outbox.close()
        self._aborted = max(self._aborted, self._futures.fail_all(error))

    def _closed_error(self) -> SwarmTaskError:
        if isinstance(self._ended, BrokerError):
            return type(self._ended)(*self._ended.args)
        return ClosedError("the dispatcher is closed; open another one to start tasks")
