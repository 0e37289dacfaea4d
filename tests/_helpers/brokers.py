# What the conformance suite needs of a broker beside the public API, for each kind of broker.
#
# `swarm.broker` is what a test hands to open_dispatcher and open_worker: the one MemoryBroker, or a
# config, so that on NATS each role has a connection of its own, as if in another process.

from __future__ import annotations

import functools
import gc
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
from trio.testing import MockClock

from tests._helpers.api_client import Raw
from trio_swarmtask import (
    BrokerError,
    Dispatcher,
    MemoryBroker,
    Message,
    NATSConfig,
    Worker,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._abc import Broker, Outbox, ResultListener
from trio_swarmtask._jetstream._reports import Following
from trio_swarmtask._memory._store import Task
from trio_swarmtask._nats._connection import open_connection
from trio_swarmtask._nats._requests import open_requests

AsyncTest = Callable[..., Awaitable[None]]


def within(seconds: float) -> Callable[[AsyncTest], AsyncTest]:
    """A deadline for a test: on a real broker whatever does not come must not hang the run."""

    def decorate(test: AsyncTest) -> AsyncTest:
        @functools.wraps(test)
        async def limited(*args: Any, **kwargs: Any) -> None:
            with trio.fail_after(seconds):
                await test(*args, **kwargs)

        return limited

    return decorate


def run_on_virtual_time(test: Callable[[], Awaitable[None]], **settings: Any) -> None:
    trio.run(test, **{**settings, "clock": MockClock(autojump_threshold=0)})


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds, of what happens in this Trio run: looked at as it happens."""
    if condition():
        return
    met = trio.Event()

    class Watch(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            if condition():
                met.set()

    watch = Watch()
    trio.lowlevel.add_instrument(watch)
    try:
        await met.wait()
    finally:
        trio.lowlevel.remove_instrument(watch)


async def echo(message: Message) -> dict[str, str]:
    """A handler that gives its inputs back."""
    return message.inputs


class Deaf(ResultListener):
    """For an outbox that is used to store and fetch alone."""

    def result_stored(self, task_id: str, data: bytes) -> None: ...

    def outstanding(self) -> Collection[str]:
        return ()

    def broker_lost(self, error: BrokerError) -> None: ...

    def own_ids_unheard(self) -> None: ...


class Swarm(ABC):
    """One broker, and a way to look at it and to meddle with it."""

    broker: Any

    def dispatcher(self, **settings: Any) -> AbstractAsyncContextManager[Dispatcher]:
        return open_dispatcher(self.broker, **settings)

    def worker(self, **settings: Any) -> AbstractAsyncContextManager[Worker]:
        return open_worker(self.broker, **settings)

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Broker]:
        """The broker itself, opened."""

    @asynccontextmanager
    async def outbox(self) -> AsyncIterator[Outbox]:
        """To store any bytes under any ID, as another program may."""
        async with (
            self.open() as broker,
            broker.open_outbox("outsider", lambda _: Deaf()) as outbox,
        ):
            yield outbox

    @abstractmethod
    def configure(self, **settings: Any) -> None:
        """Settings for what is opened from now on: ack_wait, result_ttl, max_payload."""

    @abstractmethod
    async def store_result(self, task_id: str, data: bytes) -> None:
        """Store a result, as another worker may."""

    @abstractmethod
    async def store_again(self, capability: str, task_id: str, data: bytes) -> None:
        """Store a task whose ID the broker has forgotten, as it may after two minutes."""

    @abstractmethod
    async def report(self, task_id: str, data: bytes) -> None:
        """Send what another program may, as a report of a task."""

    @abstractmethod
    def count_followers(self) -> int:
        """Iterations over updates that hold something at the broker, in this process."""

    @abstractmethod
    async def dead_letters(self) -> dict[str, str]:
        """``{task id: reason}``."""

    @abstractmethod
    async def stored_result(self, task_id: str) -> bytes | None:
        """The one result of a task."""

    @abstractmethod
    async def count_tasks(self) -> int:
        """Tasks that have not ended."""

    @abstractmethod
    async def limit_tasks(self, limit: int) -> None:
        """Let the broker hold at most so many tasks."""

    @abstractmethod
    async def limit_results(self, limit: int) -> None:
        """Let the broker hold at most so many results."""

    @abstractmethod
    async def forget_ids_soon(self) -> None:
        """Let the broker remember the ID of a task for 0.1 s, before there is one."""

    @abstractmethod
    async def shorten_leases(self, seconds: float) -> None:
        """Let a lease of a group last so long, before there is one."""

    @abstractmethod
    async def make_room_for_results(self) -> None:
        """Let there be room again."""

    async def wait_until_empty(self) -> None:
        """Wait until every task has ended."""
        # An ack has no reply, and its effect no event: there is nothing to wait for but the count.
        while await self.count_tasks():  # noqa: ASYNC110 - no event
            await trio.sleep(0.01)


class MemorySwarm(Swarm):
    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.broker = MemoryBroker()

    def configure(self, **settings: Any) -> None:
        self.settings = settings
        self.broker = MemoryBroker(**settings)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Broker]:
        yield self.broker

    async def store_result(self, task_id: str, data: bytes) -> None:
        assert await self.broker._store.finish(task_id, data)

    async def store_again(self, capability: str, task_id: str, data: bytes) -> None:
        self.broker._add(Task(capability, task_id, data))

    async def report(self, task_id: str, data: bytes) -> None:
        self.broker._store.followers.tell(task_id, data)

    def count_followers(self) -> int:
        return sum(len(same) for same in self.broker._store.followers._all.values())

    async def dead_letters(self) -> dict[str, str]:
        return {letter.task_id: letter.reason for letter in self.broker.dead_letters}

    async def stored_result(self, task_id: str) -> bytes | None:
        return self.broker._store.results.get(task_id)

    async def count_tasks(self) -> int:
        return self.broker._store.room.count

    async def limit_tasks(self, limit: int) -> None:
        self.broker = MemoryBroker(**self.settings, max_tasks=limit)

    async def limit_results(self, limit: int) -> None:
        self.broker = MemoryBroker(**self.settings, max_results=limit, result_ttl=5)

    async def forget_ids_soon(self) -> None:
        self.broker._store.recent._ttl = 0.1

    async def shorten_leases(self, seconds: float) -> None:
        self.broker._store.lease_seconds = seconds
        self.broker._store.leases._ttl = seconds

    async def make_room_for_results(self) -> None:
        await trio.sleep(5)  # until they expire


class NATSSwarm(Swarm):
    def __init__(self, url: str) -> None:
        self.url = url
        self.broker = NATSConfig(url)

    def configure(self, **settings: Any) -> None:
        self.broker = NATSConfig(self.url, **settings)

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return open_broker(self.broker)

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[Raw]:
        """A plain client, for what no public function does."""
        async with (
            open_connection(NATSConfig(self.url)) as connection,
            trio.open_nursery() as nursery,
            open_requests(connection, nursery) as requests,
        ):
            yield Raw(connection, requests)
            nursery.cancel_scope.cancel()

    async def store_result(self, task_id: str, data: bytes) -> None:
        async with self.raw() as raw:
            await raw.store(f"done.{task_id}", data)

    async def store_again(self, capability: str, task_id: str, data: bytes) -> None:
        async with self.raw() as raw:
            await raw.store(f"work.{capability}.{task_id}", data)

    async def report(self, task_id: str, data: bytes) -> None:
        async with self.raw() as raw:
            raw.connection.publish(f"results.{task_id}", data)
            await raw.requests.echo()

    def count_followers(self) -> int:
        subscribed = [one for one in gc.get_objects() if isinstance(one, Following)]
        return sum(one._begun for one in subscribed)

    async def dead_letters(self) -> dict[str, str]:
        letters = {}
        async with self.raw() as raw:
            for subject in await raw.subjects("TASK_DEAD", "dead.>"):
                _, reason = await raw.get("TASK_DEAD", subject)
                letters[subject.split(".", 2)[2]] = reason
        return letters

    async def stored_result(self, task_id: str) -> bytes | None:
        async with self.outbox() as outbox:
            return await outbox.fetch(task_id)

    async def count_tasks(self) -> int:
        async with self.raw() as raw:
            return (await raw.api("STREAM.INFO.TASKS"))["state"]["messages"]

    async def limit_tasks(self, limit: int) -> None:
        async with self.raw() as raw:
            await raw.api(
                "STREAM.CREATE.TASKS",
                name="TASKS",
                subjects=["work.>"],
                storage="file",
                retention="workqueue",
                discard="new",
                max_msgs=limit,
            )

    async def limit_results(self, limit: int) -> None:
        async with open_broker(self.broker) as broker, broker.open_outbox("any", lambda _: Deaf()):
            await self._update_results(max_msgs=limit)

    async def forget_ids_soon(self) -> None:
        async with self.raw() as raw:
            await raw.api(
                "STREAM.CREATE.TASKS",
                name="TASKS",
                subjects=["work.>"],
                storage="file",
                retention="workqueue",
                allow_msg_schedules=True,
                duplicate_window=100_000_000,
            )

    async def shorten_leases(self, seconds: float) -> None:
        async with self.raw() as raw:
            await raw.api(
                "STREAM.CREATE.SHORT",
                name="SHORT",
                subjects=["lease.>"],
                max_age=round(seconds * 1e9),
                duplicate_window=round(seconds * 1e9),
                max_msgs_per_subject=1,
            )

    async def make_room_for_results(self) -> None:
        await self._update_results(max_msgs=1000)

    async def _update_results(self, **changes: Any) -> None:
        async with self.raw() as raw:
            info = await raw.api("STREAM.INFO.TASK_RESULTS")
            await raw.api("STREAM.UPDATE.TASK_RESULTS", **{**info["config"], **changes})
