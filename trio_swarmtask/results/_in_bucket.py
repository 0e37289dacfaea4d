# Results in a bucket: durable, and shared by all processes.
#
# Storing is compare-and-set: look, merge the record over what is stored, and replace just that;
# after a conflict begin again. In this process the publishers of one task wait for each other, so
# conflicts come only from other processes.
#
# The look is never skipped, though it costs a round trip. A revision that is remembered could be
# another record's, in a bucket that was deleted and made again. And a conflict tells that something
# was stored while we published only if we looked: see `_may_follow`.

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

from .._abc import Refused, Watch
from .._check import check_bucket, check_count, check_ttl
from .._interrupts import block
from .._open import connect
from .._record import decode, encode
from .._sync import KeyedLocks
from .._util import get_logger
from ._errors import InvalidResultError, ResultNotFoundError
from ._merge import merge, supersedes
from ._publisher import TopicPublisher, close
from ._select import Selection
from ._types import Result, ResultFilter, clean, clean_filter, validate_task_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .._abc import Broker, Bucket, Entry, Source
    from .._config import NATSConfig
    from ._publisher import ResultPublisher, Topic

logger: Final = get_logger("trio_swarmtask.results")


@final
class KVPublisher(TopicPublisher):
    """Results in a bucket. Made by `open_kv_publisher`."""

    def __init__(self, bucket: Bucket, buffer_size: int) -> None:
        super().__init__(buffer_size)
        self._bucket = bucket
        self._locks = KeyedLocks()

    async def publish(self, task_id: str, result: Result) -> None:
        self._lifetime.check()
        self._check_task_id(task_id)
        new = clean(result)
        await self._lifetime.run(partial(self._publish, task_id, new))

    async def _publish(self, task_id: str, new: Result) -> None:
        async with self._locks.hold(task_id):
            while True:
                entry = await self._bucket.get(task_id)
                record = merge(task_id, new, None if entry is None else _read(entry))
                data = encode(record)
                self._check_size(task_id, data)
                revision = 0 if entry is None else entry.revision
                try:
                    return await self._bucket.put(task_id, data, revision)
                except Refused as exc:
                    if exc.unsure and await self._may_follow(record, data, revision):
                        return None

    async def _may_follow(self, record: Result, data: bytes, revision: int) -> bool:
        """Whether ``record``, whose answer was lost, is stored, or the stored one may be later.

        In the second case ``record`` counts as stored, whether or not it ever was: both were
        published at the same time, and to store it again could take back a newer one. But an
        entry that was there before proves nothing, nor does a missing one: the server that was
        asked may not know of the newest yet.
        """
        entry = await self._bucket.get(record.task_id)
        if entry is None or entry.revision <= revision:
            return False
        stored = _read(entry)
        return entry.data == data or stored is None or supersedes(stored, record)

    async def get(self, task_id: str) -> Result:
        self._lifetime.check()
        self._check_task_id(task_id)
        entry = await self._lifetime.run(partial(self._bucket.get, task_id))
        if entry is None or entry.data is None:
            raise ResultNotFoundError(task_id)
        return decode(entry.data, task_id)

    async def list(self, result_filter: ResultFilter = ResultFilter()) -> Sequence[Result]:  # noqa: B008 - it is frozen
        self._lifetime.check()
        return await self._lifetime.run(partial(self._list, clean_filter(result_filter)))

    async def _list(self, wanted: ResultFilter) -> Sequence[Result]:
        selection = Selection(wanted)
        last, more = 0, True
        while more:
            entries, last, more = await self._bucket.page(last)
            for entry in entries:
                if entry.key.startswith(wanted.task_id_prefix):
                    result = _read(entry)
                    if result is None:
                        selection.withdraw(entry.key)
                    else:
                        selection.offer(result)
            if self._bucket.one_each:
                selection.cut()
        return selection.results()

    async def delete(self, task_id: str) -> None:
        self._lifetime.check()
        self._check_task_id(task_id)
        await self._lifetime.run(partial(self._delete, task_id))

    async def _delete(self, task_id: str) -> None:
        async with self._locks.hold(task_id):
            unsure = False
            while True:
                entry = await self._bucket.get(task_id)
                if entry is None or entry.data is None:
                    if unsure:
                        return  # it is removed; by us, if only the answer was lost
                    raise ResultNotFoundError(task_id)
                try:
                    return await self._bucket.remove(task_id, entry.revision)
                except Refused as exc:
                    unsure = unsure or exc.unsure

    def _check_task_id(self, task_id: object) -> None:
        validate_task_id(task_id)

    def _check_size(self, task_id: str, data: bytes) -> None:
        limit = self._bucket.max_size
        if limit is not None and len(data) > limit:
            raise InvalidResultError(
                f"the result of task {task_id!r} has {len(data)} bytes, more than the {limit} that "
                "the server takes; keep large data elsewhere and publish a reference"
            )

    def _open_source(self, task_id: str) -> Source:
        return self._bucket.watch(task_id, partial(self._on_entry, task_id))

    async def _refresh(self, topic: Topic) -> None:
        assert isinstance(topic.source, Watch)
        await topic.source.look()

    def _find(self, task_id: str) -> Result | None:
        return self._topics[task_id].current

    def _on_entry(self, task_id: str, entry: Entry) -> None:
        topic = self._topics[task_id]
        if entry.data is None:
            if topic.current is not None:  # else it is the marker of an earlier result
                topic.current = None
                self._end(task_id)
            return
        result = _read(entry)
        if result is not None:
            topic.current = result
            self._announce(task_id, result)


