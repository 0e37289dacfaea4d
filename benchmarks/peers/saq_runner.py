# SAQ 0.26 on Redis: tasks in a list and keys, results in keys
#
# `Worker.start` inside a program. A result is awaited with `Queue.apply`, which looks again and
# again (every 0.5 s by default). `Job.refresh(until_complete=…)`, which listens, was slower (0.7
# of the rate with one task in flight, 0.5 with 100), and may miss a task that ends just then.
#
# There is no call that sends many tasks without awaiting them. In one of the runs one task ran
# twice: SAQ runs a task at least once.
#
# SAQ 0.26.4 imports typing_extensions and does not require it.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from _stdio import Handler, Options, background, each, follow, main, serve
from saq import Queue, Worker

if TYPE_CHECKING:
    from saq.types import Context

POLL: Final = 0.001  # seconds: the fastest of 0.001 to 0.03, with one task and with 100


async def work(url: str, name: str, options: Options) -> None:
    handler = Handler(options)

    async def task(_context: Context, *, text: str) -> None:
        await handler()

    queue = Queue.from_url(url, name=name)
    await queue.connect()
    worker = Worker(
        queue,
        [(task_name, task) for task_name in options.names],
        concurrency=options.concurrency,
    )
    async with background(worker.start()):
        await serve(handler)
    await queue.disconnect()


class Dispatcher:
    def __init__(self, queue: Queue, poll: float) -> None:
        self._queue = queue
        self._poll = poll

    async def run(self, text: str) -> None:
        await self._queue.apply("work", poll_interval=self._poll, text=text)

    async def enqueue(self, tasks: int, text: str) -> None:
        await each(tasks, lambda: self._queue.enqueue("work", text=text))


async def dispatch(url: str, name: str, options: Options) -> None:
    queue = Queue.from_url(url, name=name)
    await queue.connect()
    await follow(Dispatcher(queue, options.poll or POLL))
    await queue.disconnect()


if __name__ == "__main__":
    main(work, dispatch)
