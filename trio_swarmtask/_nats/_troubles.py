# What is wrong at the server just now, as many callers meet it: told once, not once for each.
#
# Where a disk is too slow or a stream is full, a thousand callers wait for the same. The first of
# them tells. While any of them still waits, the others have nothing to add; after the last one is
# through, the same trouble is news again.

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Troubles:
    """The troubles of one connection."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def open(self) -> Iterator[Trouble]:
        """Those of one caller, for as long as it tries."""
        trouble = Trouble(self._waiting)
        try:
            yield trouble
        finally:
            trouble.end()


class Trouble:
    """What one caller has met."""

    def __init__(self, waiting: Counter[str]) -> None:
        self._waiting = waiting
        self._met: set[str] = set()

    def is_news(self, problem: str) -> bool:
        """Whether to tell of it: this caller has told of nothing yet, and no other has."""
        first = not self._met
        if problem in self._met:
            return False
        self._met.add(problem)
        self._waiting[problem] += 1
        return first and self._waiting[problem] == 1

    def end(self) -> None:
        for problem in self._met:
            self._waiting[problem] -= 1
            if not self._waiting[problem]:
                del self._waiting[problem]
