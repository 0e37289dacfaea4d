# The dispatcher of a worker, with which its handlers start tasks of their own.
#
# There is one for all handlers, opened when the first one asks. It lives in the worker's nursery,
# which ends after the handlers' nursery: a handler that cleans up can still use it.

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

import trio

from .._dispatcher._dispatcher import host_dispatcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._abc import Broker
    from .._dispatcher._dispatcher import Dispatcher


class OwnDispatcher:
    """Opens the dispatcher of one worker."""

    def __init__(
        self,
        broker: Broker,
        name: str,
        nursery: trio.Nursery,
        stop_because: Callable[[BaseException], None],
    ) -> None:
        self._broker = broker
        self._name = name
        self._nursery = nursery
        self._stop_because = stop_because
        self._opening = trio.Lock()
        self._dispatcher: Dispatcher | None = None
        self._context = contextvars.copy_context()

    async def dispatcher(self) -> Dispatcher:
        """The worker's own, opened by now.

        Raises:
          BrokerError: if it can't be opened. Whoever asks next tries again.
        """
        async with self._opening:
            if self._dispatcher is not None:
                return self._dispatcher
            opened: Dispatcher | Exception = await self._nursery.start(self._host)
            if isinstance(opened, Exception):
                raise opened
            return opened

    async def _host(self, *, task_status: trio.TaskStatus[Dispatcher | Exception]) -> None:
        # Not in the context of the handler that asked first: that would keep its task alive.
        trio.lowlevel.current_task().context = self._context.copy()
        try:
            await trio.lowlevel.checkpoint()
            async with host_dispatcher(self._broker, self._name) as dispatcher:
                self._dispatcher = dispatcher
                task_status.started(dispatcher)
                await trio.sleep_forever()
        except Exception as exc:  # noqa: BLE001 - it is raised elsewhere, see below
            if self._dispatcher is None:
                task_status.started(exc)  # leaves `dispatcher`
            else:
                self._stop_because(exc)  # the broker is lost for good: leaves the worker's block
        finally:
            self._dispatcher = None
