# Those who follow a worker's tasks, beside its handlers.

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio

from .._sync import LossyBuffer
from ._handler import count_attempt

if TYPE_CHECKING:
    from .._message import Message
    from .._record import Result as Record


class Ending:
    """What comes of a task at this worker, for those who follow it."""

    def __init__(self) -> None:
        self._told = trio.Event()
        self._result: bytes | None = None
        self._newest: Record | None = None
        self._reports: list[LossyBuffer[Record]] = []

    def tell(self, result: bytes | None) -> None:
        """``result`` was stored and is the task's; None: none from here. The first call counts."""
        if not self._told.is_set():
            self._result = result
            self._told.set()
            for reports in self._reports:
                reports.end()

    def report(self, record: Record) -> None:
        """The handler tells how far it is."""
        self._newest = record
        for reports in self._reports:
            reports.put(record)

    def follow(self) -> LossyBuffer[Record]:
        """What is reported, up to the end: always the newest that was not read."""
        # With one place: a handler may report without pause, and a publisher may be slow.
        reports: LossyBuffer[Record] = LossyBuffer(1)
        self._reports.append(reports)
        if self._newest is not None:
            reports.put(self._newest)
        if self._told.is_set():
            reports.end()
        return reports

    async def wait(self) -> bytes | None:
        await self._told.wait()
        return self._result


class Observer(ABC):
    """Hears of a worker's tasks, beside the handlers. Each call is a Trio task; none may raise."""

    @abstractmethod
    async def follow_task(self, message: Message, agent: str, attempt: int, end: Ending) -> None:
        """A handler is about to be called; ``end`` tells what comes of it."""

    @abstractmethod
    async def bury_task(self, task_id: str, result: bytes) -> None:
        """A task that no handler was called for has ended with ``result``."""


class Observers:
    """The observers of one worker."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.any: bool = False
        self._all: list[Observer] = []

    def add(self, observer: Observer) -> None:
        """Let ``observer`` hear of tasks from now on."""
        self._all.append(observer)
        self.any = True

    def follow(self, message: Message, agent: str, number: int) -> Ending:
        """A handler is about to be called, for delivery ``number`` of the task.

        Returns:
          Where to tell what comes of it.
        """
        ending = Ending()
        attempt = count_attempt(message, number)
        for observer in self._all:
            self.nursery.start_soon(observer.follow_task, message, agent, attempt, ending)
        return ending

    def bury(self, task_id: str, result: bytes) -> None:
        """A task has ended, with this result, and no handler was called for it."""
        for observer in self._all:
            self.nursery.start_soon(observer.bury_task, task_id, result)
