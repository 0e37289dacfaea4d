# open_kv_publisher: which broker, which bucket.

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .._names import check_bucket, check_count, check_ttl
from .._open import connect
from ._in_bucket import KVPublisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .._broker import Broker
    from .._config import NATSConfig
    from ._publisher import ResultPublisher


@asynccontextmanager
async def open_kv_publisher(
    broker: str | NATSConfig | Broker | None = None,
    *,
    bucket: str = "results",
    ttl: float = 24 * 60 * 60.0,
    buffer_size: int = 16,
) -> AsyncIterator[ResultPublisher]:
    """Open a publisher on a JetStream key-value bucket: durable, and shared by all processes.

    `publish` returns when the server has confirmed the store; during an outage it waits, and the
    caller's scope is the deadline. The bucket is made if it is missing, with the config's
    ``replicas``, and used as it is otherwise. Leaving the block is the publisher's ``aclose``.

    Args:
      broker: A URL, a `NATSConfig`, an open `Broker` to share (a `MemoryBroker` too), or None for
        the environment's ``NATS_URL``, else ``nats://127.0.0.1:4222``.
      bucket: 1 to 128 of ``A-Z a-z 0-9 _ -``.
      ttl: Seconds after its last update that a result expires, from 1 up; ``math.inf``: never.
      buffer_size: Updates that a subscription holds for a slow reader.

    Raises:
      BrokerError: if the server can't be reached or refuses, or has no JetStream; also out of the
        block, when it is lost for good.
    """
    check_bucket(bucket)
    check_count("buffer_size", buffer_size)
    check_ttl(ttl)
    async with (
        connect(broker) as opened,
        host_kv_publisher(opened, bucket, ttl, buffer_size) as publisher,
    ):
        yield publisher


@asynccontextmanager
async def host_kv_publisher(
    broker: Broker, bucket: str, ttl: float, buffer_size: int
) -> AsyncIterator[ResultPublisher]:
    """A publisher on an open broker; leaving the block is its ``aclose``."""
    async with broker.open_bucket(bucket, ttl) as opened:
        publisher = KVPublisher(opened, buffer_size)
        try:
            yield publisher
        finally:
            publisher._close(opened.lost)
