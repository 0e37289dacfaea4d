# What `statistics()` of a dispatcher and of a worker return: counts, at one moment.

from __future__ import annotations

from dataclasses import asdict, dataclass

from ._envelope import Status


@dataclass(frozen=True, slots=True)
class DispatcherStatistics:
    """Counts of one dispatcher, at one moment."""

    outstanding: int
    """Tasks whose result has not come yet."""

    started: int
    """Tasks that the broker confirmed."""

    resolved: int
    """Results that came, for a future that somebody held."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Counts of one task group, at one moment."""

    started: int
    """Tasks of the group so far."""

    outstanding: int
    """Tasks that have no result yet."""

    succeeded: int
    """Tasks whose result is a success."""

    failed: int
    """Tasks whose result is a failure or a timeout, or can't come any more."""

    cancelled: int
    """Tasks that were cancelled by the group, or by `Future.cancel` here."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """Counts of one worker, at one moment."""

    capabilities: int
    """How many it handles."""

    in_flight: int
    """Tasks that it holds: running, or ended and waiting for their result's confirmation."""

    succeeded: int
    """Tasks whose result, a success, this worker stored."""

    failed: int
    """Tasks whose result, a failure, this worker stored."""

    timed_out: int
    """Tasks whose result, a timeout, this worker stored."""

    cancelled: int
    """Tasks that were cancelled, or had another's result, while this worker had them in hand."""

    retried: int
    """Tasks that failed, and were put back to be tried again."""

    superseded: int
    """Results that were not stored because another one was first."""

    given_back: int
    """Deliveries given back to the queue."""

    dead_letters: int
    """Tasks set aside as dead letters."""

    leases_lost: int
    """Deliveries let be because the lease was not renewed in time: the task is another worker's.
    A handler that ran was cancelled."""


@dataclass(eq=False, slots=True)
class Tally:
    """The counts behind `WorkerStatistics`."""

    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    retried: int = 0
    superseded: int = 0
    given_back: int = 0
    dead_letters: int = 0
    leases_lost: int = 0

    def at_worker(self, capabilities: int, in_flight: int) -> WorkerStatistics:
        """The counts at this moment."""
        return WorkerStatistics(capabilities=capabilities, in_flight=in_flight, **asdict(self))

    def count(self, status: Status) -> None:
        """One more result that was stored."""
        if status == Status.SUCCESS:
            self.succeeded += 1
        elif status == Status.FAILED:
            self.failed += 1
        else:
            self.timed_out += 1
