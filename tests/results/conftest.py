# Fixtures of the suite that runs on every publisher. What needs no server runs on virtual time.

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from tests._helpers.publishers import (
    IN_MEMORY,
    VARIANTS,
    KVPublishers,
    MemoryBusPublishers,
    MemoryPublishers,
    NATSBusPublishers,
    Publishers,
)
from trio_swarmtask import MemoryBroker
from trio_swarmtask.server import open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_swarmtask.results import ResultPublisher


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """As in the conftest above, which knows the parameter `kind` alone."""
    for item in items:
        if not inspect.iscoroutinefunction(item.obj):
            continue
        callspec = getattr(item, "callspec", None)
        variant = None if callspec is None else callspec.params.get("variant")
        if variant in IN_MEMORY or "virtual_time" in item.fixturenames:
            item.add_marker(pytest.mark.trio(run=_run_on_virtual_time), append=False)


def _run_on_virtual_time(test: Callable[[], Awaitable[None]], **settings: Any) -> None:
    trio.run(test, **{**settings, "clock": MockClock(autojump_threshold=0)})


@pytest.fixture
def virtual_time() -> None:
    """For a test, or with `usefixtures` a file of tests, that needs no server."""


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Which publisher: a test that asks for `publishers` runs once on each."""
    return request.param


@pytest.fixture
async def publishers(variant: str) -> AsyncIterator[Publishers]:
    """A place of the variant for results, all to itself."""
    if variant == "memory":
        yield MemoryPublishers()
    elif variant == "bus-memory":
        yield MemoryBusPublishers()
    elif variant == "kv-memory":
        yield KVPublishers(MemoryBroker())
    else:
        async with open_server() as server:
            yield NATSBusPublishers(server.url) if "bus" in variant else KVPublishers(server.url)


@pytest.fixture
async def publisher(publishers: Publishers) -> AsyncIterator[ResultPublisher]:
    """A publisher, where one is enough."""
    async with publishers.open() as publisher:
        yield publisher


@pytest.fixture
async def other(
    publishers: Publishers, publisher: ResultPublisher
) -> AsyncIterator[ResultPublisher]:
    """The publisher of another process."""
    async with publishers.open() as other:
        yield other
