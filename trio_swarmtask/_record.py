# What is known of a task, for those who follow it: `trio_swarmtask.results.Result`.
#
# Go programs read and write the same: the struct `Result` of their package `results`.
#
# It stands this low because progress is written as one, in a worker, and read, in a dispatcher.

from __future__ import annotations

import enum
from datetime import datetime

import msgspec


class ResultStatus(enum.StrEnum):
    """Where a task stands."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended: a success or a failure."""
        return self is not ResultStatus.PENDING


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a task: one record, updated until the task has ended.

    Attributes:
      task_id: Filled by `ResultPublisher.publish`, whose own argument counts.
      status: Where the task stands. A plain string that is one of them is taken too.
      output: What the task has given, in whatever form its reader expects.
      error: Why it failed.
      metadata: Anything else, string to string.
      created_at: When the first result of this task was published, in UTC. Set once, then kept.
      updated_at: When this one was published, in UTC. By the publisher's clock: don't order by it.
    """

    task_id: str = ""
    status: ResultStatus
    output: bytes = b""
    error: str = ""
    metadata: dict[str, str] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
