# open_idempotency: which broker, which bucket.

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ._idempotency import Idempotency
from ._names import check_bucket, check_timeout, check_ttl
from ._open import connect
from ._util import open_flat_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._broker import Broker
    from ._config import NATSConfig


@asynccontextmanager
async def open_idempotency(
    broker: str | NATSConfig | Broker | None = None,
    *,
    bucket: str = "idempotency",
    ttl: float = 24 * 60 * 60.0,
    lease: float = 30.0,
) -> AsyncIterator[Idempotency]:
    """Open what makes a handler answer a second task of one key with what the first one gave.

    ``await worker.handle("payer", idempotent(pay))``. The key is `Message.idempotency`. The outputs
    of a success are kept in a key-value bucket, before they are the task's result. A task of the
    same key and capability gets them, whatever its inputs. While the first one runs, others wait
    for it, each in its place at its worker and within its own timeout. Failures, timeouts and
    cancellations are not remembered: then one of the others runs, or the next to come.

    At least once, all the same: a worker that dies after the effect, and before the outputs are
    kept, leaves nothing to answer with.

    Open it before the worker, so that its block is left after the worker's.

    Args:
      broker: A URL, a `NATSConfig`, an open `Broker` to share (a `MemoryBroker` too), or None for
        the environment's ``NATS_URL``, else ``nats://127.0.0.1:4222``.
      bucket: 1 to 128 of ``A-Z a-z 0-9 _ -``. Made if it is missing; one that is there must allow
        TTLs of single messages, or the claim of a worker that has died stays as long as outputs.
      ttl: Seconds that outputs are remembered, from 1 up; ``math.inf``: for ever.
      lease: Seconds that a key stays claimed if nothing is heard of the worker that runs its
        handler, from 1 up to ``ttl``. A worker that can't reach the bucket for so long cancels the
        handler.

    Raises:
      BrokerError: if the server can't be reached or refuses, or has no JetStream; also out of the
        block, when it is lost for good.
    """
    check_bucket(bucket)
    check_ttl(ttl)
    if not 1 <= check_timeout(lease, "lease") <= ttl:
        raise ValueError(f"lease must be from 1 second to the ttl of {ttl:g}, not {lease!r}")
    async with (
        connect(broker) as opened,
        host_idempotency(opened, bucket, ttl, lease) as idempotent,
    ):
        yield idempotent


@asynccontextmanager
async def host_idempotency(
    broker: Broker, bucket: str, ttl: float, lease: float
) -> AsyncIterator[Idempotency]:
    """The same on an open broker."""
    # In this order: whoever opens a bucket first makes it, and it is to keep outputs.
    async with (
        broker.open_bucket(bucket, ttl) as outcomes,
        broker.open_bucket(bucket, lease) as claims,
        open_flat_nursery() as late,
    ):
        idempotent = Idempotency._create(claims, outcomes, lease, late)
        try:
            yield idempotent
        finally:
            idempotent._close()
            late.cancel_scope.cancel()
