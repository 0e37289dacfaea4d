# A deadline that travels with its task, over machines whose clocks differ.
#
# Whoever starts the task sends the seconds that it has left. The server notes when it stored the
# task, by its own clock. So a worker that knows how far its clock is from the server's (the answers
# of the server's API say what time it is there) knows how long the task has waited. A task that was
# kept for later may enter the queue late: the server was down when it was due. So it brings the
# time at which it was due, and the seconds count from that.

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from .._names import is_task_id
from ._ack_subject import stored_at

if TYPE_CHECKING:
    from ._incoming import Incoming

SECONDS_LEFT: Final = "Swarm-Seconds-Left"
LEASE: Final = "Swarm-Lease"
DUE: Final = "Swarm-Due"
"""Of a task that was kept for later: when it was due, by the server's clock, in seconds of 1970."""
RESENT: Final = "Swarm-Resent"
"""Of a task that may have been stored before: its result is looked for before it is run."""
OWN_HEADERS: Final = b"\r\nSwarm-"
"""What the head of a message holds if one of ours is in it."""
NO_HEADERS: Final = (math.inf, "")
"""Of a task without any: no deadline, no lease."""


def seconds_left(deadline: float) -> str:
    """What goes with a task that is sent now."""
    return f"{max(0.0, deadline - trio.current_time()):.3f}"


def measure_clock(stamp: object, asked_at: float) -> float:
    """What to add to Trio's clock to have the server's, in seconds of 1970.

    Args:
      stamp: The server's time in an answer that has just come. A server that does not tell is
        taken to have this machine's.
      asked_at: When it was asked, by Trio's clock.
    """
    now = trio.current_time()
    try:
        served_at = msgspec.convert(stamp, datetime)
    except msgspec.ValidationError:
        return time.time() - now
    return served_at.timestamp() - (asked_at + now) / 2


def read_headers(message: Incoming) -> tuple[float, str]:
    """The seconds that a task had left when it was sent, and its lease: see `NO_HEADERS`."""
    lease = message.header(LEASE.encode())
    if not is_task_id(lease):
        lease = ""  # anybody may write there
    try:
        seconds = float(message.header(SECONDS_LEFT.encode()))
    except ValueError:
        seconds = math.inf
    return (seconds if seconds >= 0 else math.inf), lease  # a NaN is not


def read_due(message: Incoming) -> float | None:
    """When a task was due that was kept for later, by the server's clock; None for any other."""
    try:
        due = float(message.header(DUE.encode()))
    except ValueError:
        return None
    return due if 0 <= due < math.inf else None


def find_deadline(reply: str, seconds: float, clock: float, due: float | None = None) -> float:
    """The deadline of a task on Trio's clock.

    Args:
      reply: What it is acked on.
      seconds: See `read_headers`.
      clock: See `measure_clock`.
      due: See `read_due`.
    """
    began = stored_at(reply)
    if due is not None:
        began = min(began, due)
    # No later than now, however far off the clock was measured: the task is here.
    return min(began - clock, trio.current_time()) + seconds
