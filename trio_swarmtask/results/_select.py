# Listing: the oldest results that match, without holding the others.
#
# Invariant: an ID is held once. What is held beyond `limit` is at most one page of `_SLACK`.

from __future__ import annotations

import heapq
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._types import Result, ResultFilter

_SLACK: Final = 1000
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class Selection:
    """What of the results that are offered a filter selects. A later one replaces an earlier one.

    Args:
      bounded: Let go of what is past the limit while listing. Only where each ID comes once, but
        for what is changed meanwhile.
    """

    def __init__(self, result_filter: ResultFilter, *, bounded: bool = True) -> None:
        self._filter = result_filter
        self._most = result_filter.limit + _SLACK if result_filter.limit and bounded else 0
        self._held: dict[str, Result] = {}
        self._cut = False

    def offer(self, result: Result) -> None:
        """Take ``result`` if it matches."""
        if self._filter.matches(result):
            self._held[result.task_id] = result
            if len(self._held) == self._most:
                self._held = {kept.task_id: kept for kept in self.results()}
                self._cut = True
        else:
            self.withdraw(result.task_id)

    def withdraw(self, task_id: str) -> None:
        """There is no such result any more, or it no longer matches."""
        # Once some were let go, nothing could take its place: then it stays, as it was read.
        if not self._cut:
            self._held.pop(task_id, None)

    def results(self) -> Sequence[Result]:
        """The oldest ones, up to the limit, oldest first."""
        if self._filter.limit:
            return heapq.nsmallest(self._filter.limit, self._held.values(), key=_age)
        return sorted(self._held.values(), key=_age)


def _age(result: Result) -> datetime:
    return result.created_at or _LONG_AGO
