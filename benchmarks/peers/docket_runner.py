# docket 0.27 (pydocket): tasks in a Redis stream, states told by publish/subscribe
#
# `Worker.run_forever` inside a program. A result is awaited with `Execution.get_result`, which
# subscribes to the one task; many tasks go out with `add_many`.
#
# Between two reads a busy worker waits for `minimum_check_interval`. With its default of 0.25 s it
# drains no more than `concurrency` tasks in each quarter of a second.

from __future__ import annotations

from datetime import timedelta
from typing import Final

from _stdio import Handler, Options, background, follow, main, serve
from docket import Docket, Worker

POLL: Final = 0.001  # seconds: the fastest of 0.001, 0.01 and 0.05
CONNECTIONS: Final = 2000  # most that a sender opens; redis-py has 100, and refuses more


async def work(url: str, name: str, options: Options) -> None:
    handler = Handler(options)

    async def task(text: str) -> None:
        await handler()

    async with Docket(name=name, url=url) as docket:
        docket.register(task, names=options.names)
        async with (
            Worker(
                docket,
                concurrency=options.concurrency,
                minimum_check_interval=timedelta(seconds=options.poll or POLL),
            ) as worker,
            background(worker.run_forever()),
        ):
            await serve(handler)


class Dispatcher:
    def __init__(self, docket: Docket) -> None:
        self._docket = docket

    async def run(self, text: str) -> None:
        execution = await self._docket.add("work")(text)
        await execution.get_result()  # raises what the task raised

    async def enqueue(self, tasks: int, text: str) -> None:
        # `call` takes the key that tells one task from another: once for each.
        await self._docket.add_many(self._docket.call("work")(text) for _ in range(tasks))


async def dispatch(url: str, name: str, options: Options) -> None:
    async def task(text: str) -> None: ...

    async with Docket(name=name, url=f"{url}?max_connections={CONNECTIONS}") as docket:
        docket.register(task, names=["work"])
        await follow(Dispatcher(docket))


if __name__ == "__main__":
    main(work, dispatch)
