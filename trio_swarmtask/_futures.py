# The futures that a dispatcher holds.
#
# Invariant: a future is here from before its task is published until it is resolved, failed, or
# given up by everyone who held it; no longer, no less.
#
# A task may be cancelled by others: its result says so, and its handler may be cleaning up still.
# The groups here wait for its end as for what they cancel themselves. Where no group has the task,
# its worker is asked when somebody first looks at the result; a result that nobody looks at, and
# one that says anything else, costs nothing. Whoever asks cancels it once more, which changes
# nothing, and finishes what the other may have left half done: it may have died. But much later the
# ID may be that of another task; so the result is looked up first.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from ._broker import ResultListener
from ._cancelled import encode_cancelled, find_capability
from ._errors import ClosedError, SwarmTaskError
from ._future import Future, Holder, make_future
from ._wire import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ._broker import Outbox
    from ._errors import BrokerError
    from ._source import Source

logger: Final = logging.getLogger("trio_swarmtask.dispatcher")

# For so long the end of a handler is waited for that somebody else has cancelled. Nobody waits for
# that; it is for a worker that has died meanwhile.
_CLEAN_UP_SECONDS: Final = 600.0


class Futures(ResultListener, Holder):
    """Futures that wait for their results, by task."""

    def __init__(self, name: str, on_lost: Callable[[BrokerError], None]) -> None:
        self.waiting: dict[str, Future] = {}
        # See `DispatcherStatistics`.
        self.started = self.starting = self.attached = self.resolved = self.given_up = 0
        self.outbox: Outbox  # both set by host_dispatcher before there is a future
        self.asking: trio.Nursery | None = None  # until the dispatcher is closed
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

    def key_unheard(self) -> None:
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

    def confirm(self, future: Future) -> None:
        """It is started, for sure."""
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
            raise type(future._error)(*future._error.args)
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
        # Another call may know more, unless a worker has told this one that it runs.
        future._stopped = stopped or (stopped is None and future._stopped is True)
        return bool(stopped)

    async def _stop(self, future: Future, grace: float) -> bool | None:
        if future._capability is None:  # where it is counts for more than what the result says
            assert future._result is not None
            found = await self.outbox.find(future.id)
            future._capability = found or find_capability(future._result)
        return await self.outbox.stop(future._capability, future.id, grace, due=future._due)

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
