# The broker on a NATS server: one connection, for any number of dispatchers and workers.

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from .._abc import Broker, DeliveryListener, Intake, Outbox, ResultListener
from .._nats._connection import Connection, open_connection
from .._nats._requests import in_time, open_requests
from .._sync import Background
from .._util import open_flat_nursery
from ._bucket import open_nats_bucket
from ._intake import NATSIntake
from ._outbox import NATSOutbox
from ._streams import JetStream, Streams, find_durable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .._abc import Bucket
    from .._config import NATSConfig


class NATSBroker(Broker):
    """Made by `open_nats_broker`."""

    def __init__(self, connection: Connection, streams: Streams) -> None:
        self.connection = connection
        self._streams = streams

    def __repr__(self) -> str:
        return f"<Broker at {self.connection.config.safe_url}>"

    def open_outbox(
        self, key: str, make_listener: Callable[[Outbox], ResultListener]
    ) -> AbstractAsyncContextManager[Outbox]:
        return _open_outbox(self.connection, self._streams, key, make_listener)

    def open_intake(
        self, capability: str, make_listener: Callable[[Intake], DeliveryListener]
    ) -> AbstractAsyncContextManager[Intake]:
        return _open_intake(self.connection, self._streams, capability, make_listener)

    def open_bucket(self, name: str, ttl: float) -> AbstractAsyncContextManager[Bucket]:
        return open_nats_bucket(self.connection, name, ttl)


@asynccontextmanager
async def open_nats_broker(config: NATSConfig) -> AsyncIterator[Broker]:
    """Connect, and check that there is JetStream."""
    async with (
        open_connection(config) as connection,
        open_flat_nursery() as nursery,
        open_requests(connection, nursery) as requests,
    ):
        streams = Streams(connection, requests)
        await in_time(connection, "say what JetStream has", streams.check_jetstream)
        yield NATSBroker(connection, streams)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_outbox(
    connection: Connection,
    streams: Streams,
    key: str,
    make_listener: Callable[[Outbox], ResultListener],
) -> AsyncIterator[Outbox]:
    async with open_flat_nursery() as nursery, open_requests(connection, nursery) as requests:
        stream = await in_time(connection, "name the stream of results", streams.results)
        looks = Background(nursery)
        outbox = NATSOutbox(JetStream(requests, streams), looks, stream, key, make_listener)
        looks.start_soon(outbox.find_missed)
        try:
            with connection.listening(on_down=outbox.on_down, on_refused=outbox.on_refused):
                await in_time(connection, "subscribe to results", outbox.begin)
                yield outbox
        finally:
            outbox.end()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_intake(
    connection: Connection,
    streams: Streams,
    capability: str,
    make_listener: Callable[[Intake], DeliveryListener],
) -> AsyncIterator[Intake]:
    async with open_flat_nursery() as nursery, open_requests(connection, nursery) as requests:
        await in_time(connection, "name the stream of results", streams.results)
        jetstream = JetStream(requests, streams)
        durable = await in_time(
            connection,
            f"give the durable of {capability}",
            lambda: find_durable(jetstream, capability),
        )
        await in_time(connection, "name the stream of dead letters", streams.dead)
        intake = NATSIntake(jetstream, durable, capability, make_listener)
        try:
            with connection.listening(on_down=intake.on_down, on_refused=intake.on_refused):
                await in_time(connection, f"let {capability} be pulled", intake.begin)
                nursery.start_soon(intake.stand)
                yield intake
        finally:
            intake.notices.end()
            intake.end_pull()
            nursery.cancel_scope.cancel()
