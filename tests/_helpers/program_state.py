# Who takes part in a random program: tasks, those who wait for them, groups and workers, and what
# is known of each.

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import trio

from trio_swarmtask import Future, Result, TaskGroup, TaskState, Worker

if TYPE_CHECKING:
    from tests._helpers.random_programs import Do


@dataclass(eq=False)
class Task:
    """What is known of a task, or of an ID that may become one."""

    label: str
    do: Do = "wait"
    capability: int | None = None  # once it was started
    key: bool = False
    told: trio.Event = field(default_factory=trio.Event)
    called: int = 0
    running: int = 0
    worker: Hired | None = None  # where it was called last
    turn: trio.Event | None = None  # what its handler waits for
    lingers: bool = False
    rests: bool = False
    was_cancelled: bool = False

    @property
    def waits_to_be_told(self) -> bool:
        return self.do in ("wait", "wait and fail", "linger") and not self.told.is_set()

    @property
    def may_end(self) -> bool:
        return self.turn is not None and not self.waits_to_be_told


@dataclass(eq=False)
class Held:
    """A future, and whose it is."""

    task: Task
    future: Future
    by: int
    is_late: bool  # it had its result when it came

    @property
    def is_outstanding(self) -> bool:
        return self.future.state == TaskState.OUTSTANDING

    @property
    def was_cancelled(self) -> bool:
        return self.future.state in (TaskState.STOPPED, TaskState.UNCONFIRMED)

    def outcome(self, *, is_sure: bool) -> str:
        state = self.future.state
        if self.is_outstanding:
            return state
        if self.was_cancelled and not is_sure:
            return f"stopped or unconfirmed: {describe(self.future.result)}"
        return f"{state}: {describe(self.future.result)}"


@dataclass(eq=False)
class Call:
    """A call of `run`."""

    task: Task
    by: int
    is_late: bool  # as above, for sure
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    outcome: str = ""


@dataclass(eq=False)
class Opened:
    """A group."""

    by: int
    group: TaskGroup | None = None
    nursery: trio.Nursery | None = None  # of what its block runs
    begun: trio.Event = field(default_factory=trio.Event)
    leave: trio.Event = field(default_factory=trio.Event)
    outcome: str = ""


@dataclass(eq=False)
class Hired:
    """A worker."""

    capabilities: tuple[int, ...]
    worker: Worker | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    begun: trio.Event = field(default_factory=trio.Event)
    leave: trio.Event = field(default_factory=trio.Event)
    is_there: bool = False
    is_closing: bool = False
    is_cut: bool = False

    @property
    def counts(self) -> dict[str, int]:
        return {} if self.worker is None else asdict(self.worker.statistics())


def describe(result: Result) -> str:
    by = ", by cancellation" if result.cancelled_by else ""
    return f"{result.status}{by}: {result.outputs or result.error!r}"
