# One broker in memory through several runs of Trio, one after the other.
#
# Its times are on Trio's clock, which begins anywhere in each run. So the first who opens something
# in a run moves all of them: they go on where the run before stopped. What passes between two runs
# does not count, for nobody was there.

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Runs:
    """The runs that something lives through; ``shift`` moves its times by so many seconds."""

    def __init__(self, shift: Callable[[float], None]) -> None:
        self._shift = shift
        self._token: trio.lowlevel.TrioToken | None = None  # of the last one
        self.ended_at = 0.0  # on the clock of that one

    def enter(self) -> None:
        """Be in the run that calls this.

        Raises:
          RuntimeError: if the last one has not ended.
        """
        token = trio.lowlevel.current_trio_token()
        if token is self._token:
            return
        if self._token is not None:
            if not _has_ended(self._token):
                raise RuntimeError(
                    "this MemoryBroker is used by another trio.run that has not ended: only one "
                    "run at a time can use it"
                )
            self._shift(trio.current_time() - self.ended_at)
        self._token = token
        _end_of_this_run().followers.add(self)


def _has_ended(token: trio.lowlevel.TrioToken) -> bool:
    try:
        token.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return True
    return False


class _End(trio.abc.Instrument):
    """Notes when a run ends, for all that live in it."""

    def __init__(self) -> None:
        self.followers: weakref.WeakSet[Runs] = weakref.WeakSet()
        self._clock = trio.lowlevel.current_clock()

    def after_run(self) -> None:
        for runs in self.followers:
            runs.ended_at = self._clock.current_time()


_end: Final[trio.lowlevel.RunVar[_End]] = trio.lowlevel.RunVar("trio_swarmtask.end")


def _end_of_this_run() -> _End:
    try:
        return _end.get()
    except LookupError:
        end = _End()
        _end.set(end)
        trio.lowlevel.add_instrument(end)
        return end
