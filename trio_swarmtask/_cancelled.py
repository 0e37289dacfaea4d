# The result of a cancelled task, as the one who cancels it or its worker stores it; and that of one
# which was cut off by a deadline here.
#
# On the wire a cancellation is a failure, so that every program understands it; an entry of its
# metadata tells it from one.

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec
import trio

from ._envelope import CANCELLED_BY, CAPABILITY, Status
from ._names import is_capability
from ._wire import Result

# Seconds after a deadline in which a scope that has the same one is cancelled for sure.
SAME_TIME: Final = 0.1
# Seconds before it in which a worker may take it to have passed, by its clock.
_ALMOST: Final = 5.0

_TEXT: Final = "the task was cancelled"


def cancelled_result(by: str, capability: str | None) -> Result:
    """Of a worker whose handler was cancelled: the rest is filled in as in any other."""
    metadata = {CANCELLED_BY: by}
    if capability is not None:
        metadata[CAPABILITY] = capability
    return Result(status=Status.FAILED, error=_TEXT, metadata=metadata)


def encode_cancelled(task_id: str, by: str, capability: str | None = None) -> bytes:
    """Of the one who cancels the task, who may not know its capability."""
    result = cancelled_result(by, capability)
    now = datetime.now(UTC)
    return msgspec.structs.replace(result, id=task_id, agent=by, completed_at=now).encode()


def find_capability(result: Result) -> str | None:
    """What a cancelled task's result says that it was sent to."""
    capability = result.metadata.get(CAPABILITY)
    return capability if is_capability(capability) else None


def was_cut_off(result: Result, deadline: float) -> bool:
    """Whether it timed out by this deadline, not by that of another who has started the task."""
    return result.past_deadline and deadline - trio.current_time() < _ALMOST
