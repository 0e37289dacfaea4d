# streaQ 7.2: tasks in a Redis stream, results in keys and told by publish/subscribe
#
# `Worker.run_async` inside a program, on asyncio, streaQ's default. A result is awaited with
# `Task.result`, which subscribes to the one task; many tasks go out with `enqueue_many`.
#
# Each `Task.result` takes 0.1 s more than its task: on leaving a subscription, coredis 6.9 waits
# for the whole of its `unsubscription_timeout`, which streaQ does not hand on.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from _stdio import Handler, Options, background, follow, main, serve
from streaq import Worker

if TYPE_CHECKING:
    from streaq.task import AsyncRegisteredTask

BATCH: Final = 1000  # tasks in one pipeline
CONNECTIONS: Final = (
    2000  # at most; coredis has 64: with more in flight, senders hang and tasks fail
)


async def work(url: str, name: str, options: Options) -> None:
    handler = Handler(options)
    worker = Worker(
        url,
        queue_name=name,
        concurrency=options.concurrency,
        redis_kwargs={"max_connections": CONNECTIONS},
        handle_signals=False,
    )

    async def task(text: str) -> None:
        await handler()

    for task_name in options.names:
        worker.task(name=task_name)(task)
    async with background(worker.run_async()):
        await serve(handler)


class Dispatcher:
    def __init__(self, worker: Worker[None], task: AsyncRegisteredTask[[str], None]) -> None:
        self._worker = worker
        self._task = task

    async def run(self, text: str) -> None:
        sent = await self._task.enqueue(text)
        result = await sent.result()
        assert result.success, result

    async def enqueue(self, tasks: int, text: str) -> None:
        for first in range(0, tasks, BATCH):
            count = min(BATCH, tasks - first)
            await self._worker.enqueue_many([self._task.enqueue(text) for _ in range(count)])


async def dispatch(url: str, name: str, options: Options) -> None:
    worker = Worker(url, queue_name=name, redis_kwargs={"max_connections": CONNECTIONS})

    async def task(text: str) -> None: ...

    async with worker:
        await follow(Dispatcher(worker, worker.task(name="work")(task)))


if __name__ == "__main__":
    main(work, dispatch)
