# One delivery at a worker, from its arrival until it is settled.
#
# A job ends in exactly one of these ways: its result is stored and the task ended (a success, a
# failure, a timeout, a cancellation), it is a dead letter, it is given back, or its lease was lost
# and it is let be. Which one, is decided after the handler's scope was left, from what cancelled
# it: the scope's own deadline is a timeout; `interrupted`, `cancelled` and `lost` are set before
# the worker cancels the scope.

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import trio

    from ._broker import Delivery, Notice
    from ._current import CurrentTask
    from ._handler import Value
    from ._observer import Ending
    from ._retry import Retry
    from ._wire import Message, Result


class Job:
    """One delivery in hand, and what it came to."""

    __slots__ = (
        "blocked",
        "call",
        "cancelled",
        "current",
        "delivery",
        "encoded",
        "end",
        "ending",
        "failure",
        "handling",
        "interrupted",
        "lapsed",
        "leased",
        "lost",
        "message",
        "notices",
        "rests_until",
        "result",
        "retry",
        "scope",
        "settled",
        "started",
        "stored",
        "superseded",
        "timeout",
        "travelled",
    )

    def __init__(self, delivery: Delivery, retry: Retry) -> None:
        self.delivery = delivery
        self.retry = retry
        self.scope: trio.CancelScope | None = None  # while its handler runs
        self.call: Awaitable[object] | None = None  # of the handler
        self.message: Message | None = None
        self.current: CurrentTask | None = None  # where the handler has asked for it
        self.result: Result | Value | None = None
        self.failure: BaseException | None = None  # of the handler, and worth another attempt
        self.rests_until = 0.0  # it is put back, and not to be tried again before that
        self.encoded = b""  # the result, as it was sent to be stored
        self.ending: Ending | None = None  # where somebody follows the task
        self.handling = False  # the handler was called
        self.started = 0.0  # when that was
        self.timeout = math.inf
        self.travelled = False  # it is what was left of the deadline that came with the task
        self.interrupted = False  # the worker stops: give the task back
        self.blocked = False  # its handler kept the Trio thread to itself
        self.cancelled = False  # the task has a result: another one's, or that of who cancelled it
        self.stored: bytes | None = None  # that result, where it was looked up
        self.notices: list[Notice] = []  # of those who wait for the handler to end
        self.lost = False  # the lease lapsed: the task is another worker's
        self.lapsed = False  # so it did, and the handler, which kept the thread, was let go on
        self.leased: trio.CancelScope | None = None  # round what needs the lease after the handler
        self.superseded = False  # another result was stored before its own
        self.settled = False  # nothing is left to do for it
        # How it is counted once it is let go: a field of `WorkerStatistics`.
        self.end = "given_back"

    def was_cancelled(self, scope: trio.CancelScope) -> bool:
        """Whether the scope that its handler ran in was cancelled: by those below, or in time."""
        return (
            self.interrupted
            or self.lost
            or self.cancelled
            or (self.timeout < math.inf and scope.cancel_called)
        )

    def runs_since(self, time: float) -> bool:
        """Whether its handler runs, and was called before ``time``."""
        return self.handling and self.scope is not None and self.started < time

    def interrupt(self) -> None:
        self.interrupted = True
        if self.scope is not None:
            self.scope.cancel()

    def cancel(self) -> None:
        self.cancelled = True
        if self.scope is not None:
            self.scope.cancel()

    def lose_lease(self) -> None:
        self.lost = True
        for scope in (self.scope, self.leased):
            if scope is not None:
                scope.cancel()

    def has_lost_lease(self) -> bool:
        """Whether the task is another worker's by now, or may be."""
        return self.lost or self.lapsed or self.delivery.is_lost()
