# Fixtures that every folder of tests shares.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from ports import free_ports
from public_api import use_public_api_if_asked
from swarm import MemorySwarm, NATSSwarm, Swarm
from trio.testing import MockClock

from trio_swarmtask.server import Server, open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


use_public_api_if_asked()


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Run what uses the memory broker on virtual time."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("kind") == "memory":
            item.add_marker(pytest.mark.trio(run=run_on_virtual_time), append=False)


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
