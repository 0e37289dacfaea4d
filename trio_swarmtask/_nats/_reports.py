# What handlers report of their tasks, on the wire: core NATS, at most once, no storage.
#
# The subject is the one on which a `BusPublisher` announces results, and so are the bytes: whoever
# follows a task there, in whatever language, hears of its progress.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from .._errors import BrokerError
from .._source import Source
from ._connection import Connection, NotConnected
from ._jetstream import check_size
from ._subscribe import subscribe

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.subscription import Subscription

    from ._error_lines import Refusal
    from ._incoming import Incoming
    from ._requests import Requests

logger: Final = logging.getLogger("trio_swarmtask.nats")

_PREFIX: Final = "results."


class Reports:
    """Sends what the handlers of one worker report."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._refused = False

    def send(self, task_id: str, data: bytes) -> None:
        """See `CanReport.report`."""
        connection = self._connection
        check_size(connection, data, 0)
        if self._refused or connection.is_congested:
            return  # a handler that reports without pause must not fill the memory
        try:
            connection.publish(_PREFIX + task_id, data)
        except (NotConnected, BrokerError):
            logger.debug("a report of task %s is lost: there is no connection", task_id)

    def on_down(self) -> None:
        self._refused = False  # the next connection may be permitted more

    def on_refused(self, refusal: Refusal) -> None:
        is_ours = refusal.action == "publish" and refusal.subject.startswith(_PREFIX)
        if is_ours and not self._refused:
            self._refused = True  # or the server would say so each time
            logger.warning(
                "the progress of tasks is not sent: %s does not permit this user to publish to %s*",
                self._connection.config.safe_url,
                _PREFIX,
            )


class Following(Source):
    """What is reported of one task."""

    def __init__(
        self, requests: Requests, task_id: str, on_report: Callable[[bytes], None]
    ) -> None:
        self._requests = requests
        self._subject = _PREFIX + task_id
        self._on_report = on_report
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> None:
        self._subscription = await subscribe(self._requests, self._subject, self._on_message)

    def end(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._requests.connection.unsubscribe(subscription)

    def _on_message(self, message: Incoming) -> None:
        self._on_report(message.data)
