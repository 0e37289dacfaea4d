# The interface of a publisher, and what all publishers share: who follows which task.
#
# Topics. All subscriptions of a publisher to one task share one source (a subscription to a
# subject, say). The first of them opens it, and the last closes it. Opening takes a while, so each
# topic has a lock; a second subscriber waits, or takes over if the first gives up.
#
# Nothing is missed or doubled at the beginning: once the source is open, the stored result goes
# into the subscription's buffer and the subscription into the topic, without an await between.

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, final

import trio

from .._abc import NoSource, Source
from .._check import check_count
from .._sync import Buffered, Lifetime
from ._errors import PublisherClosedError
from ._types import Result, ResultFilter, copy

if TYPE_CHECKING:
    from collections.abc import Sequence


class ResultPublisher(trio.abc.AsyncResource):
    """Stores results by task ID and lets others get, list and follow them.

    A `MemoryPublisher`, a `BusPublisher`, or opened by `open_kv_publisher`. After `aclose` every
    call raises `PublisherClosedError`. Safe to use from any number of tasks of one Trio run.
    """

    @abstractmethod
    async def publish(self, task_id: str, result: Result) -> None:
        """Store a result, or update the one there is.

        ``task_id`` counts, not the result's own. ``created_at`` is set with the first result of a
        task, if blank, and then kept; ``updated_at`` is set each time. What is passed is copied.

        Raises:
          ResultExistsError: if the task has ended and ``result`` is pending.
          InvalidTaskIDError: if ``task_id`` is empty, or not one that this publisher can use.
          InvalidStatusError: if the status is none of `ResultStatus`.
          InvalidResultError: if another field has a wrong type, or the result is too large.
          PublisherClosedError: if the publisher is closed, or is closed while this waits.
          BrokerError: if the server is lost for good, or refuses.
          BusClosedError: if the bus under a `BusPublisher` is closed.
        """

    @abstractmethod
    async def get(self, task_id: str) -> Result:
        """The result of a task, a copy.

        Raises:
          ResultNotFoundError: if there is none.
          InvalidResultError: if what is stored is not a result.
          InvalidTaskIDError, PublisherClosedError: as for `publish`.
        """

    @abstractmethod
    def subscribe(self, task_id: str) -> Subscription:
        """Follow a task: ``async with`` it, then ``async for`` each `Result`.

        What is stored comes first, at once, then each update. The iteration ends by itself after
        a terminal state, and when the result is deleted or expires, or the publisher is closed.
        A task without a result is waited for. A reader who is slow may miss pending updates, the
        oldest first; never the newest, nor how the task ended.

        Raises:
          InvalidTaskIDError, PublisherClosedError: as for `publish`.
        """

    @abstractmethod
    async def list(
        self,
        result_filter: ResultFilter = ResultFilter(),  # noqa: B008 - it is frozen
    ) -> Sequence[Result]:
        """The results that match, oldest ``created_at`` first; copies.

        Raises:
          InvalidStatusError, InvalidResultError: if a field of the filter can't be.
          PublisherClosedError: as for `publish`.
        """

    @abstractmethod
    async def delete(self, task_id: str) -> None:
        """Remove a result. Subscriptions to it end.

        Raises:
          ResultNotFoundError: if there is none.
          InvalidTaskIDError, PublisherClosedError: as for `publish`.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End all subscriptions, and every call that waits. Twice is fine."""


class Topic:
    """One task ID, as followed by a publisher's subscriptions."""

    def __init__(self) -> None:
        self.users = 0
        self.opening = trio.Lock()
        self.source: Source | None = None
        self.subscriptions: dict[Subscription, None] = {}
        self.current: Result | None = None  # for publishers that don't hold what is stored


