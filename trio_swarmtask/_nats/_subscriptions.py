# Which subscriptions the server has refused, where it does not say which.
#
# "maximum subscriptions exceeded" names none. But the server takes all that one connection sends in
# its order, and answers a PING behind the errors of what came before. So from one PONG to the next
# what was sent and the number of errors are known, and there is just one room that the server can
# have had before for as many errors: with one more place, one error less. That gives the refused.
#
# A subscription that ends is counted as well: it makes room for the next. Not so one that the
# server ends by itself after so many messages, for nobody can tell when that was. While there is
# such a one, each that is begun has a PONG of its own: an error before that is of it, whatever the
# room was.

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ledger:
    """What one connection has sent of subscriptions, since the last PONG."""

    def __init__(self) -> None:
        self._sent: list[int] = []  # their numbers; negative: it was ended
        self._pings: deque[int] = deque()  # how much was sent before each that is not answered
        self._open: set[int] = set()  # not refused, as far as is known, and not ended
        self._limited: set[int] = set()  # of these: the server may have ended them
        self._is_asked = True  # after the last that was begun
        self.errors = 0

    def restart(self, numbers: Iterable[int]) -> None:
        """Begin anew, with another connection: these are sent again."""
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
        """That one, for a reason that names it: it takes no room."""
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
        """Whether a PING is to be sent before anything else is begun."""
        return bool(self._limited) and not self._is_asked

    def answered(self) -> list[int]:
        """A PONG came: those that were refused before the server sent it."""
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
    """Those of what was sent, in this order, that ``errors`` were of."""
    # The more room there was, the fewer were refused.
    room = bisect_left(range(len(sent)), -errors, key=lambda room: -len(_refused(sent, room)))
    return _refused(sent, room)


def _refused(sent: list[int], room: int) -> list[int]:
    refused: dict[int, None] = {}
    for number in sent:
        if number < 0:
            room += -number not in refused  # which leaves no room behind
        elif number and not room:
            refused[number] = None
        elif number:
            room -= 1
    return list(refused)
