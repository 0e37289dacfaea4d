# Draining: tasks are enqueued while no worker is there, and then worked off
#
# A worker is opened once before, so that the streams and the durable are there, and the dispatcher
# is closed before the clock starts: what is timed is the workers alone, from the moment their
# processes are started.

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from .roles import RoleError, open_role
from .turns import new_name

if TYPE_CHECKING:
    from .roles import Role
    from .runners import Runner
    from .servers import Server

POLL_SECONDS: Final = 0.02
STUCK_SECONDS: Final = 60.0  # without a task done: then one was lost
_TRIAL: Final = 300  # tasks, to find out how many are not too many


@dataclass
class Sample:
    """What one worker answered, and when."""

    at: float
    """Seconds since its process was started."""
    served: int
    rss: int
    """Bytes."""
    cpu: float
    """Seconds."""


@dataclass
class Drained:
    """How one drain went."""

    tasks: int
    enqueue_seconds: float
    seconds: float = 0.0
    ready_seconds: float = 0.0
    """After which the first worker was ready."""
    worker_cpu: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    """Of the first worker."""

    def values(self) -> dict[str, float]:
        """By metric."""
        return {
            "tasks": float(self.tasks),
            "enqueue_rate": self.tasks / self.enqueue_seconds,
            "rate": self.tasks / self.seconds,
            "rate_ready": self.tasks / (self.seconds - self.ready_seconds),
            "cpu_worker": self.worker_cpu / self.tasks * 10_000,
        }


async def drain(
    server: Server, runner: Runner, tasks: int, workers: int = 1, concurrency: int = 100
) -> Drained:
    """Enqueue so many tasks, then start the workers, and wait until all are done.

    Raises:
      RoleError: if a role can't run, or no task was done for a minute.
    """
    name = new_name()
    async with open_role(runner, "worker", server.url, name, concurrency=concurrency) as worker:
        await worker.wait_ready()
    async with open_role(runner, "dispatcher", server.url, name) as dispatcher:
        await dispatcher.wait_ready()
        enqueued = await dispatcher.ask(do="enqueue", tasks=tasks, payload=0)
    drained = Drained(tasks, enqueued["seconds"])
    watch = _Watch(drained, workers)
    async with AsyncExitStack() as stack:
        started = time.perf_counter()
        roles = []
        for _ in range(workers):
            opened = open_role(runner, "worker", server.url, name, concurrency=concurrency)
            roles.append(await stack.enter_async_context(opened))
        async with trio.open_nursery() as nursery:
            for number, role in enumerate(roles):
                nursery.start_soon(watch.follow, number, role, started)
            await watch.wait_done()
            nursery.cancel_scope.cancel()
    return drained


async def find_size(
    server: Server, runner: Runner, most: int, seconds: float, concurrency: int
) -> int:
    """How many tasks one worker drains in so many seconds, about; ``most`` at most."""
    trial = await drain(server, runner, min(_TRIAL, most), concurrency=concurrency)
    return max(1, min(most, int(trial.values()["rate_ready"] * seconds)))


class _Watch:
    """Asks all workers again and again, until together they have done all."""

    def __init__(self, drained: Drained, workers: int) -> None:
        self._drained = drained
        self._last = [Sample(0.0, 0, 0, 0.0)] * workers
        self._served = 0
        self._waiting = trio.CancelScope()
        self._done = trio.Event()

    async def wait_done(self) -> None:
        with self._waiting as waiting:
            waiting.deadline = trio.current_time() + STUCK_SECONDS
            await self._done.wait()
        if waiting.cancelled_caught:
            raise RoleError(
                f"{self._served} of {self._drained.tasks} tasks were drained, and then none for "
                f"{STUCK_SECONDS:g} s"
            )

    async def follow(self, number: int, role: Role, started: float) -> None:
        drained = self._drained
        await role.wait_ready()
        if not drained.ready_seconds:
            drained.ready_seconds = time.perf_counter() - started
        while True:
            answer = await role.ask(do="tell")
            at = time.perf_counter() - started
            sample = Sample(at, answer["served"], answer["rss"], answer["cpu"])
            self._last[number] = sample
            if number == 0:
                drained.samples.append(sample)
            served = sum(last.served for last in self._last)
            if served > self._served:
                self._served = served
                self._waiting.deadline = trio.current_time() + STUCK_SECONDS
            if served >= drained.tasks and not self._done.is_set():
                drained.seconds = at
                drained.worker_cpu = sum(last.cpu for last in self._last)
                self._done.set()
            await trio.sleep(POLL_SECONDS)
