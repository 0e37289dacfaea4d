# What is remembered for a while, on Trio's clock.

from __future__ import annotations

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Expiring(Generic[T]):
    """Values by name, each kept for ``ttl`` seconds; first in, first out."""

    def __init__(self, ttl: float, limit: float) -> None:
        self._ttl = ttl
        self._limit = limit
        self._values: dict[str, tuple[float, T]] = {}

    def put(self, name: str, value: T) -> None:
        self._values.pop(name, None)  # it is the latest again
        self._values[name] = (trio.current_time() + self._ttl, value)

    def get(self, name: str) -> T | None:
        self._expire()
        entry = self._values.get(name)
        return None if entry is None else entry[1]

    def __contains__(self, name: object) -> bool:
        self._expire()
        return name in self._values

    def __len__(self) -> int:
        return len(self._values)

    def is_full(self) -> bool:
        self._expire()
        return len(self._values) >= self._limit

    def shift(self, seconds: float) -> None:
        """Let all times be so much later: Trio's clock has begun anew."""
        self._values = {
            name: (expires + seconds, value) for name, (expires, value) in self._values.items()
        }

    async def wait_for_expiry(self) -> None:
        """Wait until the oldest value expires."""
        oldest = next(iter(self._values.values()))
        await trio.sleep_until(oldest[0])

    def _expire(self) -> None:
        now = trio.current_time()
        while self._values:
            name, (expires, _) = next(iter(self._values.items()))
            if expires > now:
                break
            del self._values[name]
