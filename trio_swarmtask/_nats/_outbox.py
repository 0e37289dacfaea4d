# A dispatcher's side: store tasks, hear of results, and find what was missed.
#
# Results are heard by one subscription for all the tasks of a dispatcher: the stream republishes
# `done.<key>-17f4…` to `notify.<key>.17f4…`, after it was stored. An ID of the caller's own has a
# subject of its own there. `a--b` and `a-b` fold to one subject, so the header says whose it is. A
# stream that was not made by us may not republish: then `done.<id>` itself is subscribed to, which
# also shows results that the stream refused; so that is only a hint to look.
#
# What is published while we are away is never heard. So after each reconnect, and now and then, the
# outstanding tasks are looked up.

from __future__ import annotations

import itertools
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .._broker import Outbox, ResultListener
from .._errors import BrokerError
from .._util import open_flat_nursery
from ._cancel import Cancellation
from ._delivered import Delivered
from ._later import LaterStore
from ._leases import Leases
from ._reports import Following
from ._requests import Requests, refused_error
from ._result_store import BATCH, ResultStore, result_id
from ._schedules import NATSTimetable
from ._subscribe import subscribe
from ._task_store import TaskStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.subscription import Subscription

    from .._broker import NewTask
    from .._source import Source
    from ._connection import Connection
    from ._incoming import Incoming
    from ._streams import ResultStream, Streams

logger: Final = logging.getLogger("trio_swarmtask.nats")

SWEEP_SECONDS: Final = 30.0
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 1.0


class NATSOutbox(Outbox):
    """Made by `NATSBroker`."""

    def __init__(
        self,
        connection: Connection,
        requests: Requests,
        streams: Streams,
        stream: ResultStream,
        key: str,
        listener: ResultListener,
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._streams = streams
        self._tasks = TaskStore(requests, streams)
        self._later = LaterStore(requests, streams)
        self.timetable = NATSTimetable(requests, streams)
        self._results = ResultStore(requests, streams)
        self._leases = Leases(requests, streams)
        self._delivered = Delivered(requests)
        self._stream = stream
        self.hears_key = stream.notifies
        self._key = key
        self._listener = listener
        self._looks: trio.Nursery
        self._looking: dict[str, bool] = {}  # by task: whether there was another hint meanwhile
        self._closed = False
        self._watched: dict[str, Subscription] = {}
        self._unheard: dict[str, str] = {}  # by task: the subject that may not be subscribed to
        self._own: Subscription | None = None
        self._missed = trio.Event()

    async def store(self, task: NewTask, *, tried: bool = False) -> bool:
        if task.task_id in self._unheard:
            raise refused_error(self._connection, f"subscribe to {self._unheard[task.task_id]}")
        if task.not_before is not None:
            return await self._later.put(task, task.not_before, tried=tried)
        return await self._tasks.put(task, tried=tried)

    def store_soon(self, task: NewTask, on_end: Callable[[bool | None], None]) -> bool:
        return task.task_id not in self._unheard and self._tasks.put_soon(task, on_end)

    def expect(self, task_id: str) -> None:
        parts = [part for part in task_id.split("-") if part]
        if self._stream.notifies and parts:
            subject, callback = ".".join(["notify", *parts]), self._on_notify
        else:
            subject, callback = f"done.{task_id}", partial(self._on_hint, task_id)
        self._watched[task_id] = self._connection.subscribe(subject, callback)

    def on_refused(self, action: str, subject: str) -> None:
        # The refusal comes before the answer to whatever is asked next: `store` finds it in time.
        for task_id, subscription in self._watched.items():
            if action == "subscription" and subscription.subject.lower() == subject:
                self._unheard[task_id] = subscription.subject

    def forget(self, task_id: str) -> None:
        self._unheard.pop(task_id, None)
        subscription = self._watched.pop(task_id, None)
        if subscription is not None:
            self._connection.unsubscribe(subscription)

    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        return Following(self._requests, task_id, on_report)

    async def fetch(self, task_id: str) -> bytes | None:
        return await self._requests.lifetime.run(partial(self._results.get, task_id))

    async def store_result(self, task_id: str, result: bytes) -> bytes:
        return await self._requests.lifetime.run(partial(self._results.put, task_id, result))

    async def stop(
        self, capability: str | None, task_id: str, grace: float, *, due: bool
    ) -> bool | None:
        self._requests.lifetime.check()
        cancellation = Cancellation(
            self._requests, self._streams, self._delivered, task_id, due=due
        )
        return await self._requests.lifetime.run(partial(cancellation.stop, capability, grace))

    async def renew_lease(self, name: str) -> float:
        return await self._requests.lifetime.run(partial(self._leases.renew, name))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._looks.cancel_scope.cancel()
            self._requests.close()

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
        # The hint may come before the stream has stored the result, or be of one that it refuses.
        # One look at a time for each task: anybody may give any number of hints.
        pause = _FIRST_LOOK
        try:
            while task_id in self._listener.outstanding():
                self._looking[task_id] = False
                data = await self.fetch(task_id)
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
        if self._stream.notifies:
            subject = f"notify.{self._key}.>"
            self._own = await subscribe(self._requests, subject, self._on_notify)
        else:
            # `expect` subscribes to one task's result after the other, and this one stands for all
            # of them: may we? No task has that ID, so what comes there is nobody's result.
            self._own = await subscribe(self._requests, f"done.{self._key}-0", _ignore)

    async def find_missed(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Look up what is outstanding, after each reconnect and now and then, until closed."""
        async with open_flat_nursery() as self._looks:
            task_status.started()
            while True:
                with trio.move_on_after(SWEEP_SECONDS):
                    await self._missed.wait()
                self._missed = trio.Event()
                await self._connection.wait_up()
                try:
                    await self._sweep()
                except BrokerError as exc:
                    if self._connection.lost is not None:
                        raise
                    # What is published reaches us all the same, unless there is an outage.
                    logger.warning("results that were missed can't be looked up: %s", exc)

    async def _sweep(self) -> None:
        task_ids = iter(list(self._listener.outstanding()))
        while batch := list(itertools.islice(task_ids, BATCH)):
            for task_id, data in (await self._results.get_many(batch)).items():
                self._listener.result_stored(task_id, data)

    def on_down(self) -> None:
        if self._connection.lost is not None:
            self._listener.broker_lost(self._connection.lost_error())
        self._missed.set()

    def end(self) -> None:
        for task_id in list(self._watched):
            self.forget(task_id)
        if self._own is not None:
            self._connection.unsubscribe(self._own)


def _ignore(_: Incoming) -> None: ...
