# How long it takes to begin: imports, and a process up to its first task
#
# Importing is timed inside a fresh interpreter, so what Python itself needs to start is not in it.
# The order changes from round to round, and one process of each kind is run before: after that the
# files are in memory.

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import trio

from .roles import open_role
from .runners import BARE, OURS
from .turns import new_name

if TYPE_CHECKING:
    from .figures import Figures
    from .runners import Runner
    from .servers import Server, Servers

IMPORT_ROUNDS: Final = 20
TASK_ROUNDS: Final = 10
IMPORTS: Final = {
    "trio, msgspec": "import trio, msgspec",
    "trio_swarmtask": "import trio_swarmtask",
    "trio_swarmtask, NATS": "import trio_swarmtask, trio_swarmtask._jetstream",
    "trio, msgspec, nats, trio_asyncio": "import trio, msgspec, nats, trio_asyncio",
}
ONE_TASK: Final[dict[str, int | str]] = {"do": "run", "tasks": 1, "in_flight": 1, "payload": 0}
STORED_SECONDS: Final = 0.2  # after which the task that was sent is surely stored
_TIMED: Final = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


async def measure_imports(_servers: Servers, figures: Figures) -> None:
    names = [*IMPORTS]
    for name in names:
        await time_import(name)
    for _ in range(IMPORT_ROUNDS):
        names.reverse()
        for name in names:
            figures.add("imports", "import", name, {"seconds": await time_import(name)})


async def time_import(name: str) -> float:
    # -W: trio-asyncio warns on Python 3.12 and later.
    command = [sys.executable, "-W", "ignore", "-c", _TIMED.format(IMPORTS[name])]
    return float((await trio.run_process(command, capture_stdout=True)).stdout)


async def measure_first_task(servers: Servers, figures: Figures) -> None:
    server = await servers.get("nats")
    for _ in range(TASK_ROUNDS):
        for runner in (BARE, OURS):
            worker, dispatcher = await time_first_task(server, runner)
            figures.add("first task", "worker starts", runner.name, {"seconds": worker})
            figures.add("first task", "dispatcher starts", runner.name, {"seconds": dispatcher})


async def time_first_task(server: Server, runner: Runner) -> tuple[float, float]:
    """Seconds up to the first result: of a worker whose task waits, and of a dispatcher."""
    name = new_name()
    async with open_role(runner, "worker", server.url, name) as worker:  # makes the durable
        await worker.wait_ready()
    async with open_role(runner, "dispatcher", server.url, name) as early:
        await early.wait_ready()
        await early.send(**ONE_TASK)
        await trio.sleep(STORED_SECONDS)
        started = time.perf_counter()
        async with open_role(runner, "worker", server.url, name):
            await early.receive()
            worker_seconds = time.perf_counter() - started
            started = time.perf_counter()
            async with open_role(runner, "dispatcher", server.url, name) as late:
                await late.wait_ready()
                await late.ask(**ONE_TASK)
                return worker_seconds, time.perf_counter() - started
