# The lease that a group holds for its tasks, if they are to end with the program that started them.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from ._errors import BrokerError

if TYPE_CHECKING:
    from ._broker import Outbox

logger: Final = logging.getLogger("trio_swarmtask.group")


class Lease:
    """Renewed for as long as `keep` runs."""

    def __init__(self, outbox: Outbox, name: str) -> None:
        self._outbox = outbox
        self._name = name
        self._seconds = 0.0
        self._scope = trio.CancelScope()

    async def begin(self) -> None:
        """Have it for the first time."""
        self._seconds = await self._outbox.renew_lease(self._name)

    async def keep(self) -> None:
        """Renew it, until `end`."""
        with self._scope:
            while True:
                await trio.sleep(self._seconds / 3)
                try:
                    self._seconds = await self._outbox.renew_lease(self._name)
                except BrokerError as exc:
                    logger.warning("the lease of a group can't be renewed: %s", exc)

    def end(self) -> None:
        """Renew it no more. It lapses by itself."""
        self._scope.cancel()
