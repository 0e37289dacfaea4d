# What handlers report of their tasks, on the wire: core NATS, at most once, no storage.
#
# Subject and bytes are those with which a `BusPublisher` announces results: whoever follows a task
# there, in any language, hears of its progress.

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from .._abc import Source
from .._errors import BrokerError, InvalidMessageError
from .._nats._connection import Connection, NotConnected
from .._nats._requests import persist, refused_error
from .._util import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._nats._connection import Subscription
    from .._nats._error_lines import Refusal
    from .._nats._protocol import Incoming
    from .._nats._requests import Requests

logger: Final = get_logger("trio_swarmtask.nats")
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


# A follower: anybody may report without pause, and a follower's link may be slow. Reports that wait
# there would hold up everything else that comes on the connection, and the pings that show that it
# is alive. So the server is asked for a number of reports, and for more while half of them are
# still to come. If they come faster than that, the server has ended the subscription by then. The
# echo after the request shows that: exactly as many reports have come as were asked for before.
# Then a new subscription is made, and the reports in between are dropped; nothing else is lost.
#
# What was asked for ends with the connection, and is asked for again on the next one: all of it may
# have come before that one is known to be up. And a subscription that the server has ended has
# given up its place among those that the server takes. If another one has that place by then, there
# are no reports until there is room again; everything else goes on.

# Reports that are asked for, and may be under way to us: so many bytes of all tasks that are
# followed on one connection. A worker sends up to 32 of a task at once, as an attempt begins and
# ends.
_BYTES: Final = 512 * 1024
_FEWEST: Final = 2  # of one task
_FIRST: Final = 32  # before it is known how large they are
_MOST: Final = 256
_OVERHEAD: Final = 200  # bytes: the subject, and the like


class Following(Source):
    """Calls ``on_report`` with the reports of one task, while it is entered."""

    def __init__(
        self, requests: Requests, task_id: str, on_report: Callable[[bytes], None]
    ) -> None:
        self._requests = requests
        self._connection = requests.connection
        self._subject = PREFIX + task_id
        self._on_report = on_report
        self._begun = False
        self._listening = ExitStack()
        self._stands = False
        self._current: Subscription | None = None
        self._last: Subscription | None = None  # the one before: the server has ended it
        self._refusal: Refusal | None = None  # of the current one
        self._number = 0  # of the subscription
        self._room = 0  # reports to ask for at a time
        self._asked = 0  # reports asked of this subscription, in all
        self._heard = 0  # of these
        self._checking = False  # whether the server had ended it when it was asked for more
        self._size = 0  # bytes of the largest report, when more were asked for
        self._largest = 0  # bytes of the largest since then

    async def __aenter__(self) -> None:
        self._begun = True
        self._size = self._connection.report_size
        self._connection.followed += 1
        self._listening.enter_context(
            self._connection.listening(on_up=self._on_up, on_refused=self._on_refused)
        )
        self._requests.on_round.append(self._on_round)
        stands = partial(persist, self._connection, f"subscribe to {self._subject}", self._stand)
        try:
            await self._requests.lifetime.run(stands)
        finally:
            if not self._stands:
                self.end()

    async def _stand(self) -> None:
        # An error comes before the echo: see `_nats/_requests.py`.
        self._ask(_FIRST)
        await self._requests.echo()
        await self._connection.wait_certain()
        if self._refusal is not None:
            raise refused_error(self._connection, self._refusal)
        self._stands = True
        self._ask_for_more_if_due()

    def end(self) -> None:
        if self._begun:
            self._begun = self._stands = False
            self._connection.followed -= 1
            self._listening.close()
            self._requests.on_round.remove(self._on_round)
            self._drop_last()
            self._last, self._current = self._current, None
            self._drop_last()

    def _on_message(self, number: int, message: Incoming) -> None:
        if number == self._number:
            self._drop_last()  # what the last one had under way came before this
            self._heard += 1
            self._largest = max(self._largest, len(message.data))
            self._ask_for_more_if_due()
        self._on_report(message.data)

    def _ask_for_more_if_due(self) -> None:
        if self._current is None or self._checking or not self._is_live():
            return
        if not self._is_due():
            return
        self._measure()
        if self._is_due():  # else reports have become larger: what is still to come is enough
            before = self._asked
            self._asked = self._heard + self._room
            self._connection.limit(self._current, self._asked)
            self._checking = True
            self._requests.echo_soon(partial(self._on_echo, self._number, before))

    def _is_due(self) -> bool:
        return 2 * (self._asked - self._heard) <= self._room

    def _on_echo(self, number: int, before: int, echo: Incoming | None) -> None:
        if number != self._number:
            return
        self._checking = False
        if not self._is_live():
            return  # the next connection has another subscription
        if echo is None or self._heard == before:
            self._ask()
        else:
            self._ask_for_more_if_due()

    def _is_live(self) -> bool:
        lifetime = self._requests.lifetime
        return self._stands and self._connection.is_up and not lifetime.is_over

    def _measure(self, most: int = _MOST) -> None:
        connection = self._connection
        if self._largest:
            self._size = connection.report_size = self._largest
            self._largest = 0
        room = _BYTES // connection.followed // (self._size + _OVERHEAD)
        self._room = min(max(room, _FEWEST), most)

    def _ask(self, most: int = _MOST) -> None:
        """Subscribe again; what the last subscription has under way comes first."""
        connection = self._connection
        if not connection.is_up:
            raise NotConnected
        self._drop_last()
        # In this order: there might be no place for both.
        self._last, self._current = self._current, None
        if self._last is not None:
            connection.end_at_server(self._last)
        self._measure(most)
        self._number += 1
        self._asked, self._heard = self._room, 0
        self._checking = False
        self._refusal = None
        on_message = partial(self._on_message, self._number)
        self._current = connection.subscribe(self._subject, on_message, most=self._asked)

    def _drop_last(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            self._connection.unsubscribe(last)

    def _on_up(self) -> None:
        if self._stands:  # else `persist` tries again
            self._ask()

    def _on_refused(self, refusal: Refusal) -> None:
        if refusal.is_of(self._current):
            self._refusal = refusal

    def _on_round(self) -> None:
        # A missing permission stays; too many subscriptions may pass.
        if self._stands and self._refusal is not None and self._refusal.number:
            with suppress(NotConnected):
                self._ask()
