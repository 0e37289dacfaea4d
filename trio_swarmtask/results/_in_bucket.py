# Results in a bucket: durable, and shared by all processes.
#
# Storing is compare-and-set: look, merge the record over what is stored, and replace just that; a
# conflict means once more. In this process the publishers of one task wait for each other, so that
# conflicts are with other processes alone.
#
# The look is never saved, though it costs a round trip. A revision that is remembered could be
# another record's, in a bucket that was deleted and made anew. And a conflict tells that something
# was stored while we published only if we looked: see `_may_follow`.

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, final

from .._bucket import Refused, Watch
from .._record_wire import decode, encode
from ._errors import InvalidResultError, ResultNotFoundError
from ._locks import KeyedLocks
from ._merge import merge, supersedes
from ._publisher import TopicPublisher
from ._select import Selection
from ._types import Result, ResultFilter, clean, clean_filter, validate_task_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._bucket import Bucket, Entry
    from .._source import Source
    from ._publisher import Topic

logger: Final = logging.getLogger("trio_swarmtask.results")


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
        """Whether ``record``, whose answer was lost, is stored, or what is can have come after it.

        In the second case it is taken for that, whether or not ``record`` was ever stored: both
        were being published at the same time. To store it again could take back what is newer. But
        an entry that was there before proves nothing, nor does none at all: whoever was asked may
        not know of the newest yet.
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
                        return  # it was removed, by us if only the answer was lost
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
            if topic.current is not None:  # else it is what an earlier result left behind
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
