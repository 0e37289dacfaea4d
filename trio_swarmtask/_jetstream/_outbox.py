# A dispatcher's side: store tasks, hear of results, and find what was missed.
#
# One subscription hears the results of all tasks of a dispatcher: the stream republishes
# `done.<key>-17f4…` to `notify.<key>.17f4…`, after it was stored. A task whose ID the caller chose
# has a subject of its own there. `a--b` and `a-b` become one subject, so the header says whose
# result it is. A stream that somebody else made may not republish: then `done.<id>` itself is
# subscribed to. It also shows results that the stream refused, so a message there is only a hint to
# look.
#
# What is published during an outage is never heard. So after each reconnect, and now and then, the
# outstanding tasks are looked up. In each such sweep the stream itself is looked at too: an
# operator may have switched the republishing off or on. Then results are heard in the other way
# from then on; if that is not permitted, they are looked up every second.

from __future__ import annotations

import itertools
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .._abc import Outbox, ResultListener
from .._errors import BrokerError, ClosedError, SwarmTaskError
from .._nats._requests import refused_error, subscribe
from .._util import get_logger
from ._api import NO_ANSWER_YET
from ._cancel import Cancellation, Delivered, find_task
from ._cancel_many import Cancellations
from ._group_leases import GroupLeases
from ._portions import BATCH
from ._reports import Following
from ._results import ResultStore, result_id
from ._schedules import NATSTimetable
from ._tasks import LaterStore, TaskStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._abc import NewTask, Source, Withdrawal
    from .._nats._connection import Subscription
    from .._nats._error_lines import Refusal
    from .._nats._protocol import Incoming
    from .._sync import Background
    from ._streams import JetStream, ResultStream

logger: Final = get_logger("trio_swarmtask.nats")

# Seconds. What is republished in a partition is never heard, though the connection stands.
SWEEP_SECONDS: Final = 10.0

# Seconds. A cancelled task's result names its capability; a canceller waits no longer to find it.
_FIND_SECONDS: Final = 2.0
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 1.0


