# What the conformance suite of the bus needs beside the public API, for each kind of bus.

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from trio_swarmtask.bus import MemoryBus, open_nats_bus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_swarmtask.bus import BusSubscription, MessageBus


class Buses(ABC):
    """One place to meet, and a way to open buses there."""

    @abstractmethod
    def open(self, **settings: Any) -> AbstractAsyncContextManager[MessageBus]:
        """A bus, as if in another process than the ones opened before."""

    @abstractmethod
    def waiting(self, bus: MessageBus) -> int:
        """Requests of ``bus`` that wait for their replies."""

    @abstractmethod
    def has_listeners(self, bus: MessageBus) -> bool:
        """Whether ``bus`` still holds anything of a subscription or a listener."""


class MemoryBuses(Buses):
    """The one `MemoryBus`, however often it is opened; the first block closes it."""

    def __init__(self) -> None:
        self._bus: MemoryBus | None = None

    @asynccontextmanager
    async def open(self, **settings: Any) -> AsyncIterator[MessageBus]:
        if self._bus is None:
            async with MemoryBus(**settings) as self._bus:
                yield self._bus
        else:
            assert not settings, "there is one MemoryBus, and it is open"
            yield self._bus

    def waiting(self, bus: MessageBus) -> int:
        assert isinstance(bus, MemoryBus)
        return sum(subject.startswith("_INBOX.") for subject in bus._literal)

    def has_listeners(self, bus: MessageBus) -> bool:
        assert isinstance(bus, MemoryBus)
        return bool(bus._listeners or bus._literal or bus._patterns)


class NATSBuses(Buses):
    """Each with a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, **settings: Any) -> AbstractAsyncContextManager[MessageBus]:
        return open_nats_bus(self.url, **settings)

    def waiting(self, bus: MessageBus) -> int:
        from trio_swarmtask._nats._bus import NATSBus

        assert isinstance(bus, NATSBus)
        return len(bus._requests._waiting)

    def has_listeners(self, bus: MessageBus) -> bool:
        from trio_swarmtask._nats._bus import NATSBus

        assert isinstance(bus, NATSBus)
        ours = bus._connection.client._subs.keys() - {bus._requests._subscription._id}
        return bool(bus._listeners or bus._subscriptions or ours)


async def settle(sender: MessageBus, *receivers: MessageBus) -> None:
    """Return when all that ``sender`` has published so far has arrived at ``receivers``."""
    for receiver in receivers or (sender,):
        async with receiver.subscribe("all.has.arrived") as messages:
            await sender.publish("all.has.arrived", b"")
            await anext(messages)


async def rest(messages: BusSubscription) -> list[bytes]:
    """What a subscription that has ended still holds."""
    return [message.data async for message in messages]


async def publish_all(bus: MessageBus, subject: str, count: int) -> list[bytes]:
    """Publish numbers; what was published."""
    published = [b"%d" % number for number in range(count)]
    for data in published:
        await bus.publish(subject, data)
    return published


async def answer(bus: MessageBus, messages: BusSubscription) -> None:
    """Reply to each request with its own data, in brackets."""
    async for message in messages:
        await bus.publish(message.reply, b"[" + message.data + b"]")


@asynccontextmanager
async def beside(act: Callable[..., Awaitable[None]], *args: object) -> AsyncIterator[None]:
    """Run ``act`` for the length of a block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(act, *args)
        yield
        nursery.cancel_scope.cancel()
