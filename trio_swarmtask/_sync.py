# Small tools for Trio tasks: lifetimes, lossy buffers, values that expire, the pace of reports, and
# a lock for each key.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from ._util import fresh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

T = TypeVar("T")


# A lifetime ends all calls of an object when the object is closed, wherever they wait.
#
# Each role has an error of its own for that. What a role stands on (a bus, a bucket, the inbox of
# its requests) is closed after the role, and has another error. A call that has just got its answer
# meets that other error before it notices that it is cancelled: it raises the role's error all the
# same.


class Lifetime:
    """The time from an object's opening to its closing."""

    def __init__(self) -> None:
        self._make_error: Callable[[], Exception] | None = None
        self._scopes: set[trio.CancelScope] = set()

    @property
    def is_over(self) -> bool:
        return self._make_error is not None

    def check(self) -> None:
        """Raise if the lifetime is over."""
        if self._make_error is not None:
            raise self._make_error()

    async def run(self, act: Callable[[], Awaitable[T]]) -> T:
        """What ``act`` gives; if the lifetime ends first, ``act`` is cancelled, and this raises."""
        self.check()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await act()
            except trio.ClosedResourceError as exc:
                if self._make_error is None:
                    raise
                raise self._make_error() from exc
            finally:
                self._scopes.discard(scope)
        assert self._make_error is not None
        raise self._make_error()

    def end(self, make_error: Callable[[], Exception]) -> None:
        """End every call, and refuse further ones. The first end counts."""
        if self._make_error is None:
            self._make_error = make_error
            for scope in self._scopes:
                scope.cancel()


class Starting(Generic[T]):
    """A background task that is shielded, until it stands.

    `trio.Nursery.start` is not for it: if its caller is cancelled, it waits for the task to end,
    and a shielded task ends when its caller says so.
    """

    def __init__(self) -> None:
        self._stands = trio.Event()
        self._value: T

    def started(self, value: T) -> None:
        self._value = value
        self._stands.set()

    def has_started(self) -> bool:
        return self._stands.is_set()

    async def wait(self) -> T:
        """What it was started with. If that fails, its nursery is cancelled, and so is this."""
        await self._stands.wait()
        return self._value


class Background:
    """Tasks in a nursery that can be cancelled together, while the nursery goes on.

    A nursery of their own would have to live in a task, and be closed to new ones as soon as that
    is cancelled, while what starts them still runs.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self._is_over = False

    def start_soon(self, act: Callable[..., Awaitable[object]], *args: object) -> None:
        """As a nursery does; once all were cancelled, nothing is started."""
        self._nursery.start_soon(self._run, act, args)

    async def _run(self, act: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
        if self._is_over:
            return
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await act(*args)
            finally:
                self._scopes.discard(scope)

    def cancel(self) -> None:
        """Cancel all, for good."""
        self._is_over = True
        for scope in self._scopes:
            scope.cancel()


# A bounded buffer that never makes its producer wait: the oldest is dropped when it is full.
#
# For items that come in by callbacks. The newest is always kept, so where the last item says how
# something ended, a reader that is too slow may miss earlier items, but never the end.


class LossyBuffer(Generic[T]):
    """Items that go from callbacks to any number of readers, each item to one of them."""

    def __init__(self, size: int) -> None:
        self._items: deque[T] = deque(maxlen=size)
        self._readers = trio.lowlevel.ParkingLot()
        self._ended = False
        self._error: Exception | None = None
        self.dropped: int = 0

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
                raise fresh(self._error)
            if self._ended:
                raise StopAsyncIteration
            await self._readers.park()
        return self._items.popleft()


class Buffered(ABC, Generic[T]):
    """Fills a `LossyBuffer` while its block runs; ``async for`` in the block reads the items."""

    def __init__(self, size: int) -> None:
        self._buffer: LossyBuffer[T] = LossyBuffer(size)

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._check_entered()
        return await self._buffer.get()

    @abstractmethod
    async def _enter(self) -> None:
        """Begin to fill the buffer."""

    @abstractmethod
    def _leave(self) -> None:
        """Stop filling the buffer, and end the iteration."""

    @abstractmethod
    def _check_entered(self) -> None:
        """Raise RuntimeError if the block was not entered."""


# What is remembered for a while, on Trio's clock.


class Expiring(Generic[T]):
    """Values by name, each kept for ``ttl`` seconds; first in, first out."""

    def __init__(self, ttl: float, limit: float) -> None:
        self._ttl = ttl
        self._limit = limit
        self._values: dict[str, tuple[float, T]] = {}

    def put(self, name: str, value: T) -> None:
        self._values.pop(name, None)  # to be the newest again
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
        """Move all times ``seconds`` later: Trio's clock has started anew."""
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


# How often news of a task goes out: its handler's reports, and its records on a bus.
#
# The news is a state, and a follower may be behind a slow link that much else has to pass, too. So
# news that comes without pause goes out ten times a second, a few at once at most, and large ones
# less often. Of what came in between, the newest goes out when its time comes or right before the
# task's end, whichever is first. Nobody waits for that.

_SECONDS: Final = 0.1  # from one to the next, in the long run
_BYTES: Final = 10_000  # in that time
_AT_ONCE: Final = 16  # as many as a reader's buffer holds

# The most that is held back: all of it goes out at once right before the task's end. The newest is
# kept whatever its size.
_MOST_HELD: Final = 50_000  # bytes


class Pace:
    """When the next may go out. Times are on Trio's clock.

    Args:
      at_once: How many may go out without a pause, after a while without any.
    """

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._tolerance = (at_once - 0.5) * _SECONDS  # half: float sums are not exact
        self._paid_until = -math.inf

    @property
    def free_at(self) -> float:
        """When the next may go."""
        return self._paid_until - self._tolerance

    def spend(self, size: int) -> None:
        """One of ``size`` bytes goes out now."""
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now) + _SECONDS * max(1.0, size / _BYTES)


class Paced(Generic[T]):
    """Sends the news of one task, at that pace.

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


# A lock for each key, for as long as somebody holds or wants it.


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
