# Fixtures of the suite that runs on every bus. `kind` is the one of the suite of the brokers: what
# runs on memory runs on virtual time.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests._helpers.buses import Buses, MemoryBuses, NATSBuses
from trio_swarmtask.server import open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask.bus import MessageBus


@pytest.fixture
async def buses(kind: str) -> AsyncIterator[Buses]:
    """A place of the kind for buses to meet, all to itself."""
    if kind == "memory":
        yield MemoryBuses()
    else:
        async with open_server() as server:
            yield NATSBuses(server.url)


@pytest.fixture
async def bus(buses: Buses) -> AsyncIterator[MessageBus]:
    """A bus, where one is enough."""
    async with buses.open() as bus:
        yield bus


@pytest.fixture
async def other(buses: Buses, bus: MessageBus) -> AsyncIterator[MessageBus]:
    """The bus of another process."""
    async with buses.open() as other:
        yield other
