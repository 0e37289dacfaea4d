# A lock for each key, for as long as somebody holds or wants it.

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class KeyedLocks:
    """``async with locks.hold(key)``: one task at a time for each key, in their order."""

    def __init__(self) -> None:
        self._locks: dict[str, trio.Lock] = {}

    def is_held(self, key: str) -> bool:
        return key in self._locks

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = trio.Lock()
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._locks.get(key) is lock:
                del self._locks[key]
