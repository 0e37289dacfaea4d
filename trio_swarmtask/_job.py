# One delivery at a worker, from its arrival until it is settled.
#
# A job ends in exactly one of these ways: its result is stored and the task ended (a success, a
# failure, a timeout), it is a dead letter, it is given back, or its lease was lost and it is let
# be. Which one, is decided after the handler's scope was left, from what cancelled it: the scope's
# own deadline is a timeout; `interrupted` and `lost` are set before the worker cancels the scope.

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ._broker import Delivery
    from ._handler import Value
    from ._wire import Message, Result


class Ending:
    """What comes of a task at this worker, for those who follow it."""

    def __init__(self) -> None:
        self._told = trio.Event()
        self._result: bytes | None = None

    def tell(self, result: bytes | None) -> None:
        """The result that was stored and is the task's; None: not here. The first call counts."""
        if not self._told.is_set():
            self._result = result
            self._told.set()

    async def wait(self) -> bytes | None:
        await self._told.wait()
        return self._result


class Job:
    """One delivery in hand, and what it came to."""

    __slots__ = (
        "blocked",
        "call",
        "delivery",
        "encoded",
        "ending",
        "handling",
        "interrupted",
        "lost",
        "message",
        "result",
        "scope",
        "settled",
        "started",
        "timeout",
    )

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.scope: trio.CancelScope | None = None  # while its handler runs
        self.call: Awaitable[object] | None = None  # of the handler
        self.message: Message | None = None
        self.result: Result | Value | None = None
        self.encoded = b""  # the result, as it was sent to be stored
        self.ending: Ending | None = None  # where somebody follows the task
        self.handling = False  # the handler was called
        self.started = 0.0  # when that was
        self.timeout = math.inf
        self.interrupted = False  # the worker stops: give the task back
        self.blocked = False  # its handler kept the Trio thread to itself
        self.lost = False  # the lease lapsed: the task is another worker's
        self.settled = False  # nothing is left to do for it

    def was_cancelled(self, scope: trio.CancelScope) -> bool:
        """Whether the scope that its handler ran in was cancelled: by the two below, or in time."""
        return self.interrupted or self.lost or (self.timeout < math.inf and scope.cancel_called)

    def interrupt(self) -> None:
        self.interrupted = True
        if self.scope is not None:
            self.scope.cancel()

    def lose_lease(self) -> None:
        self.lost = True
        if self.scope is not None:
            self.scope.cancel()
