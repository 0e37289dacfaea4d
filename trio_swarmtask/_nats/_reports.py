# What handlers report of their tasks, on the wire: core NATS, at most once, no storage.
#
# The subject is the one on which a `BusPublisher` announces results, and so are the bytes: whoever
# follows a task there, in whatever language, hears of its progress.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from .._errors import BrokerError, InvalidMessageError
from ._connection import Connection, NotConnected

if TYPE_CHECKING:
    from ._error_lines import Refusal

logger: Final = logging.getLogger("trio_swarmtask.nats")

PREFIX: Final = "results."


class Reports:
    """Sends what the handlers of one worker report."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._refused = False

    def send(self, task_id: str, data: bytes) -> None:
        """See `CanReport.report`."""
        connection = self._connection
        if self._refused or connection.is_congested:
            return  # a handler that reports without pause must not fill the memory
        try:
            connection.publish(PREFIX + task_id, data)
        except (NotConnected, BrokerError, InvalidMessageError) as exc:
            logger.debug("a report of task %s is lost: %r", task_id, exc)

    def on_down(self) -> None:
        self._refused = False  # the next connection may be permitted more

    def on_refused(self, refusal: Refusal) -> None:
        is_ours = refusal.action == "publish" and refusal.subject.startswith(PREFIX)
        if is_ours and not self._refused:
            self._refused = True  # or the server would say so each time
            logger.warning(
                "the progress of tasks is not sent: %s does not permit this user to publish to %s*",
                self._connection.config.safe_url,
                PREFIX,
            )
