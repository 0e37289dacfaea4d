# What is known of a task, for those who follow it: `trio_swarmtask.results.Result`.
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

    Source: the Go struct ``Result`` of the package ``results``.
    """

    task_id: str = ""
    """Filled by `ResultPublisher.publish`, whose own argument counts."""

    status: ResultStatus
    """Where the task stands. A plain string that is one of them is taken too."""

    output: bytes = b""
    """What the task has given, in whatever form its reader expects."""

    error: str = ""
    """Why it failed."""

    metadata: dict[str, str] | None = None
    """Anything else, string to string."""

    created_at: datetime | None = None
    """When the first result of this task was published, in UTC. Set once, then kept."""

    updated_at: datetime | None = None
    """When this one was published, in UTC. By the publisher's clock: don't order by it."""