class TopicPublisher(ResultPublisher):
    """What all publishers share: subscriptions, and being closed."""

    def __init__(self, buffer_size: int) -> None:
        check_count("buffer_size", buffer_size)
        self._buffer_size = buffer_size
        self._topics: dict[str, Topic] = {}
        self._lifetime = Lifetime()

    def subscribe(self, task_id: str) -> Subscription:
        self._lifetime.check()
        self._check_task_id(task_id)
        return Subscription(self, task_id, self._buffer_size)

    async def aclose(self) -> None:
        self._close()
        await trio.lowlevel.checkpoint()

    @abstractmethod
    def _check_task_id(self, task_id: object) -> None:
        """Raise `InvalidTaskIDError` unless this publisher can use ``task_id``."""

    def _open_source(self, task_id: str) -> Source:
        """A source that calls `_announce` with each update from outside, once it is entered."""
        return NoSource()

    async def _refresh(self, topic: Topic) -> None:
        """Make sure that `_find` gives what is stored now, if the source may lag behind."""

    @abstractmethod
    def _find(self, task_id: str) -> Result | None:
        """What is stored, as far as it is known here. The source is open."""

    def _close(self, error: Exception | None = None) -> None:
        """``error``: what has ended the publisher, if it was not its user."""
        self._lifetime.end(
            lambda: PublisherClosedError("the publisher is closed; open another one")
        )
        for task_id in self._topics:
            self._end(task_id, error)

    def _announce(self, task_id: str, result: Result) -> None:
        topic = self._topics.get(task_id)
        if topic is not None:
            for subscription in topic.subscriptions:
                subscription._put(result)

    def _end(self, task_id: str, error: Exception | None = None) -> None:
        """End the subscriptions to a task: its result is gone."""
        topic = self._topics.get(task_id)
        if topic is not None:
            for subscription in topic.subscriptions:
                subscription._end(error)

    async def _enter(self, subscription: Subscription) -> None:
        task_id = subscription._task_id
        topic = self._topics.setdefault(task_id, Topic())
        topic.users += 1
        try:
            await self._lifetime.run(partial(self._open, task_id, topic))
            self._lifetime.check()  # it may have ended just now
        except BaseException:
            self._release(task_id, topic)
            raise
        stored = self._find(task_id)
        if stored is not None:
            subscription._put(stored)
        topic.subscriptions[subscription] = None

    async def _open(self, task_id: str, topic: Topic) -> None:
        async with topic.opening:
            if topic.source is None:
                source = self._open_source(task_id)
                await source.__aenter__()
                topic.source = source
            else:
                await self._refresh(topic)

    def _leave(self, subscription: Subscription) -> None:
        topic = self._topics[subscription._task_id]
        del topic.subscriptions[subscription]
        self._release(subscription._task_id, topic)

    def _release(self, task_id: str, topic: Topic) -> None:
        topic.users -= 1
        if topic.users == 0:
            del self._topics[task_id]
            if topic.source is not None:
                topic.source.end()


@final
class Subscription(Buffered[Result]):
    """The updates of one task. Made by `ResultPublisher.subscribe`.

    ``async with`` it, then ``async for``. Each subscription gets copies of its own.
    """

    def __init__(self, publisher: TopicPublisher, task_id: str, buffer_size: int) -> None:
        super().__init__(buffer_size)
        self._publisher = publisher
        self._task_id = task_id
        self._used = False
        self._entered = False

    def cancel(self) -> None:
        """End the iteration now; what was not read is dropped."""
        self._buffer.end(discard=True)

    async def _enter(self) -> None:
        if self._used:
            raise RuntimeError(
                f"the block of {self._task_id!r} was entered before: subscribe again"
            )
        self._used = True
        try:
            await self._publisher._enter(self)
            self._entered = True
        finally:
            self._used = self._entered

    def _leave(self) -> None:
        self.cancel()
        self._publisher._leave(self)

    def _check_entered(self) -> None:
        if not self._entered:
            raise RuntimeError(
                f"the subscription to {self._task_id!r} was not entered: write 'async with "
                "publisher.subscribe(…) as updates', then 'async for result in updates'"
            )

    def _end(self, error: Exception | None) -> None:
        self._buffer.end(error)

    def _put(self, result: Result) -> None:
        self._buffer.put(copy(result))
        if result.status.is_terminal:
            self._buffer.end()


def close(publisher: TopicPublisher, error: Exception | None) -> None:
    """Close it; ``error``: what has ended it, if that was not its user."""
    publisher._close(error)
