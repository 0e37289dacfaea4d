# The arena: a server, worker processes, a dispatcher under load, and the ledger of it all.
#
#     async with open_arena(tmp_path, row, rng) as arena:
#         await arena.add_worker()
#         async with arena.load():
#             ...                    # do harm; the load goes on
#         await arena.check()        # all results are there: the invariant

from __future__ import annotations

import itertools
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from tests._helpers.faults.ledger import Ledger, dead_letters
from tests._helpers.faults.processes import FaultServer, WorkerProcess
from tests._helpers.ports import free_ports
from trio_swarmtask import Dispatcher, Future, Message, NATSConfig, Result, open_dispatcher

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests._helpers.faults.table import Row
    from tests._helpers.plain_nats import PlainClient

# Seconds that the last results may take once the harm is over.
PATIENCE = 60


@dataclass
class Arena:
    directory: Path
    row: Row
    rng: random.Random
    nursery: trio.Nursery
    url: str
    ledger: Ledger
    workers: list[WorkerProcess] = field(default_factory=list)
    dispatcher: Dispatcher = field(init=False)
    server: FaultServer = field(init=False)
    settings: dict[str, Any] = field(default_factory=lambda: {"ack_wait": 2})
    """Of every worker, unless it is given others."""
    _names: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def add_worker(self, **settings: Any) -> WorkerProcess:
        """Start one more worker process; return once it takes tasks."""
        name = f"worker-{next(self._names)}"
        settings = {"url": self.url, **self.settings, **settings}
        worker = await WorkerProcess.start(self.nursery, self.directory, name, **settings)
        self.workers.append(worker)
        return worker

    async def add_workers(self, count: int, **settings: Any) -> list[WorkerProcess]:
        return [await self.add_worker(**settings) for _ in range(count)]

    async def run(
        self,
        seconds: float = 0,
        dispatcher: Dispatcher | None = None,
        capability: str = "work",
        **inputs: str,
    ) -> Result:
        """Send one task, whose handler takes ``seconds``, and wait for its result."""
        return await self.wait(await self.start(seconds, dispatcher, capability, **inputs))

    async def start(
        self,
        seconds: float = 0,
        dispatcher: Dispatcher | None = None,
        capability: str = "work",
        **inputs: str,
    ) -> Future:
        message = Message(inputs={"seconds": f"{seconds}", **inputs})
        future = await (dispatcher or self.dispatcher).start(capability, message)
        self.ledger.sent.add(future.id)
        return future

    async def wait(self, future: Future) -> Result:
        self.ledger.waiting.add(future.id)
        result = await future.wait()
        self.ledger.note_result(future.id, result)
        return result

    async def try_to_run(self, dispatcher: Dispatcher | None = None) -> None:
        """Send one task and wait, as somebody does whose deadline will end it."""
        task_id = f"tried-{next(self._names)}"
        self.ledger.leftover.add(task_id)
        await (dispatcher or self.dispatcher).run("work", Message(id=task_id))

    async def poison(self, client: PlainClient) -> None:
        """Store what no worker can read; return once it is a dead letter."""
        task_id = f"poison-{next(self._names)}"
        self.ledger.poison.add(task_id)
        assert (await client.request(f"work.work.{task_id}", {"version": "one"})).data
        while task_id not in await dead_letters(client):  # noqa: ASYNC110 - no event
            await trio.sleep(0.02)

    @asynccontextmanager
    async def load(
        self,
        in_flight: int = 20,
        *,
        shortest: float = 0,
        longest: float = 0.2,
        dispatcher: Dispatcher | None = None,
    ) -> AsyncIterator[None]:
        """Keep tasks in flight while the block runs; leaving it waits for all their results."""
        stopping = trio.Event()

        async def one_after_the_other() -> None:
            while not stopping.is_set():
                await self.run(self.rng.uniform(shortest, longest), dispatcher)

        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(one_after_the_other)
            yield
            stopping.set()
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
        if nursery.cancel_scope.cancelled_caught:
            raise AssertionError(f"results are still missing after {PATIENCE} s: {self.dispatcher}")

    async def check(self, **settings: bool) -> None:
        """The invariant. What the settings mean: `Ledger.check`."""
        await self.ledger.check(self.server.port, **settings)

    async def limit_results(self, client: PlainClient, limit: int) -> None:
        """Let the stream of results hold so many; -1: any number."""
        config = (await client.api("STREAM.INFO.TASK_RESULTS"))["config"]
        await client.api("STREAM.UPDATE.TASK_RESULTS", **{**config, "max_msgs": limit})


@asynccontextmanager
async def open_arena(
    directory: Path,
    row: Row,
    rng: random.Random,
    *,
    arguments: Sequence[str] = ("--jetstream",),
    **settings: Any,
) -> AsyncIterator[Arena]:
    """A fresh server and a dispatcher. ``settings`` are those of a NATSConfig, for everybody."""
    async with trio.open_nursery() as nursery:
        server = FaultServer(nursery, next(free_ports), directory / "store", arguments)
        await server.start()
        async with open_arena_on(server.url, directory, row, rng, **settings) as arena:
            arena.server = server
            yield arena
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_arena_on(
    url: str, directory: Path, row: Row, rng: random.Random, **settings: Any
) -> AsyncIterator[Arena]:
    """An arena on servers that are there."""
    async with trio.open_nursery() as nursery:
        arena = Arena(directory, row, rng, nursery, url, Ledger(directory, row))
        arena.settings.update(settings)
        async with open_dispatcher(NATSConfig(url, **arena.settings)) as arena.dispatcher:
            yield arena
        nursery.cancel_scope.cancel()
