# open_nats_bus: which server, whose connection.

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ._broker import Broker
from ._names import check_count
from ._open import as_config, default_name, named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._bus import MessageBus
    from ._config import NATSConfig


@asynccontextmanager
async def open_nats_bus(
    broker: str | NATSConfig | Broker | None = None, *, buffer_size: int = 256
) -> AsyncIterator[MessageBus]:
    """Open a bus on a NATS server; leaving the block is its `MessageBus.aclose`.

    It is core NATS: no JetStream, nothing is made on the server.

    Args:
      broker: A URL, a `NATSConfig`, an open `Broker` to share, or None for the environment's
        ``NATS_URL``, else ``nats://127.0.0.1:4222``.
      buffer_size: Messages that a subscription holds before it drops the oldest.

    Raises:
      BrokerError: if the server can't be reached or refuses; also out of the block, when it is lost
        for good.
    """
    from ._nats import NATSBroker, open_bus_on, open_nats_bus as connect

    check_count("buffer_size", buffer_size)
    if isinstance(broker, NATSBroker):
        async with open_bus_on(broker.connection, buffer_size) as bus:
            yield bus
    elif isinstance(broker, Broker):
        raise TypeError(f"a {type(broker).__name__} has no server: use MemoryBus() beside it")
    else:
        config = named(as_config(broker), default_name())
        async with connect(config, buffer_size) as bus:
            yield bus
