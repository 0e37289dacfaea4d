# What the runners of all peers share: the protocol on their standard streams
#
# A runner is a program: `python FILE ROLE URL NAME OPTIONS`. ROLE is `worker` or `dispatcher`, URL
# the server's, NAME that of the queue, OPTIONS a JSON object: `Options` has its keys. It prints
# `ready` once it can work, then answers each line of JSON on standard input with one on standard
# output, and ends when its standard input does.
#
# No runner is named as its library: Python would import the runner in its place.
#
# - A worker answers any line with its CPU seconds, its resident bytes, and how many tasks it has
#   served: their handlers have ended.
# - A dispatcher takes `{"do": "run", "tasks": n, "in_flight": k, "payload": bytes}`: n tasks, k at
#   a time, each awaited to its result; and `{"do": "enqueue", "tasks": n, "payload": bytes}`: n
#   tasks sent, none awaited. `payload` is the length of the string that each task carries.

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

SENDS: Final = 100  # at once, where the library has no call for many tasks


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the driver asks of a runner; the dispatcher needs none but `uvloop` and `poll`."""

    concurrency: int = 100
    """Tasks that the worker may run at once."""

    sleep: float = 0.0
    """Seconds that the handler awaits. 0: it does nothing."""

    capabilities: int = 1
    """Names that the worker serves. All tasks go to the first."""

    uvloop: bool = False
    """Whether to run on uvloop instead of asyncio's own loop."""

    poll: float | None = None
    """Seconds between two looks, where the library finds tasks or results by looking again and
    again. None: what its runner takes."""

    @property
    def names(self) -> list[str]:
        return ["work", *(f"work-{number}" for number in range(1, self.capabilities))]


class Handler:
    """The task that is measured: nothing, or a sleep. Each runner wraps it as its library asks."""

    def __init__(self, options: Options) -> None:
        self._sleep = options.sleep
        self.served = 0

    async def __call__(self) -> None:
        if self._sleep:
            await asyncio.sleep(self._sleep)
        self.served += 1


class Dispatcher(Protocol):
    """The side that sends, as each runner writes it for its library."""

    async def run(self, text: str) -> None:
        """Send one task, and return once its result is there and a success."""

    async def enqueue(self, tasks: int, text: str) -> None:
        """Send so many tasks, and return once the server has them."""


class Role(Protocol):
    """A runner's `work` or `dispatch`: runs until the standard input ends."""

    def __call__(self, url: str, name: str, options: Options) -> Coroutine[None, None, None]: ...


@asynccontextmanager
async def background(run: Coroutine[None, None, object]) -> AsyncIterator[None]:
    """Run a worker beside the body: cancelled when the body ends; if it ends first, so do both."""
    ending = False

    async def must_go_on() -> None:
        await run
        if not ending:  # some take a cancellation as the call to end in order
            raise RuntimeError("the worker has ended by itself")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(must_go_on())
        yield
        ending = True
        task.cancel()


async def serve(handler: Handler) -> None:
    """Answer the driver of a worker."""
    orders = await open_orders()
    while await orders.readline():
        answer({"cpu": time.process_time(), "rss": resident(), "served": handler.served})


def resident() -> int:
    """The bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def follow(dispatcher: Dispatcher) -> None:
    """Do what the driver of a dispatcher orders."""
    orders = await open_orders()
    while line := await orders.readline():
        order = json.loads(line)
        text = "x" * order.get("payload", 0)
        started, cpu = time.perf_counter(), time.process_time()
        if order["do"] == "enqueue":
            latencies = []
            await dispatcher.enqueue(order["tasks"], text)
        else:
            latencies = await lanes(dispatcher, order["tasks"], order["in_flight"], text)
        figures: dict[str, object] = {
            "seconds": time.perf_counter() - started,
            "cpu": time.process_time() - cpu,
        }
        if order["do"] == "run":
            figures["latencies"] = latencies if order["in_flight"] == 1 else []
        answer(figures)


async def lanes(dispatcher: Dispatcher, tasks: int, in_flight: int, text: str) -> list[float]:
    """Run so many tasks with so many in flight, and time each."""
    left = tasks
    latencies: list[float] = []

    async def lane() -> None:
        nonlocal left
        while left:
            left -= 1
            started = time.perf_counter()
            await dispatcher.run(text)
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return latencies


async def each(tasks: int, send: Callable[[], Awaitable[object]]) -> None:
    """Send so many tasks one by one, many at once."""
    left = tasks

    async def lane() -> None:
        nonlocal left
        while left:
            left -= 1
            await send()

    await asyncio.gather(*(lane() for _ in range(SENDS)))


async def open_orders() -> asyncio.StreamReader:
    """The driver's lines. A pipe, not a thread: a thread would keep a failed runner from ending."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    print("ready", flush=True)
    return reader


def answer(figures: dict[str, object]) -> None:
    print(json.dumps(figures), flush=True)


def main(work: Role, dispatch: Role) -> None:
    """Run the program that a runner is."""
    _, role, url, name, *rest = sys.argv
    options = Options(**json.loads(rest[0] if rest else "{}"))
    run = {"worker": work, "dispatcher": dispatch}[role](url, name, options)
    if options.uvloop:
        import uvloop

        uvloop.run(run)
    else:
        asyncio.run(run)
