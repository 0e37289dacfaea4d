# What users call to open something: a broker, a dispatcher, a worker, a bus, idempotency.
#
# Only this module decides which broker is used. The NATS broker is imported when it is first
# opened: a program that uses the memory broker never loads asyncio.

from __future__ import annotations

import math
import os
import secrets
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ._abc import Broker
from ._check import check_bucket, check_count, check_timeout, check_ttl
from ._config import NATSConfig
from ._dispatcher._dispatcher import Dispatcher, host_dispatcher
from ._idempotency import Idempotency, host_idempotency
from ._interrupts import block
from ._util import check_seconds, shorten
from ._worker._worker import Worker, host_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._bus import MessageBus


@block
@asynccontextmanager
async def open_broker(broker: str | NATSConfig | None = None) -> AsyncIterator[Broker]:
    """Connect to a NATS server: one connection, to be shared by several roles.

    A refused or silent server is tried again until ``connect_timeout``; wrong credentials and TLS
    failures end it at once. When the server is lost for good, the block is cancelled and left by
    `BrokerError`. Leaving the block closes the connection.

    Args:
      broker: A URL (``nats://…``, ``tls://…``, or a comma-separated list), a `NATSConfig`, or None
        for the environment's ``NATS_URL``, else ``nats://127.0.0.1:4222``.

    Raises:
      BrokerError: if no server can be reached, or it has no JetStream, or TLS was asked for and not
        given.
      AuthenticationError: if the server refuses the credentials.
    """
    async with connect(as_config(broker)) as opened:
        yield opened


@block
@asynccontextmanager
async def open_dispatcher(
    broker: str | NATSConfig | Broker | None = None, *, name: str | None = None
) -> AsyncIterator[Dispatcher]:
    """Open a dispatcher; leaving the block is its `Dispatcher.aclose`.

    Args:
      broker: A URL, a `NATSConfig`, an open `Broker` to share, or None for the environment's
        ``NATS_URL``, else ``nats://127.0.0.1:4222``.
      name: What is written into a blank ``submitted_by``. None: host, process, a few random
        characters.

    Raises:
      BrokerError: if the server can't be reached or refuses; also out of the block, when it is lost
        for good.
    """
    name = _check_name(name)
    async with (
        connect(broker, name) as opened,
        host_dispatcher(opened, name) as dispatcher,
    ):
        yield dispatcher


@block
@asynccontextmanager
async def open_worker(
    broker: str | NATSConfig | Broker | None = None,
    *,
    name: str | None = None,
    default_timeout: float = math.inf,
    max_deliveries: int = 5,
) -> AsyncIterator[Worker]:
    """Open a worker; give it handlers with `Worker.handle`.

    Leaving the block is `Worker.aclose`: it asks for no more tasks and lets running handlers
    finish. If the block is left by an exception or a cancellation, the handlers are cancelled and
    their tasks given back to the queue.

    Args:
      broker: A URL, a `NATSConfig`, an open `Broker` to share, or None for the environment's
        ``NATS_URL``, else ``nats://127.0.0.1:4222``.
      name: The agent of its results. None: host, process, a few random characters.
      default_timeout: Seconds that a handler may take if its message says nothing.
      max_deliveries: A task that was delivered more often, clean give-backs not counted, is set
        aside as a dead letter.

    Raises:
      BrokerError: if the server can't be reached or refuses; also out of the block, when it is lost
        for good.
    """
    name = _check_name(name)
    if not check_seconds("default_timeout", default_timeout) > 0:
        raise ValueError(f"default_timeout must be more than 0 seconds, not {default_timeout!r}")
    check_count("max_deliveries", max_deliveries)
    async with (
        connect(broker, name) as opened,
        host_worker(opened, name, default_timeout, max_deliveries) as worker,
    ):
        yield worker


@asynccontextmanager
async def connect(
    broker: str | NATSConfig | Broker | None, name: str | None = None
) -> AsyncIterator[Broker]:
    """Share a broker that is open already, or open a new connection."""
    if isinstance(broker, Broker):
        yield broker
        return
    from ._jetstream import open_nats_broker

    async with open_nats_broker(named(as_config(broker), name or default_name())) as opened:
        yield opened


def named(config: NATSConfig, name: str) -> NATSConfig:
    """``config``, with a name for the server's monitoring."""
    return replace(config, name=name) if config.name is None else config


def as_config(broker: object) -> NATSConfig:
    """The config of the server that the user named; TypeError if ``broker`` names none."""
    if broker is None:
        return NATSConfig()
    if isinstance(broker, NATSConfig):
        return broker
    if isinstance(broker, str):
        return NATSConfig(broker)
    kind = type(broker).__name__  # not the value: it may hold a password
    if isinstance(broker, Broker):
        raise TypeError(f"this {kind} is open already: pass it to open_dispatcher or open_worker")
    raise TypeError(
        f"a {kind} can't be a broker: pass a URL, a NATSConfig or None, or an open Broker to share"
    )


def _check_name(name: str | None) -> str:
    if name is None:
        return default_name()
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {shorten(name)}")
    if not name or not name.isprintable():
        raise ValueError(f"name must be of printable characters, at least one, not {name!r}")
    return name


def default_name() -> str:
    """Host, process, a few random characters."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


@block
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
    from ._jetstream import NATSBroker
    from ._nats import open_bus_on, open_nats_bus as connect

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


@block
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
