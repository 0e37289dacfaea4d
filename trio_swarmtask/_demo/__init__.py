# The demo: a server, three worker processes, a few hundred tasks, and a worker that is killed.
#
# Everything that is started lives in a block: the server and the workers are ended and reaped with
# it, at Ctrl-C and SIGTERM too, which cancel the block.
#
# The worker is killed at the moment it says that a handler begins, with half of the results there.
# So it surely dies with tasks in its hands; no timer guesses that.
#
#   _worker  one of its workers, a process of its own
#   _report  what it prints

from __future__ import annotations

import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO

import trio

from .. import Message, NATSConfig, Status, SwarmTaskError, open_dispatcher
from .._process import open_process
from .._util import open_flat_nursery
from ..server import open_server
from ._report import Progress, Tally, problems, table
from ._worker import ACK_WAIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from .. import Dispatcher
    from .._process import Process

TASKS: Final = 300
"""Tasks that succeed."""
WORKERS: Final = ("worker-1", "worker-2", "worker-3")
VICTIM: Final = "worker-2"
WORKER_SECONDS: Final = 30.0
"""How long the worker processes may take to start."""
RESULT_SECONDS: Final = 30.0
"""How long all the results may take; a task without one by then counts as lost."""
TEXT: Final = (
    "A nursery is a place where tasks are looked after. "
    "A task that is started in a nursery ends in that nursery. "
    "When one task of a nursery fails, the others are cancelled. "
    "Some tasks run here, and some tasks run on other machines."
)


def main() -> int:
    """Run the demo on standard output; return its exit status."""
    return trio.run(run_until_signal, sys.stdout)


async def run_until_signal(out: TextIO) -> int:
    """Run the demo, or as much of it as there is time for before Ctrl-C or SIGTERM.

    Returns:
      0 if nothing was lost and all came out as expected, 1 if not, and 128 plus the
      signal's number after a signal.
    """
    status = 1
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_flat_nursery() as nursery:

            async def stop_at_signal() -> None:
                nonlocal status
                number = await anext(signals)
                status = 128 + number
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_at_signal)
            try:
                status = await run(out)
            except SwarmTaskError as exc:
                print(f"swarmtask demo: {exc}", file=sys.stderr)
            nursery.cancel_scope.cancel()
    return status


async def run(out: TextIO) -> int:
    """Run the demo; return 0 if nothing was lost and all came out as expected, else 1.

    Raises:
      BrokerError: if there is no server, or it does not start.
      SwarmTaskError: if a worker process does not start.
    """
    tally = Tally(expected={Status.SUCCESS: TASKS, Status.FAILED: 1, Status.TIMEOUT: 1})
    progress = Progress(out)
    async with open_server() as server:
        progress.say(f"nats-server is ready at {server.url}")
        async with _open_workers(server.url, tally, progress) as workers:
            progress.say(f"{len(workers)} worker processes are ready; {tally.total} tasks to do")
            config = NATSConfig(url=server.url, ack_wait=ACK_WAIT)
            async with open_dispatcher(config, name="demo") as dispatcher:
                await _send_all(dispatcher, tally, progress)
    tally.statuses = {name: process.returncode for name, process in workers.items()}
    found = problems(tally)
    progress.say(f"\n{table(tally)}\n")
    progress.say("\n".join(["This is wrong:", *found]) if found else "Nothing was lost.")
    return 1 if found else 0


@asynccontextmanager
async def _open_workers(
    url: str, tally: Tally, progress: Progress
) -> AsyncIterator[Mapping[str, Process]]:
    """Run the worker processes for the length of a block; they are ready when it is entered."""
    workers: dict[str, Process] = {}

    def hear(name: str, line: str) -> bool:
        if name == VICTIM and line.startswith("began") and tally.half_done and not tally.killed:
            workers[name].kill()
            tally.killed = name
            progress.say(f"  {name} is killed while it runs handlers; the others get its tasks")
        return line == "ready"

    async with AsyncExitStack() as stack:
        for name in WORKERS:
            command = [sys.executable, "-m", "trio_swarmtask._demo._worker", url, name]
            workers[name] = await stack.enter_async_context(
                open_process(name, command, partial(hear, name))
            )
        for process in workers.values():
            if reason := await process.wait_ready(WORKER_SECONDS):
                raise SwarmTaskError(reason)
        yield workers


async def _send_all(dispatcher: Dispatcher, tally: Tally, progress: Progress) -> None:
    """Send every task from a Trio task of its own, and wait for all the results."""

    async def send(capability: str, message: Message) -> None:
        future = await dispatcher.start(capability, message)
        tally.sent += 1
        tally.results.append(await future.wait())
        progress.show(tally)

    started = trio.current_time()
    with trio.move_on_after(RESULT_SECONDS):
        async with open_flat_nursery() as nursery:
            for capability, message in _messages():
                nursery.start_soon(send, capability, message)
    tally.seconds = trio.current_time() - started


def _messages() -> Iterator[tuple[str, Message]]:
    for number in range(TASKS):
        seconds = 0.05 + (37 * number % 200) / 1000  # 0.05 to 0.25, mixed
        capability = ("count-words", "summarize")[number % 2]
        yield capability, Message(inputs={"text": TEXT, "seconds": f"{seconds:.3f}"})
        if number == TASKS // 4:
            # The handler raises.
            yield "count-words", Message(inputs={"text": "", "seconds": "0.1"})
            # The handler overruns its timeout.
            yield "summarize", Message(timeout=1, inputs={"text": TEXT, "seconds": "3600"})
