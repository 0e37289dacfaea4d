# The bus on a NATS server: core NATS, no JetStream.

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import trio

from .._bus import BusMessage, Listener, MessageBus, check_open
from .._errors import BusClosedError, NoRespondersError
from .._util import open_flat_nursery
from ._connection import NotConnected, open_connection
from ._requests import NO_RESPONDERS, Requests, open_requests, status_of, subscribe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.subscription import Subscription

    from .._config import NATSConfig
    from ._connection import Connection
    from ._protocol import Incoming


@final
class NATSBus(MessageBus):
    """Made by `open_bus_on`."""

    def __init__(self, requests: Requests, buffer_size: int, nursery: trio.Nursery) -> None:
        super().__init__(buffer_size)
        self._nursery = nursery
        self._requests = requests
        self._connection = requests.connection
        self._subscriptions: dict[Listener, Subscription] = {}

    def __repr__(self) -> str:
        return f"<MessageBus at {self._connection.config.safe_url}>"

    @property
    def max_payload(self) -> int | None:
        return self._connection.client.max_payload

    async def publish(self, subject: str, data: bytes) -> None:
        self._check_message(subject, data)
        await self._wait_room()
        await trio.lowlevel.checkpoint()
        while not self._connection.is_up:
            await self._requests.lifetime.run(self._connection.wait_up)
        check_open(self)
        self._connection.publish(subject, data)

    async def request(self, subject: str, data: bytes) -> BusMessage:
        self._check_message(subject, data)
        await self._wait_room()
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                reply = await self._requests.ask(subject, data)
            except NotConnected:
                await self._requests.lifetime.run(self._connection.wait_up)
                continue
            if status_of(reply) == NO_RESPONDERS:
                raise NoRespondersError(subject)
            return _as_message(reply)

    async def _wait_room(self) -> None:
        if self._connection.is_congested:
            await self._requests.lifetime.run(self._connection.wait_room)

    async def _attach(self, listener: Listener) -> None:
        def on_message(message: Incoming) -> None:
            listener.hear(_as_message(message))

        self._subscriptions[listener] = await subscribe(
            self._requests, listener.subject, on_message, listener.queue
        )

    def _detach(self, listener: Listener) -> None:
        self._connection.unsubscribe(self._subscriptions.pop(listener))

    def _interrupt(self, exc: KeyboardInterrupt) -> None:
        # Not raised where it came, in the connection's reading task: it leaves the bus's block.
        assert self._nursery is not None
        self._nursery.start_soon(_raise, exc)

    def _close(self, error: Exception | None = None) -> None:
        super()._close(error)
        self._requests.close(BusClosedError("the bus was closed meanwhile"))

    def on_down(self) -> None:
        if self._connection.lost is not None:
            self._close(self._connection.lost_error())


async def _raise(exc: KeyboardInterrupt) -> None:  # noqa: ASYNC124 - a task of its own
    raise exc


def _as_message(message: Incoming) -> BusMessage:
    return BusMessage(message.subject, message.data, message.reply)


@asynccontextmanager
async def open_bus_on(connection: Connection, buffer_size: int) -> AsyncIterator[MessageBus]:
    """A bus on a connection that others use too."""
    async with open_flat_nursery() as nursery, open_requests(connection, nursery) as requests:
        bus = NATSBus(requests, buffer_size, nursery)
        try:
            with connection.listening(on_down=bus.on_down):
                yield bus
        finally:
            bus._close()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_nats_bus(config: NATSConfig, buffer_size: int) -> AsyncIterator[MessageBus]:
    """A bus with a connection of its own."""
    async with open_connection(config) as connection, open_bus_on(connection, buffer_size) as bus:
        yield bus
