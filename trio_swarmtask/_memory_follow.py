# Who follows which task in the memory broker.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._source import Source

if TYPE_CHECKING:
    from collections.abc import Callable


class Followers:
    """Those who hear what is reported of a task, by task."""

    def __init__(self) -> None:
        self._all: dict[str, list[Following]] = {}

    def tell(self, task_id: str, data: bytes) -> None:
        for following in list(self._all.get(task_id, ())):
            following.on_report(data)

    def add(self, following: Following) -> None:
        self._all.setdefault(following.task_id, []).append(following)

    def remove(self, following: Following) -> None:
        same = self._all.get(following.task_id, [])
        if following in same:
            same.remove(following)
            if not same:
                del self._all[following.task_id]


class Following(Source):
    """What is reported of one task."""

    def __init__(
        self, followers: Followers, task_id: str, on_report: Callable[[bytes], None]
    ) -> None:
        self.task_id = task_id
        self.on_report = on_report
        self._followers = followers

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()
        self._followers.add(self)

    def end(self) -> None:
        self._followers.remove(self)
