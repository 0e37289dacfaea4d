# What goes from a task's handler to those who follow it, past the queue: two small parts of the
# interface in `_broker.py`.
#
# At most once: nothing is stored, nothing waited for.

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._source import Source


class CanReport(ABC):
    """What a delivery does for its handler. Never waits."""

    __slots__ = ()

    @abstractmethod
    def check_report(self, data: bytes) -> None:
        """Raise InvalidMessageError if ``data`` is larger than the broker takes."""

    @abstractmethod
    def report(self, data: bytes) -> None:
        """Tell those who follow the task how far it is. In an outage this is lost."""


class CanFollow(ABC):
    """What an outbox does for its futures."""

    @abstractmethod
    def follow(self, task_id: str, on_report: Callable[[bytes], None]) -> Source:
        """Call ``on_report`` with what `CanReport.report` sends of a task, and perhaps other bytes.

        Entered once it would be called; entering waits through an outage.

        Raises:
          BrokerError: on entering, if the server does not permit it, or is lost for good.
          ClosedError: on entering, if this object is closed.
        """
