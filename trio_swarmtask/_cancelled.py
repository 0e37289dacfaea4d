# The result of a cancelled task, as the one who cancels it or its worker stores it; and that of one
# which was cut off by a deadline here.
#
# On the wire a cancellation is a failure, so that every program understands it; an entry of its
# metadata tells it from one.

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import trio

from ._envelope import CANCELLED_BY, Status
from ._wire import Result

# Seconds after a deadline in which a scope that has the same one is cancelled for sure.
SAME_TIME: Final = 0.1
# Seconds before it in which a worker may take it to have passed, by its clock.
_ALMOST: Final = 5.0

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


def was_cut_off(result: Result, deadline: float) -> bool:
    """Whether it timed out by this deadline, not by that of another who has started the task."""
    return result.past_deadline and deadline - trio.current_time() < _ALMOST
