# What a schedule starts, as a worker gets it.
#
# All that a schedule starts comes on one subject, with one envelope. So the worker gives each an ID
# of its own, by the time at which the server stored it: whoever gets it again finds the same.

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from .._schedule import make_firing
from ._ack_subject import stored_nanoseconds

if TYPE_CHECKING:
    from ._incoming import Incoming

SCHEDULE: Final = "Swarm-Schedule"
"""In a schedule, and in what it starts: its name."""
_NAME: Final = SCHEDULE.encode()
_FIRING: Final = re.compile(r"(.+)-[0-9]{12,}")  # milliseconds, from 1973 on


def find_firing(name: str, message: Incoming) -> tuple[str, bytes] | None:
    """The ID and envelope of a task that a schedule has started; None for any other.

    Args:
      name: The ID in its subject.
      message: Whose reply subject `delivery_number` has accepted.
    """
    if message.header(_NAME) != name:
        return None  # anybody may write there
    return make_firing(name, message.data, stored_nanoseconds(message.reply) // 1_000_000)


def firings_like(task_id: str) -> list[str]:
    """Where to look for the schedule that may have started a task, or for what it has started."""
    match = _FIRING.fullmatch(task_id)
    return [] if match is None else [f"work.*.{match[1]}", f"work.*.{match[1]}.later"]
