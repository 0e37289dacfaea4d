# How often what is told of a task goes out: its handler's reports, and its records on a bus.
#
# What is followed is a state, and whoever follows it may be behind a slow link, on which much else
# waits its turn. So what is told without pause goes out ten times a second, a few at once at most,
# and large ones less often; of what came meanwhile the newest goes out, at its time or before the
# task's end, whichever is first. Nobody waits for that.

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_SECONDS: Final = 0.1  # from one to the next, in the long run
_BYTES: Final = 10_000  # in that time
_AT_ONCE: Final = 16  # what a reader holds

# Of those that are held up, for these go out at once right before the task's end. The newest is
# kept whatever its size.
_MOST_HELD: Final = 50_000  # bytes


class Pace:
    """When the next may go out. Times are on Trio's clock.

    Args:
      at_once: How many may go out without a pause, after a while without any.
    """

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._tolerance = (at_once - 0.5) * _SECONDS  # half, for sums of floats are not exact
        self._paid_until = -math.inf

    @property
    def free_at(self) -> float:
        """When the next may go."""
        return self._paid_until - self._tolerance

    def spend(self, size: int) -> None:
        """One of so many bytes goes out now."""
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now) + _SECONDS * max(1.0, size / _BYTES)


class Paced(Generic[T]):
    """Sends what is told of one task, at its pace.

    Args:
      send: Sends one. Never raises.
      nursery: Where the newest waits for its time.
    """

    def __init__(self, send: Callable[[bytes, T], None], nursery: trio.Nursery) -> None:
        self._send = send
        self._nursery = nursery
        self._pace = Pace()
        self._held: deque[tuple[bytes, T]] = deque()  # the newest of them
        self._held_bytes = 0
        self._waiting: trio.CancelScope | None = None

    def tell(self, data: bytes, value: T) -> None:
        """Send this now, or hold it until its time, or until there is a newer one."""
        if not self._held and self._pace.free_at <= trio.current_time():
            self._go(data, value)
            return
        self._held.append((data, value))
        self._held_bytes += len(data)
        while len(self._held) > 1 and self._is_too_much():
            self._held_bytes -= len(self._held.popleft()[0])
        if self._waiting is None:
            self._waiting = trio.CancelScope()
            self._nursery.start_soon(self._send_newest, self._waiting)

    def end(self) -> None:
        """There will be no more. What is held goes out now, in its order."""
        if self._waiting is not None:
            self._waiting.cancel()
        for data, value in self._take():
            self._go(data, value)

    def _is_too_much(self) -> bool:
        return len(self._held) > _AT_ONCE or self._held_bytes > _MOST_HELD

    def _take(self) -> list[tuple[bytes, T]]:
        held = list(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held

    def _go(self, data: bytes, value: T) -> None:
        self._pace.spend(len(data))
        self._send(data, value)

    async def _send_newest(self, scope: trio.CancelScope) -> None:
        with scope:
            while self._held:
                await trio.sleep_until(self._pace.free_at)
                self._go(*self._take()[-1])
        self._waiting = None