class NATSOutbox(Outbox):
    """Made by `NATSBroker`."""

    def __init__(
        self,
        jetstream: JetStream,
        looks: Background,
        stream: ResultStream,
        key: str,
        make_listener: Callable[[Outbox], ResultListener],
    ) -> None:
        self._jetstream = jetstream
        self._connection = jetstream.connection
        self._requests = jetstream.requests
        self._streams = jetstream.streams
        self._tasks = TaskStore(jetstream)
        self._later = LaterStore(jetstream)
        self.timetable = NATSTimetable(jetstream)
        self._results = ResultStore(jetstream)
        self._leases = GroupLeases(jetstream)
        self._delivered = Delivered(jetstream.requests)
        self._notifies = stream.notifies  # whether the stream republishes results
        self.hears_own_ids = stream.notifies
        self._key = key
        self._looks = looks  # ends with the outbox
        self._looking: dict[str, bool] = {}  # by task: whether there was another hint meanwhile
        self._closed = False
        self._watched: dict[str, Subscription] = {}
        self._unheard: dict[str, Refusal] = {}  # by task: why its result is not heard
        self._own: Subscription | None = None
        self._no_hints = False  # only look up: `done.*` is not republished, nor permitted
        self._no_notices = False  # only look up: this connection may not hear `notify.*`
        self._missed = trio.Event()
        self._listener = make_listener(self)

    async def store(self, task: NewTask, *, tried: bool = False) -> bool:
        self._check_heard(task.task_id)
        if task.not_before is not None:
            return await self._later.put(task, task.not_before, tried=tried)
        return await self._tasks.put(task, tried=tried)

    def store_soon(self, task: NewTask, on_end: Callable[[bool | None], None]) -> bool:
        return task.task_id not in self._unheard and self._tasks.put_soon(task, on_end)

    def expect(self, task_id: str) -> None:
        if self._no_hints:
            return
        parts = [part for part in task_id.split("-") if part]
        if self.hears_own_ids and parts:
            subject, callback = ".".join(["notify", *parts]), self._on_notify
        else:
            subject, callback = f"done.{task_id}", partial(self._on_hint, task_id)
        before = self._watched.get(task_id)
        self._watched[task_id] = self._connection.subscribe(subject, callback)
        if before is not None:
            self._connection.unsubscribe(before)

    def on_refused(self, refusal: Refusal) -> None:
        # The refusal comes before the answer to whatever is asked next: `fetch` or `store` finds it
        # in time.
        for task_id, subscription in self._watched.items():
            if refusal.is_of(subscription):
                self._unheard[task_id] = refusal
        if refusal.is_of(self._own):
            # It was permitted before: the permissions were changed, or the limit of subscriptions.
            self._no_notices = True
            self._tell_unheard(refused_error(self._connection, refusal))
            self._missed.set()

    def _tell_unheard(self, exc: BrokerError) -> None:
        logger.warning("results are not heard, and looked up every second: %s", exc)

    def _check_heard(self, task_id: str) -> None:
        if task_id in self._unheard:
            raise refused_error(self._connection, self._unheard[task_id])

    def forget(self, task_id: str) -> None:
        self._unheard.pop(task_id, None)
        subscription = self._watched.pop(task_id, None)
        if subscription is not None:
            self._connection.unsubscribe(subscription)

    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        return Following(self._requests, task_id, on_report)

    async def fetch(self, task_id: str) -> bytes | None:
        data = await self._requests.lifetime.run(partial(self._fetch, task_id))
        if data is None:
            self._check_heard(task_id)
        return data

    async def _fetch(self, task_id: str) -> bytes | None:
        data = await self._results.get(task_id)
        await self._connection.wait_certain()
        return data

    async def store_result(self, task_id: str, result: bytes) -> bytes:
        return await self._requests.lifetime.run(partial(self._results.put, task_id, result))

    async def find(self, task_id: str) -> str | None:
        look = partial(find_task, self._requests, task_id)
        find = partial(self._streams.persist, f"find task {task_id}", look)
        # If this user may not look, the call that needs the answer says so.
        with trio.move_on_after(_FIND_SECONDS), suppress(BrokerError):
            return await self._requests.lifetime.run(find)
        return None

    async def withdraw(
        self, capability: str | None, task_id: str, grace: float, *, never_delayed: bool
    ) -> bool | None:
        self._requests.lifetime.check()
        cancellation = Cancellation(
            self._jetstream, self._delivered, task_id, never_delayed=never_delayed
        )
        return await self._requests.lifetime.run(partial(cancellation.withdraw, capability, grace))

    async def withdraw_many(self, withdrawals: Sequence[Withdrawal], grace: float) -> None:
        together = Cancellations(self._requests, self._results, self._delivered, withdrawals)
        try:
            with suppress(SwarmTaskError):  # the single cancellation of each will say so
                await self._requests.lifetime.run(partial(together.withdraw, grace))
            together.leave_rest()
        finally:
            together.close()

    async def renew_group_lease(self, name: str) -> float:
        return await self._requests.lifetime.run(partial(self._leases.renew, name))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._looks.cancel()
            self._requests.close(ClosedError("the dispatcher was closed meanwhile"))

    # Hearing of results

    def _on_notify(self, message: Incoming) -> None:
        self._listener.result_stored(result_id(message), message.data)

    def _on_hint(self, task_id: str, message: Incoming) -> None:
        if task_id in self._looking:
            self._looking[task_id] = True
        elif not self._closed:
            self._looking[task_id] = False
            self._looks.start_soon(self._look, task_id)

    async def _look(self, task_id: str) -> None:
        # The hint may come before the stream has stored the result, or be about one that it
        # refuses. One look at a time for each task: anybody may give any number of hints.
        pause = _FIRST_LOOK
        try:
            while task_id in self._listener.outstanding():
                self._looking[task_id] = False
                data = await self._requests.lifetime.run(partial(self._results.get, task_id))
                if data is not None:
                    self._listener.result_stored(task_id, data)
                elif pause > _LAST_LOOK and not self._looking[task_id]:
                    return  # the sweep goes on looking
                await trio.sleep(min(pause, _LAST_LOOK))
                pause *= 2
        finally:
            del self._looking[task_id]

    # What was missed

    async def begin(self) -> None:
        """Subscribe; returns when the server listens for us."""
        self._own = await self._subscribe(notifies=self._notifies)

    async def _subscribe(self, *, notifies: bool) -> Subscription:
        if notifies:
            return await subscribe(self._requests, f"notify.{self._key}.>", self._on_notify)
        # `expect` subscribes to one task's result after the other. This subscription shows whether
        # that is permitted. No task has that ID, so what comes there is nobody's result.
        return await subscribe(self._requests, f"done.{self._key}-0", _ignore)

    async def find_missed(self) -> None:
        """Look up what is outstanding, after each reconnect and now and then, until closed."""
        while True:
            unheard = self._no_hints or self._no_notices
            with trio.move_on_after(_LAST_LOOK if unheard else SWEEP_SECONDS):
                await self._missed.wait()
            self._missed = trio.Event()
            await self._connection.wait_up()
            try:
                await self._sweep()
            except BrokerError as exc:
                if self._connection.lost is not None:
                    raise
                # New results still reach us, unless there is an outage.
                logger.warning("results that were missed can't be looked up: %s", exc)

    async def _sweep(self) -> None:
        await self._look_up_all()
        if await self._hear_otherwise():
            await self._look_up_all()  # results from before that

    async def _look_up_all(self) -> None:
        task_ids = iter(list(self._listener.outstanding()))
        while batch := dict.fromkeys(itertools.islice(task_ids, BATCH)):
            while batch:
                await self._results.get_some(batch, self._listener.result_stored)
                outstanding = self._listener.outstanding()
                for heard in [task_id for task_id in batch if task_id not in outstanding]:
                    del batch[heard]  # by its notice, while this took long

    async def _hear_otherwise(self) -> bool:
        """Hear results in the other way if the stream was changed; return whether they are."""
        try:
            stream = await self._streams.look_at_results()
        except NO_ANSWER_YET:
            return False  # the next sweep looks again
        if self._own is None or stream.notifies == self._notifies:
            return False
        self._notifies = stream.notifies
        try:
            own = await self._subscribe(notifies=stream.notifies)
        except BrokerError as exc:
            if self._connection.lost is not None:
                raise
            self._no_hints = not stream.notifies  # else they are heard as before
            if self._no_hints:
                self._tell_unheard(exc)
            return self._no_hints
        before, self._own = self._own, own
        if before is None:  # the outbox has ended meanwhile
            self.end()
            return False
        self._connection.unsubscribe(before)
        self._no_hints, self.hears_own_ids = False, stream.notifies
        if not stream.notifies:
            self._listener.own_ids_unheard()
        return True

    def on_down(self) -> None:
        if self._connection.lost is not None:
            self._listener.broker_lost(self._connection.lost_error())
        self._no_notices = False  # the next connection may be permitted it
        self._missed.set()

    def end(self) -> None:
        for task_id in list(self._watched):
            self.forget(task_id)
        own, self._own = self._own, None
        if own is not None:
            self._connection.unsubscribe(own)


def _ignore(_: Incoming) -> None: ...
