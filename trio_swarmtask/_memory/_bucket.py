# Buckets in memory, on Trio's clock: shared by all who open the same name on one broker.
#
# Entries expire on time while somebody has the bucket open; otherwise nobody could tell.

from __future__ import annotations

import heapq
import itertools
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from .._abc import Bucket, Entry, Page, Refused, Watch
from .._util import get_logger, open_flat_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

logger: Final = get_logger("trio_swarmtask.memory")

# So many deadlines of replaced entries may pile up before they are removed.
_SPARE: Final = 100


class Shelf:
    """What a bucket holds; shared by all who have it open."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}  # in the order of their revisions
        self.watchers: dict[str, list[Callable[[Entry], None]]] = {}
        self._revisions = itertools.count(1)
        self._deadlines: list[tuple[float, int, str]] = []
        self._earlier = trio.Event()

    def put(self, key: str, data: bytes, ttl: float) -> None:
        self.entries.pop(key, None)
        entry = self.entries[key] = Entry(key, next(self._revisions), data)
        if ttl < math.inf:
            deadline = trio.current_time() + ttl
            heapq.heappush(self._deadlines, (deadline, entry.revision, key))
            if self._deadlines[0][1] == entry.revision:
                self._earlier.set()
            if len(self._deadlines) > 2 * len(self.entries) + _SPARE:
                self._forget_what_was_replaced()
        self._tell(entry)

    def remove(self, key: str) -> None:
        del self.entries[key]
        self._tell(Entry(key, next(self._revisions), None))

    def _forget_what_was_replaced(self) -> None:
        newest = {entry.revision for entry in self.entries.values()}
        self._deadlines = [deadline for deadline in self._deadlines if deadline[1] in newest]
        heapq.heapify(self._deadlines)

    def drop_expired(self) -> None:
        now = trio.current_time()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, revision, key = heapq.heappop(self._deadlines)
            if key in self.entries and self.entries[key].revision == revision:
                self.remove(key)

    def shift(self, seconds: float) -> None:
        """Move all times by so many seconds: Trio's clock has started again."""
        self._deadlines = [
            (deadline + seconds, revision, key) for deadline, revision, key in self._deadlines
        ]

    async def keep_time(self) -> None:
        """Let entries expire, until cancelled."""
        while True:
            if self._earlier.is_set():
                self._earlier = trio.Event()
            with trio.move_on_at(self._deadlines[0][0] if self._deadlines else math.inf):
                await self._earlier.wait()
            self.drop_expired()

    def _tell(self, entry: Entry) -> None:
        for watcher in list(self.watchers.get(entry.key, ())):
            try:
                watcher(entry)
            except Exception:  # it would come out of another user's `put`
                logger.exception("an entry of %r could not be handled", entry.key)


class MemoryBucket(Bucket):
    """Made by `open_memory_bucket`."""

    one_each = True

    def __init__(self, shelf: Shelf, ttl: float, max_size: int) -> None:
        self._shelf = shelf
        self._ttl = ttl
        self._max_size = max_size

    @property
    def max_size(self) -> int | None:
        return self._max_size

    @property
    def lost(self) -> Exception | None:
        return None

    async def get(self, key: str) -> Entry | None:
        await trio.lowlevel.checkpoint()
        return self._shelf.entries.get(key)

    async def put(self, key: str, data: bytes, revision: int) -> None:
        await trio.lowlevel.checkpoint()
        self._check_newest(key, revision)
        self._shelf.put(key, data, self._ttl)

    async def remove(self, key: str, revision: int) -> None:
        await trio.lowlevel.checkpoint()
        self._check_newest(key, revision)
        self._shelf.remove(key)

    async def page(self, after: int) -> Page:
        await trio.lowlevel.checkpoint()
        entries = [entry for entry in self._shelf.entries.values() if entry.revision > after]
        return Page(entries, entries[-1].revision if entries else after, more=False)

    def watch(self, key: str, on_entry: Callable[[Entry], None]) -> Watch:
        return _MemoryWatch(self._shelf, key, on_entry)

    def _check_newest(self, key: str, revision: int) -> None:
        entry = self._shelf.entries.get(key)
        if revision != (0 if entry is None else entry.revision):
            raise Refused


class _MemoryWatch(Watch):
    def __init__(self, shelf: Shelf, key: str, on_entry: Callable[[Entry], None]) -> None:
        self._shelf = shelf
        self._key = key
        self._on_entry = on_entry

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()
        entry = self._shelf.entries.get(self._key)
        if entry is not None:
            self._on_entry(entry)
        self._shelf.watchers.setdefault(self._key, []).append(self._on_entry)

    def end(self) -> None:
        watchers = self._shelf.watchers[self._key]
        watchers.remove(self._on_entry)
        if not watchers:
            del self._shelf.watchers[self._key]

    async def look(self) -> None:
        await trio.lowlevel.checkpoint()  # each change was told as it happened


@asynccontextmanager
async def open_memory_bucket(shelf: Shelf, ttl: float, max_size: int) -> AsyncIterator[Bucket]:
    """Open ``shelf`` for one more user."""
    shelf.drop_expired()
    async with open_flat_nursery() as nursery:
        nursery.start_soon(shelf.keep_time)
        yield MemoryBucket(shelf, ttl, max_size)
        nursery.cancel_scope.cancel()
