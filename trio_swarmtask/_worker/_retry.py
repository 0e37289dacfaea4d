# Retries: which failures of a handler are worth another attempt, and when.
#
# The task goes back to the queue with a delay, so another attempt may be made by another worker, in
# another process, of another version of the program.

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .._util import check_seconds, get_logger, leaves, shorten

if TYPE_CHECKING:
    from collections.abc import Callable

logger: Final = get_logger("trio_swarmtask.worker")


def _check_seconds(name: str, value: object) -> None:
    if not 0 <= check_seconds(name, value) < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds from 0 up, not {value!r}")


class RetryTask(Exception):
    """Raised by a handler that wants its task to be tried again, whatever `Retry` says.

    Counts as an attempt: if it was the last one that the message's ``max_attempts`` allows, the
    task has failed, with ``reason`` as the error.

    Args:
      reason: In words.
      delay: Seconds until then. None: what `Retry` says.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        if delay is not None:
            _check_seconds("delay", delay)
        super().__init__(reason)
        self.delay = delay


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Which failures of a handler are worth another attempt, and when: for `Worker.handle`.

    The task's message says how often it is tried: ``max_attempts``, the first attempt included. The
    last failure is the result. A worker that dies counts as an attempt (if it was the last one, the
    task has failed), a clean shutdown does not.

    The delay before the second attempt is ``first_delay`` seconds, and doubles from one attempt to
    the next, up to ``max_delay``; the wait is a random part of it, between half and all.

    Raises:
      TypeError, ValueError: if a field has a value that can't be used.

    Attributes:
      on: Exception types, or a function that says whether an exception is worth another attempt. In
        a group, each exception must be.
      first_delay: Seconds before the second attempt, at most; twice that before the next.
      max_delay: Seconds before any attempt, at most.
      timeouts: Whether a handler that took longer than its message's ``timeout`` may be tried
        again.
    """

    on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] = Exception
    first_delay: float = 1.0
    max_delay: float = 60.0
    timeouts: bool = False

    def __post_init__(self) -> None:
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        are_types = all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds)
        if not are_types and (isinstance(self.on, tuple | type) or not callable(self.on)):
            raise TypeError(
                f"on must be exception types, or a function of one, not {shorten(self.on)}"
            )
        _check_seconds("first_delay", self.first_delay)
        _check_seconds("max_delay", self.max_delay)

    def is_worth(self, exc: BaseException) -> bool:
        """Whether another attempt may be made after this failure."""
        try:
            return all(isinstance(leaf, RetryTask) or self._takes(leaf) for leaf in leaves(exc))
        except BaseException:  # noqa: ASYNC103 - a user's function may raise anything
            logger.exception("could not find out whether to try a task again: not done")
            return False  # noqa: ASYNC104 - it is not async: there is no cancellation

    def _takes(self, exc: BaseException) -> bool:
        on: Any = self.on
        if isinstance(on, tuple | type):
            return isinstance(exc, on)
        return bool(on(exc))

    def delay(self, attempt: int, exc: BaseException | None) -> float:
        """Seconds to wait after attempt number ``attempt`` (1: the first) has failed by ``exc``."""
        asked = [leaf.delay for leaf in leaves(exc) if isinstance(leaf, RetryTask)] if exc else []
        if given := [delay for delay in asked if delay is not None]:
            return max(given)
        longest = min(self.max_delay, self.first_delay * 2.0 ** min(attempt - 1, 1000))
        return random.uniform(longest / 2, longest)


NO_RETRY: Final = Retry(on=())
"""For a handler that was registered without a `Retry`: it may still raise `RetryTask`."""


def check_retry(retry: object) -> Retry:
    """Return the `Retry` for what `Worker.handle` was given, or raise TypeError."""
    if retry is None:
        return NO_RETRY
    if not isinstance(retry, Retry):
        raise TypeError(f"retry must be a Retry, not {shorten(retry)}")
    return retry
