# The broker on a NATS server: one connection, for any number of dispatchers and workers.

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from .._broker import Broker, Delivery, Intake, Outbox, ResultListener
from .._util import open_flat_nursery
from ._bucket import open_nats_bucket
from ._connection import Connection, open_connection
from ._intake import open_nats_intake
from ._jetstream import in_time
from ._outbox import open_nats_outbox
from ._requests import open_requests
from ._streams import Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .._bucket import Bucket
    from .._config import NATSConfig


class NATSBroker(Broker):
    """Made by `open_nats_broker`."""

    def __init__(self, connection: Connection, streams: Streams) -> None:
        self.connection = connection
        self._streams = streams

    def __repr__(self) -> str:
        return f"<Broker at {self.connection.config.safe_url}>"

    def open_outbox(
        self, key: str, listener: ResultListener
    ) -> AbstractAsyncContextManager[Outbox]:
        return open_nats_outbox(self.connection, self._streams, key, listener)

    def open_intake(
        self, capability: str, on_delivery: Callable[[Delivery], None]
    ) -> AbstractAsyncContextManager[Intake]:
        return open_nats_intake(self.connection, self._streams, capability, on_delivery)

    def open_bucket(self, name: str, ttl: float) -> AbstractAsyncContextManager[Bucket]:
        return open_nats_bucket(self.connection, name, ttl)


@asynccontextmanager
async def open_nats_broker(config: NATSConfig) -> AsyncIterator[Broker]:
    """Connect, and see that there is JetStream."""
    async with (
        open_connection(config) as connection,
        open_flat_nursery() as nursery,
        open_requests(connection, nursery) as requests,
    ):
        streams = Streams(connection, requests)
        await in_time(connection, "say what JetStream has", streams.check_jetstream)
        yield NATSBroker(connection, streams)
        nursery.cancel_scope.cancel()
