# What `statistics()` of a dispatcher, a group, and a worker return: counts, at one moment.
#
# They add up at any moment, between any two steps of Trio tasks: what has begun is still there, or
# has ended in one of the ways that are counted. So each thing itself knows which count it is in,
# and moves from one count to the next in one step.

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from ._envelope import Status


@dataclass(frozen=True, slots=True)
class DispatcherStatistics:
    """Counts of one dispatcher, at one moment.

    They count tasks: an ID that is started again, or attached, while its result is waited for
    counts once.
    ``started + starting + attached == outstanding + resolved + given_up``.

    Attributes:
      outstanding: Tasks whose result has not come yet, those that are starting among them.
      started: Tasks that were started here: the broker confirmed them, or their result came before
        that.
      starting: Tasks that are being started. A task whose start fails, or is cut off, is in no
        count after that.
      attached: Tasks whose future `Dispatcher.attach` was asked for.
      resolved: Tasks whose result came, for a future that somebody held.
      given_up: Tasks whose result did not come while somebody held the future: it was forgotten, a
        `run` was cut off, or the dispatcher was closed, or lost its server for good.
    """

    outstanding: int
    started: int
    starting: int
    attached: int
    resolved: int
    given_up: int


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Counts of one task group, at one moment. ``started`` is the sum of the others.

    Attributes:
      started: Tasks of the group so far, refused ones included; an ID that was started twice
        counts once.
      outstanding: Tasks that have no result yet, or had none when the block was left.
      succeeded: Tasks whose result is a success.
      failed: Tasks whose result is a failure or a timeout, or can't come any more; tasks that
        others have cancelled; tasks that were refused.
      cancelled: Tasks that were cancelled by the group, or by `Future.cancel` here.
    """

    started: int
    outstanding: int
    succeeded: int
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """Counts of one worker, at one moment.

    ``deliveries`` is the sum of all that follow.

    Attributes:
      capabilities: How many it handles.
      deliveries: Deliveries that it took in hand so far. Another delivery of a task that is in hand
        already does not count.
      in_flight: Tasks that it holds: running, or ended and waiting for their result's confirmation.
      succeeded: Tasks whose result, a success, this worker stored.
      failed: Tasks whose result, a failure, this worker stored.
      timed_out: Tasks whose result, a timeout, this worker stored.
      cancelled: Tasks that were cancelled, or had another's result, while this worker had them in
        hand.
      retried: Tasks that failed, and were put back to be tried again.
      superseded: Deliveries of tasks that had another result: one that was there before a handler
        was called, or that was stored before its own.
      given_back: Deliveries given back to the queue.
      dead_letters: Tasks set aside as dead letters.
      leases_lost: Deliveries left alone because the lease was not renewed in time: the task is
        another worker's. A handler that ran was cancelled. Also deliveries that could not be given
        back: their lease lapses.
    """

    capabilities: int
    deliveries: int
    in_flight: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int
    retried: int
    superseded: int
    given_back: int
    dead_letters: int
    leases_lost: int


class Outcome(enum.StrEnum):
    """How a delivery has ended at its worker: the count of `WorkerStatistics` that it is in."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    RETRIED = "retried"
    GIVEN_BACK = "given_back"
    LEASES_LOST = "leases_lost"
    DEAD_LETTERS = "dead_letters"


OUTCOMES: Final = {
    Status.SUCCESS: Outcome.SUCCEEDED,
    Status.FAILED: Outcome.FAILED,
    Status.TIMEOUT: Outcome.TIMED_OUT,
}
"""The outcome of a task whose result this worker has stored, by the result's status."""


class Tally:
    """The counts behind `WorkerStatistics`."""

    def __init__(self) -> None:
        self.deliveries = 0
        self._ended = dict.fromkeys(Outcome, 0)

    def end(self, outcome: Outcome) -> None:
        """A delivery is let go."""
        self._ended[outcome] += 1

    def snapshot(self, capabilities: int, in_flight: int) -> WorkerStatistics:
        """The counts at this moment."""
        return WorkerStatistics(
            capabilities=capabilities,
            deliveries=self.deliveries,
            in_flight=in_flight,
            **self._ended,
        )
