# The library: a dispatcher and a worker as its users write them
#
# Both roles are driven through their standard streams, as bare.py is; run.py says how.

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import trio

from trio_swarmtask import Message, Status, open_dispatcher, open_worker

if TYPE_CHECKING:
    from trio_swarmtask import Dispatcher


async def no_op(message: Message) -> None:
    """The handler that is measured: nothing."""


async def run_worker(url: str, capability: str) -> None:
    async with open_worker(url) as worker:
        await worker.handle(capability, no_op)
        print("ready", flush=True)
        async for _line in trio.wrap_file(sys.stdin):
            print(json.dumps({"cpu": time.process_time()}), flush=True)


async def run_dispatcher(url: str, capability: str) -> None:
    async with open_dispatcher(url) as dispatcher:
        print("ready", flush=True)
        async for line in trio.wrap_file(sys.stdin):
            order = json.loads(line)
            figures = await measure(dispatcher, capability, order["tasks"], order["in_flight"])
            print(json.dumps(figures), flush=True)


async def measure(
    dispatcher: Dispatcher, capability: str, tasks: int, in_flight: int
) -> dict[str, object]:
    """Send so many tasks with so many in flight, and time each and all."""
    left = tasks
    latencies: list[float] = []

    async def lane() -> None:
        nonlocal left
        while left:
            left -= 1
            started = time.perf_counter()
            result = await dispatcher.run(capability, Message(inputs={"file": "main.py"}))
            latencies.append(time.perf_counter() - started)
            assert result.status == Status.SUCCESS, result

    started, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(lane)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "latencies": latencies if in_flight == 1 else [],
    }


if __name__ == "__main__":
    roles = {"worker": run_worker, "dispatcher": run_dispatcher}
    _, role, url, capability = sys.argv
    trio.run(roles[role], url, capability)