def _read(entry: Entry) -> Result | None:
    """The result of an entry; None if it has none, which is logged if it should have one."""
    if entry.data is None:
        return None
    try:
        return decode(entry.data, entry.key)
    except InvalidResultError as exc:
        logger.error("skipped entry %r of the bucket: %s", entry.key, exc)
        return None


@block
@asynccontextmanager
async def open_kv_publisher(
    broker: str | NATSConfig | Broker | None = None,
    *,
    bucket: str = "results",
    ttl: float = 24 * 60 * 60.0,
    buffer_size: int = 16,
) -> AsyncIterator[ResultPublisher]:
    """Open a publisher on a JetStream key-value bucket: durable, and shared by all processes.

    `publish` returns when the server has confirmed the store; during an outage it waits, and the
    caller's scope is the deadline. The bucket is made if it is missing, with the config's
    ``replicas``, and used as it is otherwise. Leaving the block is the publisher's ``aclose``.

    Args:
      broker: A URL, a `NATSConfig`, an open `Broker` to share (a `MemoryBroker` too), or None for
        the environment's ``NATS_URL``, else ``nats://127.0.0.1:4222``.
      bucket: 1 to 128 of ``A-Z a-z 0-9 _ -``.
      ttl: Seconds after its last update that a result expires, from 1 up; ``math.inf``: never.
      buffer_size: Updates that a subscription holds for a slow reader.

    Raises:
      BrokerError: if the server can't be reached or refuses, or has no JetStream; also out of the
        block, when it is lost for good.
    """
    check_bucket(bucket)
    check_count("buffer_size", buffer_size)
    check_ttl(ttl)
    async with (
        connect(broker) as opened,
        host_kv_publisher(opened, bucket, ttl, buffer_size) as publisher,
    ):
        yield publisher


@asynccontextmanager
async def host_kv_publisher(
    broker: Broker, bucket: str, ttl: float, buffer_size: int
) -> AsyncIterator[ResultPublisher]:
    """A publisher on an open broker; leaving the block is its ``aclose``."""
    async with broker.open_bucket(bucket, ttl) as opened:
        publisher = KVPublisher(opened, buffer_size)
        try:
            yield publisher
        finally:
            close(publisher, opened.lost)
