# What the demo shows: the line of progress, the table, and what went wrong.
#
# Pure: it is given what happened and writes text, so that every case can be tested, the ones that
# must never happen too.

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TextIO

from .. import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .. import Result

BAR: Final = 30
"""Characters of the bar."""
PLAIN_STEPS: Final = 4
"""Lines of progress where they can't be drawn over one another."""


@dataclass
class Tally:
    """What has happened so far."""

    expected: Mapping[Status, int]
    """How many results of each status there must be at the end."""

    sent: int = 0
    """Tasks that the server has stored."""

    results: list[Result] = field(default_factory=list)
    """One for each task that is done."""

    killed: str = ""
    """The worker that was killed."""

    seconds: float = 0.0
    """From the first task sent to the last result."""

    statuses: dict[str, int | None] = field(default_factory=dict)
    """The exit status of each worker."""

    @property
    def total(self) -> int:
        """Tasks to send."""
        return sum(self.expected.values())

    @property
    def half_done(self) -> bool:
        """Whether half of the results are there."""
        return 2 * len(self.results) >= self.total

    @property
    def lost(self) -> int:
        """Tasks that were sent and have no result."""
        return self.sent - len(self.results)


def table(tally: Tally) -> str:
    """Return the table of what happened, one figure a line."""
    by_status = Counter(result.status for result in tally.results)
    by_agent = Counter(result.agent for result in tally.results)
    rows: list[tuple[str, str]] = [("sent", str(tally.sent))]
    rows += [(status.value, str(by_status[status])) for status in Status]
    redelivered = sum(result.attempt > 1 for result in tally.results)
    rows += [("redelivered", str(redelivered)), ("lost", str(tally.lost))]
    rows.append(("tasks per second", f"{len(tally.results) / tally.seconds:.1f}"))
    for name in tally.statuses:
        mark = " (killed)" if name == tally.killed else ""
        rows.append((f"done by {name}{mark}", str(by_agent[name])))
    return "\n".join(f"  {label:<28}{figure:>8}" for label, figure in rows)


def problems(tally: Tally) -> list[str]:
    """Return what is not as it should be, a sentence each; nothing if all is well."""
    found = []
    if tally.sent != tally.total:
        found.append(f"{tally.sent} of {tally.total} tasks were sent")
    if tally.lost:
        found.append(f"{tally.lost} of {tally.sent} tasks have no result")
    by_status = Counter(result.status for result in tally.results)
    found.extend(
        f"{by_status[status]} results are {status.value}, not {tally.expected[status]}"
        for status in Status
        if by_status[status] != tally.expected[status]
    )
    if not tally.killed:
        found.append("no worker was killed")
    for name, returncode in tally.statuses.items():
        expected = -signal.SIGKILL if name == tally.killed else 0
        if returncode != expected:
            found.append(f"{name} ended with status {returncode}, not {expected}")
    return found


class Progress:
    """The line of progress: redrawn on a terminal, a few plain lines elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn = 0

    def show(self, tally: Tally) -> None:
        """Show how many results there are."""
        done = len(tally.results)
        if self._out.isatty():
            bar = "#" * (BAR * done // tally.total)
            text = f"\r  [{bar:.<{BAR}}] {done} of {tally.total} done"
            end = "\n" if done == tally.total else ""
        else:
            step = PLAIN_STEPS * done // tally.total
            if step == self._drawn:
                return
            self._drawn = step
            text, end = f"  {done} of {tally.total} done", "\n"
        print(text, end=end, file=self._out, flush=True)

    def say(self, text: str) -> None:
        """Write a line of its own."""
        clear = "\r\x1b[K" if self._out.isatty() else ""
        print(f"{clear}{text}", file=self._out, flush=True)
