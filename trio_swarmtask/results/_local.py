# Publishers that hold the results themselves: in this process alone, or announced on a bus.

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, final

import trio

from ._errors import ResultNotFoundError
from ._merge import merge
from ._publisher import TopicPublisher
from ._select import Selection
from ._types import Result, ResultFilter, clean, clean_filter, copy, validate_not_empty

if TYPE_CHECKING:
    from collections.abc import Sequence


class LocalPublisher(TopicPublisher):
    """Results in two dictionaries: those that are pending, and those that ended."""

    def __init__(self, buffer_size: int, max_results: int | None) -> None:
        super().__init__(buffer_size)
        self._most = max_results
        self._pending: dict[str, Result] = {}  # both in the order of arrival
        self._ended: dict[str, Result] = {}

    async def get(self, task_id: str) -> Result:
        await self._begin(task_id)
        result = self._find(task_id)
        if result is None:
            raise ResultNotFoundError(task_id)
        return copy(result)

    async def list(self, result_filter: ResultFilter = ResultFilter()) -> Sequence[Result]:  # noqa: B008 - it is frozen
        self._lifetime.check()
        selection = Selection(clean_filter(result_filter))
        await self._lifetime.run(trio.lowlevel.checkpoint)
        for held in (self._pending, self._ended):
            for result in held.values():
                selection.offer(result)
        return [copy(result) for result in selection.results()]

    async def delete(self, task_id: str) -> None:
        await self._begin(task_id)
        if self._find(task_id) is None:
            raise ResultNotFoundError(task_id)
        self._forget(task_id)
        self._end(task_id)

    async def _begin(self, task_id: object) -> None:
        self._lifetime.check()
        self._check_task_id(task_id)
        await self._lifetime.run(trio.lowlevel.checkpoint)

    def _find(self, task_id: str) -> Result | None:
        return self._pending.get(task_id) or self._ended.get(task_id)

    def _forget(self, task_id: str) -> None:
        self._pending.pop(task_id, None)
        self._ended.pop(task_id, None)

    def _keep(self, task_id: str, result: Result) -> None:
        """Store a result and tell the subscriptions."""
        if result.status.is_terminal:
            self._pending.pop(task_id, None)
            self._ended[task_id] = result
        else:
            self._ended.pop(task_id, None)
            self._pending[task_id] = result
        if self._most is not None and len(self._pending) + len(self._ended) > self._most:
            self._make_room(task_id)
        self._announce(task_id, result)

    def _make_room(self, but: str) -> None:
        # The oldest that ended; where there is none, the oldest; never the one that just came.
        oldest = itertools.chain(self._ended, self._pending)
        self._forget(next(task_id for task_id in oldest if task_id != but))


@final
class MemoryPublisher(LocalPublisher):
    """Everything in this process, for as long as the publisher lives. Any ID that is not empty.

    Args:
      buffer_size: Updates that a subscription holds for a slow reader.
    """

    def __init__(self, *, buffer_size: int = 16) -> None:
        super().__init__(buffer_size, max_results=None)

    async def publish(self, task_id: str, result: Result) -> None:
        self._lifetime.check()
        self._check_task_id(task_id)
        new = clean(result)
        await self._lifetime.run(trio.lowlevel.checkpoint)
        self._keep(task_id, merge(task_id, new, self._find(task_id)))

    def _check_task_id(self, task_id: object) -> None:
        validate_not_empty(task_id)
