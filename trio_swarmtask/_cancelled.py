# The result of a cancelled task, as the one who cancels it or its worker stores it.
#
# On the wire it is a failure, so that every program understands it; an entry of its metadata tells
# it from one.

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from ._envelope import CANCELLED_BY, Status
from ._wire import Result

_TEXT: Final = "the task was cancelled"


def cancelled_result(by: str) -> Result:
    """Of a worker whose handler was cancelled: the rest is filled in as in any other."""
    return Result(status=Status.FAILED, error=_TEXT, metadata={CANCELLED_BY: by})


def encode_cancelled(task_id: str, by: str) -> bytes:
    """Of the one who cancels the task."""
    return Result(
        id=task_id,
        status=Status.FAILED,
        error=_TEXT,
        agent=by,
        completed_at=datetime.now(UTC),
        metadata={CANCELLED_BY: by},
    ).encode()
