# A bounded buffer that never makes its producer wait: the oldest is dropped when it is full.
#
# For what comes in by callbacks. The newest is always kept, so where the last item says how a thing
# ended, a reader that is too slow misses what came before, never the end.

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class LossyBuffer(Generic[T]):
    """Items between callbacks and any number of readers, each item for one of these."""

    def __init__(self, size: int) -> None:
        self._items: deque[T] = deque(maxlen=size)
        self._readers = trio.lowlevel.ParkingLot()
        self._ended = False
        self._error: Exception | None = None
        self.dropped = 0

    def put(self, item: T) -> None:
        """Add an item; ignored once ended."""
        if self._ended:
            return
        if len(self._items) == self._items.maxlen:
            self.dropped += 1
        self._items.append(item)
        self._readers.unpark()

    def end(self, error: Exception | None = None, *, discard: bool = False) -> None:
        """Take no more. Readers get what is left, or with ``discard`` nothing, then ``error``."""
        if discard:
            self._items.clear()
        if not self._ended:
            self._ended = True
            self._error = error
        self._readers.unpark_all()

    async def get(self) -> T:
        """Wait for the next item.

        Raises:
          StopAsyncIteration: if the buffer has ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._error is not None:
                raise type(self._error)(*self._error.args)
            if self._ended:
                raise StopAsyncIteration
            await self._readers.park()
        return self._items.popleft()
