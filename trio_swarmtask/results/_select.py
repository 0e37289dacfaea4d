# Listing: the oldest results that match, without holding the others.
#
# Invariant: an ID is held once.

from __future__ import annotations

import heapq
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._types import Result, ResultFilter

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class Selection:
    """What a filter selects of the results it is offered; a later one replaces an earlier one."""

    def __init__(self, result_filter: ResultFilter) -> None:
        self._filter = result_filter
        self._held: dict[str, Result] = {}
        self._was_cut = False

    def offer(self, result: Result) -> None:
        """Take ``result`` if it matches."""
        if self._filter.matches(result):
            self._held[result.task_id] = result
        else:
            self.withdraw(result.task_id)

    def cut(self) -> None:
        """Drop the results past the limit. For use where each ID is offered only once."""
        if 0 < self._filter.limit < len(self._held):
            self._held = {kept.task_id: kept for kept in self.results()}
            self._was_cut = True

    def withdraw(self, task_id: str) -> None:
        """There is no such result any more, or it no longer matches."""
        # After a cut no other result could take its place: then it stays, as it was read.
        if not self._was_cut:
            self._held.pop(task_id, None)

    def results(self) -> Sequence[Result]:
        """The oldest ones, up to the limit, oldest first."""
        if self._filter.limit:
            return heapq.nsmallest(self._filter.limit, self._held.values(), key=_age)
        return sorted(self._held.values(), key=_age)


def _age(result: Result) -> datetime:
    return result.created_at or _LONG_AGO
