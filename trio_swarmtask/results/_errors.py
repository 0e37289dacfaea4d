# The errors of the results package.

from __future__ import annotations

import trio

from .._errors import InvalidResultError as InvalidResultError, SwarmTaskError


class ResultNotFoundError(SwarmTaskError, KeyError):
    """There is no result of this task."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:  # a KeyError's is the repr of its argument
        return f"there is no result of task {self.task_id!r}, or it is gone by now"


class ResultExistsError(SwarmTaskError):
    """A ``pending`` would have taken back a ``success`` or ``failed``."""

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(task_id, status)
        self.task_id = task_id
        self.status = status

    def __str__(self) -> str:
        return (
            f"task {self.task_id!r} has ended with {self.status!s}: a pending result can't take "
            "that back; delete it first to begin anew"
        )


class InvalidTaskIDError(SwarmTaskError, ValueError):
    """A task ID that can't be; the message says what it may be."""


class InvalidStatusError(SwarmTaskError, ValueError):
    """A status that is none of ``pending``, ``success`` and ``failed``."""


class PublisherClosedError(SwarmTaskError, trio.ClosedResourceError):
    """The publisher is closed, or was closed while this waited."""
