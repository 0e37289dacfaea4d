# What handlers report of their tasks, on the wire: core NATS, at most once, no storage.
#
# The subject is the one on which a `BusPublisher` announces results, and so are the bytes: whoever
# follows a task there, in whatever language, hears of its progress.

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from .._abc import Source
from .._errors import BrokerError, InvalidMessageError
from .._nats._connection import Connection, NotConnected
from .._nats._requests import persist, refused_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._nats._connection import Subscription
    from .._nats._error_lines import Refusal
    from .._nats._protocol import Incoming
    from .._nats._requests import Requests

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


# A follower: anybody may tell without pause, and a follower's link may be slow. What waits there
# for its turn would hold up all else that comes on the connection, and the pings that tell that it
# is alive. So the server is asked for so many reports, and for more while half of them are still to
# come. If they come faster than that, it has ended the subscription by then. The echo behind the
# question tells: just as many have come as were asked for before. Then there is another
# subscription, and what was told in between is dropped: nothing else is lost.
#
# What was asked for is over with the connection, and asked for anew on the next one: what came
# before it is known to be up may have been all. And a subscription that the server has ended has
# given up its place among those that the server takes. If another one has it by then, there are no
# reports until there is room again, and all else goes on.

# Reports that are asked for, and may be under way to us: so many bytes of all tasks that are
# followed on one connection. A worker sends up to 32 of a task at once, as an attempt begins and
# ends.
_BYTES: Final = 512 * 1024
_FEWEST: Final = 2  # of one task
_FIRST: Final = 32  # before it is known how large they are
_MOST: Final = 256
_OVERHEAD: Final = 200  # bytes: the subject, and the like


class Following(Source):
    """What is reported of one task."""

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
        self._room = 0  # for so many at a time
        self._asked = 0  # of this subscription, in all
        self._heard = 0  # of these
        self._checking = False  # whether the server had ended it when it was asked for more
        self._size = 0  # of the largest, until it was asked
        self._largest = 0  # of those since

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
            self._drop_last()  # what it had under way has come before this
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
        if self._is_due():  # else they have become larger, and those that are left are enough
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
        """Subscribe anew, behind what is under way of the last one."""
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
        if self._stands:  # else it is being tried again
            self._ask()

    def _on_refused(self, refusal: Refusal) -> None:
        if refusal.is_of(self._current):
            self._refusal = refusal

    def _on_round(self) -> None:
        # Not permitted stays so; that there are too many may pass.
        if self._stands and self._refusal is not None and self._refusal.number:
            with suppress(NotConnected):
                self._ask()
