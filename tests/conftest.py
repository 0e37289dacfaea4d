# Fixtures that every folder of tests shares.

from __future__ import annotations

import itertools
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from swarm import MemorySwarm, NATSSwarm, Swarm
from trio.testing import MockClock

from trio_swarmtask.server import Server, open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Run what uses the memory broker on virtual time."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("kind") == "memory":
            item.add_marker(pytest.mark.trio(run=run_on_virtual_time), append=False)


def find_free_ports() -> Iterator[int]:
    """Ports below those that the system gives out by itself.

    While a server is down, any other socket may be given a port of that range, and the server
    can't come back. Each process of pytest-xdist has numbers of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in itertools.cycle(range(12000 + worker % 10 * 2000, 14000 + worker % 10 * 2000)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                yield port


free_ports = find_free_ports()


def run_on_virtual_time(test: Callable[[], Awaitable[None]], **settings: Any) -> None:
    trio.run(test, **{**settings, "clock": MockClock(autojump_threshold=0)})


@pytest.fixture(params=["memory", "nats"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker: a test that asks for `swarm` runs once on each."""
    return request.param


@pytest.fixture
async def swarm(kind: str) -> AsyncIterator[Swarm]:
    """A broker of the kind, all to itself."""
    if kind == "memory":
        yield MemorySwarm()
    else:
        async with open_server() as server:
            yield NATSSwarm(server.url)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A real nats-server with JetStream, all to itself. It may be restarted on its port."""
    async with open_server(port=next(free_ports)) as server:
        yield server


@pytest.fixture
async def nats_swarm(server: Server) -> NATSSwarm:
    """For what only a real server can show."""
    return NATSSwarm(server.url)
