# Results in a bucket: durable, and shared by all processes.
#
# Storing is compare-and-set: the record is merged over what is stored, and only replaces just
# that. In this process the publishers of one task wait for each other, so that conflicts are with
# other processes alone. What this process stored last of a task that goes on is remembered, so
# that an update costs one round trip; if the memory is wrong there is a conflict, and then it is
# looked up.

from __future__ import annotations

import logging
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from ._errors import InvalidResultError, ResultNotFoundError
from ._locks import KeyedLocks
from ._merge import merge
from ._publisher import TopicPublisher
from ._select import Selection
from ._types import Result, ResultFilter, clean, clean_filter, validate_task_id
from ._wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from .._bucket import Bucket, Entry

logger: Final = logging.getLogger("trio_swarmtask.results")

_REMEMBERED: Final = 1000  # tasks; of one forgotten, the next update costs a look-up


class _Stored(NamedTuple):
    revision: int
    result: Result | None


_NOTHING: Final = _Stored(0, None)


@final
class KVPublisher(TopicPublisher):
    """Results in a bucket. Made by `open_kv_publisher`."""

    def __init__(self, bucket: Bucket, buffer_size: int) -> None:
        super().__init__(buffer_size)
        self._bucket = bucket
        self._locks = KeyedLocks()
        self._known: OrderedDict[str, _Stored] = OrderedDict()

    async def publish(self, task_id: str, result: Result) -> None:
        self._lifetime.check()
        self._check_task_id(task_id)
        new = clean(result)
        await self._lifetime.run(partial(self._publish, task_id, new))

    async def _publish(self, task_id: str, new: Result) -> None:
        await trio.lowlevel.checkpoint()
        async with self._locks.hold(task_id):
            await self._store(task_id, new)

    async def _store(self, task_id: str, new: Result) -> None:
        stored = self._known.pop(task_id, _NOTHING)
        while True:
            record = merge(task_id, new, stored.result)
            data = encode(record)
            self._check_size(task_id, data)
            revision = await self._bucket.put(task_id, data, stored.revision)
            if revision is not None:
                break
            entry = await self._bucket.get(task_id)
            if entry is not None and entry.data == data:
                revision = entry.revision  # it was stored, and only the answer was lost
                break
            stored = _NOTHING if entry is None else _Stored(entry.revision, _read(entry))
        if not record.status.is_terminal:
            # What merging needs, without what may be large.
            core = Result(status=record.status, created_at=record.created_at)
            self._known[task_id] = _Stored(revision, core)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

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
            self._known.pop(task_id, None)
            tried = False
            while True:
                entry = await self._bucket.get(task_id)
                if entry is None or entry.data is None:
                    if tried:
                        return  # it was removed, by us if only the answer was lost
                    raise ResultNotFoundError(task_id)
                if await self._bucket.remove(task_id, entry.revision):
                    return
                tried = True

    def _check_task_id(self, task_id: object) -> None:
        validate_task_id(task_id)

    def _check_size(self, task_id: str, data: bytes) -> None:
        limit = self._bucket.max_size
        if limit is not None and len(data) > limit:
            raise InvalidResultError(
                f"the result of task {task_id!r} has {len(data)} bytes, more than the {limit} that "
                "the server takes; keep large data elsewhere and publish a reference"
            )

    def _open_source(self, task_id: str) -> AbstractAsyncContextManager[None]:
        return self._bucket.watch(task_id, partial(self._on_entry, task_id))

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
