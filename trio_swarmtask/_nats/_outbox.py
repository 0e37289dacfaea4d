# A dispatcher's side: store tasks, hear of results, and find what was missed.
#
# Results are heard by one subscription for all the tasks of a dispatcher: the stream republishes
# `done.<key>-17` to `notify.<key>.17`, after it was stored. An ID of the caller's own has a
# subject of its own there. `a--b` and `a-b` fold to one subject, so the header says whose it is. A
# stream that was not made by us may not republish: then `done.<id>` itself is subscribed to, which
# also shows results that the stream refused; so that is only a hint to look.
#
# What is published while we are away is never heard. So after each reconnect, and now and then, the
# outstanding tasks are looked up.

from __future__ import annotations

import itertools
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .._broker import Outbox, ResultListener
from .._errors import BrokerError, InvalidMessageError
from .._util import open_flat_nursery
from ._cancel import Cancellation
from ._jetstream import (
    MESSAGE_TOO_LARGE,
    NO_ANSWER_YET,
    NoResponders,
    RefusedError,
    check_size,
    in_time,
    persist,
    publish,
    publish_soon,
)
from ._requests import Requests, open_requests, refused_error
from ._result_store import BATCH, ResultStore, fetch_result, result_id
from ._subscribe import subscribe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nats.aio.subscription import Subscription

    from ._connection import Connection
    from ._incoming import Incoming
    from ._jetstream import PubAck
    from ._streams import ResultStream, Streams

logger: Final = logging.getLogger("trio_swarmtask.nats")

SWEEP_SECONDS: Final = 30.0
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 1.0

# b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n"
_HEADER_BYTES: Final = 27


class NATSOutbox(Outbox):
    """Made by `open_nats_outbox`."""

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
        self._results = ResultStore(requests, streams)
        self._stream = stream
        self.hears_key = stream.notifies
        self._key = key
        self._listener = listener
        self._looks: trio.Nursery
        self._looking: dict[str, bool] = {}  # by task: whether there was another hint meanwhile
        self._closed = False
        self._watched: dict[str, Subscription] = {}
        self._known_capabilities: set[str] = set()
        self._unheard: dict[str, str] = {}  # by task: the subject that may not be subscribed to
        self._own: Subscription | None = None
        self._missed = trio.Event()

    async def store(
        self, capability: str, task_id: str, data: bytes, *, tried: bool = False
    ) -> bool:
        check_size(self._connection, data, _HEADER_BYTES + len(task_id))
        if task_id in self._unheard:
            raise refused_error(self._connection, f"subscribe to {self._unheard[task_id]}")
        if not tried and capability in self._known_capabilities:
            # The way of nearly every task, without the frames that are for the rest.
            headers = {"Nats-Msg-Id": task_id}
            try:
                ack = await publish(self._requests, f"work.{capability}.{task_id}", data, headers)
            except NO_ANSWER_YET:
                tried = True
            else:
                return not ack.duplicate
        return await self._store_in_the_end(capability, task_id, data, tried=tried)

    def store_soon(
        self, capability: str, task_id: str, data: bytes, on_end: Callable[[bool | None], None]
    ) -> bool:
        size = len(data) + _HEADER_BYTES + len(task_id)
        if (
            capability not in self._known_capabilities
            or task_id in self._unheard
            or size > self._connection.client.max_payload
        ):
            return False

        def on_ack(ack: PubAck | None) -> None:
            on_end(None if ack is None else not ack.duplicate)

        headers = {"Nats-Msg-Id": task_id}
        subject = f"work.{capability}.{task_id}"
        return publish_soon(self._requests, subject, data, headers, on_ack)

    async def _store_in_the_end(
        self, capability: str, task_id: str, data: bytes, *, tried: bool
    ) -> bool:
        subject = f"work.{capability}.{task_id}"
        headers = {"Nats-Msg-Id": task_id}

        async def attempt() -> bool:
            if capability not in self._known_capabilities:
                await self._streams.tasks(capability)
                self._known_capabilities.add(capability)
            try:
                ack = await publish(self._requests, subject, data, headers)
            except NoResponders:
                self._streams.forget()
                self._known_capabilities.clear()
                raise
            return not ack.duplicate

        async def already() -> bool | None:
            # The ID of a task that ended meanwhile is forgotten if the server was killed: a second
            # publish would then run it again.
            found = await fetch_result(self._requests, await self._streams.results(), task_id)
            return None if found is None else False

        what = f"store task {task_id}"
        try:
            return await self._requests.lifetime.run(
                partial(persist, self._connection, what, attempt, already, tried=tried)
            )
        except RefusedError as exc:
            if exc.err_code in MESSAGE_TOO_LARGE:
                raise InvalidMessageError(
                    f"an envelope of {len(data)} bytes is larger than the stream of "
                    f"{capability!r} takes: {exc}"
                ) from exc
            raise

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

    async def fetch(self, task_id: str) -> bytes | None:
        return await self._requests.lifetime.run(partial(self._results.get, task_id))

    async def store_result(self, task_id: str, result: bytes) -> bool:
        return await self._requests.lifetime.run(partial(self._results.put, task_id, result))

    async def stop(self, capability: str | None, task_id: str, grace: float) -> bool:
        self._requests.lifetime.check()
        cancellation = Cancellation(self._requests, self._streams, task_id)
        return await self._requests.lifetime.run(partial(cancellation.stop, capability, grace))

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
        # Where nothing is republished, `expect` subscribes to one task's result after the other:
        # this one stands for all of them.
        subject = f"notify.{self._key}.>" if self._stream.notifies else f"done.{self._key}-0"
        self._own = await subscribe(self._requests, subject, self._on_notify)

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


@asynccontextmanager
async def open_nats_outbox(
    connection: Connection, streams: Streams, key: str, listener: ResultListener
) -> AsyncIterator[Outbox]:
    async with open_flat_nursery() as nursery, open_requests(connection, nursery) as requests:
        stream = await in_time(connection, "name the stream of results", streams.results)
        outbox = NATSOutbox(connection, requests, streams, stream, key, listener)
        await nursery.start(outbox.find_missed)
        connection.on_down.append(outbox.on_down)
        connection.on_refused.append(outbox.on_refused)
        try:
            await in_time(connection, "subscribe to results", outbox.begin)
            yield outbox
        finally:
            connection.on_down.remove(outbox.on_down)
            connection.on_refused.remove(outbox.on_refused)
            outbox.end()
            nursery.cancel_scope.cancel()
