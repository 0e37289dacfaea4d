# Which subscriptions the server has refused, where it does not say which.
#
# "maximum subscriptions exceeded" names none. But the server handles what one connection sends in
# order, and answers a PING after the errors of what came before. So between two PONGs it is known
# what was sent and how many errors came. Only one number of free places fits that number of errors:
# with one more place there would be one error less. That number shows which were refused.
#
# A subscription that ends counts too: it makes room for the next. One that the server ends by
# itself after so many messages does not, because nobody can tell when that was. While there is such
# a subscription, each new one has a PONG of its own: an error before that PONG is about it,
# whatever the room was.

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ledger:
    """The subscriptions that one connection has sent since the last PONG."""

    def __init__(self) -> None:
        self._sent: list[int] = []  # their numbers; negative: ended; 0: refused by name
        self._pings: deque[int] = deque()  # for each unanswered PING, how much was sent before it
        self._open: set[int] = set()  # not refused, as far as is known, and not ended
        self._limited: set[int] = set()  # of these: the server may have ended them
        self._is_asked = True  # a PING was sent after the last subscription
        self.errors = 0

    def restart(self, numbers: Iterable[int]) -> None:
        """Start again, for a new connection: these are sent again."""
        self._sent = list(numbers)
        self._open = set(self._sent)
        self._limited.clear()
        self._is_asked = False
        self._pings.clear()
        self.errors = 0

    def begun(self, number: int) -> None:
        self._sent.append(number)
        self._open.add(number)
        self._is_asked = False

    def limited(self, number: int) -> None:
        """The server ends that one after so many messages."""
        self._limited.add(number)

    def ended(self, number: int) -> None:
        if number in self._open:
            self._open.remove(number)
            if number not in self._limited:
                self._sent.append(-number)
        self._limited.discard(number)

    def refused(self, number: int) -> None:
        """An error that names this one has come: it takes no room."""
        self._open.discard(number)
        for index, sent in enumerate(self._sent):
            if abs(sent) == number:
                self._sent[index] = 0

    def asked(self) -> None:
        """A PING was sent."""
        self._pings.append(len(self._sent))
        self._is_asked = True

    @property
    def must_ask(self) -> bool:
        """Whether a PING is to be sent before the next subscription."""
        return bool(self._limited) and not self._is_asked

    def answered(self) -> list[int]:
        """A PONG came; return the subscriptions that were refused before it."""
        count = self._pings.popleft() if self._pings else 0
        sent = self._sent[:count]
        del self._sent[:count]
        self._pings = deque(before - count for before in self._pings)
        errors, self.errors = self.errors, 0
        if not errors:
            return []
        refused = find_refused(sent, errors)
        self._open.difference_update(refused)
        return refused


def find_refused(sent: list[int], errors: int) -> list[int]:
    """The numbers in ``sent``, which is in order, that so many errors were about."""
    # The more room there was, the fewer were refused.
    room = bisect_left(range(len(sent)), -errors, key=lambda room: -len(_refused(sent, room)))
    return _refused(sent, room)


def _refused(sent: list[int], room: int) -> list[int]:
    refused: dict[int, None] = {}
    for number in sent:
        if number < 0:
            room += -number not in refused  # one that was refused leaves no room
        elif number and not room:
            refused[number] = None
        elif number:
            room -= 1
    return list(refused)
