# What the conformance suite of the results needs beside the public API, for each kind of publisher.

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from trio_swarmtask.bus import MemoryBus, open_nats_bus
from trio_swarmtask.results import (
    BusPublisher,
    BusPublisherConfig,
    MemoryPublisher,
    Result,
    ResultStatus,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask import MemoryBroker
    from trio_swarmtask.results import ResultPublisher, Subscription

IN_MEMORY: Final = ("memory", "bus-memory", "kv-memory")
VARIANTS: Final = (*IN_MEMORY, "bus-nats", "kv-nats")

on_shared: Final = pytest.mark.parametrize("variant", ["kv-memory", "kv-nats"])
"""For what other processes can look up."""
on_heard: Final = pytest.mark.parametrize(
    "variant", ["bus-memory", "kv-memory", "bus-nats", "kv-nats"]
)
"""For what other processes can follow."""

PENDING: Final = Result(status=ResultStatus.PENDING)
SUCCESS: Final = Result(status=ResultStatus.SUCCESS, output=b"42")
FAILED: Final = Result(status=ResultStatus.FAILED, error="disk full")


def pending(number: int) -> Result:
    """An update that can be told from others."""
    return Result(status=ResultStatus.PENDING, output=b"%d" % number)


def success(number: int) -> Result:
    """An end that can be told from others."""
    return Result(status=ResultStatus.SUCCESS, output=b"%d" % number)


class Publishers(ABC):
    """One place where results are, and a way to open publishers on it."""

    any_id = False
    """Whether any string that is not empty is a task ID."""
    max_output: int | None = None
    """An output of so many bytes is surely too large."""

    @abstractmethod
    def open(self, **settings: Any) -> AbstractAsyncContextManager[ResultPublisher]:
        """A publisher, as another process would have it than those opened before."""


class MemoryPublishers(Publishers):
    """The one `MemoryPublisher`, however often it is opened; the first block closes it."""

    any_id = True

    def __init__(self) -> None:
        self._publisher: MemoryPublisher | None = None

    @asynccontextmanager
    async def open(self, **settings: Any) -> AsyncIterator[ResultPublisher]:
        if self._publisher is None:
            async with MemoryPublisher(**settings) as self._publisher:
                yield self._publisher
        else:
            yield self._publisher


class MemoryBusPublishers(Publishers):
    """On one `MemoryBus`."""

    def __init__(self) -> None:
        self.bus = MemoryBus()

    @asynccontextmanager
    async def open(self, **settings: Any) -> AsyncIterator[ResultPublisher]:
        async with BusPublisher(self.bus, BusPublisherConfig(**settings)) as publisher:
            yield publisher


class NATSBusPublishers(Publishers):
    """Each on a bus, and a connection, of its own."""

    max_output = 1024 * 1024

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def open(self, **settings: Any) -> AsyncIterator[ResultPublisher]:
        config = BusPublisherConfig(**settings)
        async with open_nats_bus(self._url) as bus, BusPublisher(bus, config) as publisher:
            yield publisher


class KVPublishers(Publishers):
    """Each on its own connection, where there are any."""

    max_output = 1024 * 1024

    def __init__(self, broker: str | MemoryBroker) -> None:
        self.broker = broker

    def open(self, **settings: Any) -> AbstractAsyncContextManager[ResultPublisher]:
        return open_kv_publisher(self.broker, **settings)


async def rest(updates: Subscription) -> list[Result]:
    """What a subscription still gives, until it ends."""
    return [update async for update in updates]


async def outputs(updates: Subscription) -> list[bytes]:
    """The outputs of what a subscription still gives, until it ends."""
    return [update.output async for update in updates]


class Reader:
    """Follows a task in the background, and lets others wait for what it gets.

    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(publisher, "t1").run)
        await reader.got(2)
    """

    def __init__(self, publisher: ResultPublisher, task_id: str) -> None:
        self._publisher = publisher
        self._task_id = task_id
        self._changed = trio.Event()
        self.updates: Subscription
        self.read: list[Result] = []
        self.ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[Reader]) -> None:
        async with self._publisher.subscribe(self._task_id) as self.updates:
            task_status.started(self)
            async for update in self.updates:
                self.read.append(update)
                self._changed.set()
                self._changed = trio.Event()
        self.ended.set()

    async def got(self, count: int) -> list[Result]:
        """Wait until so many updates were read, and the reader sleeps in `anext` again."""
        while len(self.read) < count:
            await self._changed.wait()
        await trio.testing.wait_all_tasks_blocked()
        return self.read
