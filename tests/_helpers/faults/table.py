# One row of the table that the fault suite prints.

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Row:
    fault: str
    times: int
    tasks: int = 0
    """Tasks that were sent."""
    lost: int = 0
    """Tasks without a stored result, or waiters that did not get it."""
    doubled: int = 0
    """Tasks for which a handler was called more than once."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from each fault, or the end of it, until things went on."""
