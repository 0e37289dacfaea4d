# A worker process of the fault suite: `python worker_program.py <settings as JSON>`.
#
# Each handler writes a line to the ledger when it begins and when it ends, with one write, which
# survives the process. SIGTERM is `shutdown(grace)`. "ready" on the standard output says that it
# takes tasks; its log goes to the standard error.
#
# A task's inputs say what its handler does: it takes ``seconds``, hogs the thread for ``hog``,
# fails by an error that says ``fails``, fails at its first ``retries`` attempts, takes ``clean_up``
# seconds once it is cancelled, gives so many bytes: ``output``, raises what ends other programs, at
# a place of `exits.py`: ``exits``, reports without pause for so many seconds: ``reports``, with so
# many bytes more than a number: ``size``.

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from trio_swarmtask import (
    Handler,
    Message,
    NATSConfig,
    Retry,
    RetryTask,
    current_task,
    open_idempotency,
    open_worker,
)

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests._helpers.faults.exits import PLACES
from tests._helpers.public_api import use_public_api_if_asked

RETRY = Retry(on=OSError, first_delay=0.2, max_delay=0.5)


class LedgerFile:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, event: str, task_id: str) -> None:
        os.write(self._file, f"{time.time():.6f} {event} {task_id}\n".encode())


async def main(
    *,
    url: str,
    name: str,
    ledger: str,
    capability: str = "work",
    max_in_flight: int = 10,
    grace: float = 0.0,
    max_deliveries: int = 1000,
    broken: str = "",
    keys: str = "",
    lease: float = 30.0,
    **config: Any,
) -> None:
    """``keys``: the bucket of idempotency keys; ``config``: as for a NATSConfig."""
    file = LedgerFile(ledger)

    async def handle(message: Message) -> dict[str, str]:
        file.write("began", message.id)
        try:
            time.sleep(float(message.inputs.get("hog", 0)))  # noqa: ASYNC251 - that is the fault
            await trio.sleep(float(message.inputs.get("seconds", 0)))
            if "reports" in message.inputs:
                return {"by": name, "reported": await report(**message.inputs)}
            if "fails" in message.inputs:
                raise ValueError(message.inputs["fails"])
            if "output" in message.inputs:
                return {"by": name, "output": "x" * int(message.inputs["output"])}
            if "exits" in message.inputs:
                await PLACES[message.inputs["exits"]]()
            attempt = current_task().attempt
            if attempt <= int(message.inputs.get("retries", 0)):
                raise OSError("not yet") if attempt % 2 else RetryTask("not yet", delay=0.1)
        except BaseException:
            file.write("cut", message.id)
            with trio.move_on_after(float(message.inputs.get("clean_up", 0)), shield=True):
                await trio.sleep_forever()
            raise
        file.write("ended", message.id)
        return {"by": name, **message.inputs}

    if broken:
        from tests._helpers.faults import mutants

        mutants.apply(broken)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            handler: Handler = handle
            broker = NATSConfig(url, **config)
            if keys:
                opening = open_idempotency(broker, bucket=keys, lease=lease)
                handler = (await stack.enter_async_context(opening))(handle)
            worker = await stack.enter_async_context(
                open_worker(broker, name=name, max_deliveries=max_deliveries)
            )
            nursery.start_soon(end_with_parent)
            await worker.handle(capability, handler, max_in_flight=max_in_flight, retry=RETRY)
            os.write(1, b"ready\n")
            await anext(signals)
            try:
                await worker.shutdown(grace)
            except trio.TooSlowError:
                logging.info("handlers were cut short")
            logging.info("%s", worker.statistics())
            nursery.cancel_scope.cancel()


async def report(*, reports: str, size: str, **_: str) -> str:
    """Returns the number of the last one."""
    end, number, more = trio.current_time() + float(reports), 0, "x" * int(size)
    while trio.current_time() < end:
        number += 1
        await current_task().report(None, f"{number} {more}")
    return f"{number}"


async def end_with_parent() -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        await stdin.receive_some(1)
    os._exit(1)


if __name__ == "__main__":
    use_public_api_if_asked()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    trio.run(lambda: main(**json.loads(sys.argv[1])))
