# How long a lease lasts, kept in step with the durable: an operator may change its `ack_wait`.
#
# The server does not tell of it (of durables that are made, deleted or paused it does). So the
# durable is looked at where a worker has reason to: in each round of renewal, every third of
# `ack_wait`, while tasks are in hand; as the first task arrives after a pause; and when one is
# delivered again. It is one request, which each worker is permitted anyway, and none where a worker
# is idle.
#
# A shorter time counts at once, for what was renewed by the longer one as well: 100 ms later the
# server delivers again what was not renewed within the new one, though healthy workers run it. Each
# of these finds out in its next round, a third of the old time later at most. Until then, whoever
# has found out puts back what is delivered again, with a delay, and does not run it beside itself.

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio

from .._errors import BrokerError
from ._durables import read_durable
from ._jetstream import NO_ANSWER_YET, call

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._durables import Durable
    from ._requests import Requests

logger: Final = logging.getLogger("trio_swarmtask.nats")

# Seconds. The server takes as long to deliver again what a shorter `ack_wait` has made due, so an
# answer that is not older knows of that.
_GRACE: Final = 0.1
# A task that is delivered again waits no longer for an answer.
_PATIENCE: Final = 1.0


class LeaseTerms:
    """What the durable of one capability says of leases."""

    def __init__(
        self,
        requests: Requests,
        capability: str,
        durable: Durable,
        on_change: Callable[[float], None],
        on_unusable: Callable[[BrokerError], None],
    ) -> None:
        self._requests = requests
        self._capability = capability
        self._durable = durable
        self._on_change = on_change
        self._on_unusable = on_unusable
        self._asked_at = trio.current_time()
        self._asking = trio.Lock()
        self._doubt_until = -math.inf

    async def look(self, since: float = math.inf) -> None:
        """Ask for the durable, unless that was done since then, on Trio's clock.

        Where there is no answer, or no durable, nothing is known to have changed.
        """
        async with self._asking:
            if self._asked_at >= since:
                return
            asked_at = trio.current_time()
            name = f"{self._durable.stream}.{self._durable.name}"
            try:
                info = await call(self._requests, f"CONSUMER.INFO.{name}")
                durable = read_durable(info, self._capability)
            except NO_ANSWER_YET as exc:
                logger.debug("the durable %s was not looked at: %r", name, exc)
            except BrokerError as exc:
                self._on_unusable(exc)
            else:
                self._asked_at = asked_at
                self.learn(durable)

    def learn(self, durable: Durable) -> None:
        """This is the durable now."""
        before, now = self._durable.ack_wait, durable.ack_wait
        self._durable = durable
        if now == before:
            return
        doubt = before / 2 if now < before else 0.0  # until all workers know, and a bit
        self._doubt_until = max(self._doubt_until, trio.current_time() + doubt)
        logger.warning(
            "the durable %s of stream %s was changed: its ack_wait was %g seconds, and is %g; "
            "leases are renewed by that from now on%s",
            durable.name,
            durable.stream,
            before,
            now,
            f", and what is delivered again in the next {doubt:g} seconds is put back, for another "
            "worker may run it"
            if doubt
            else "",
        )
        self._on_change(now)

    async def doubt(self) -> float:
        """For how many seconds a task that was delivered again is to be left to others."""
        now = trio.current_time()
        with trio.move_on_after(_PATIENCE):
            await self.look(now - _GRACE)
        return max(0.0, self._doubt_until - now)
