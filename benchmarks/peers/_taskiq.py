# taskiq: what its two runners share
#
# The worker is `run_receiver_task`, the documented one inside a program. It acknowledges a task
# when its result is saved, taskiq's default. `max_prefetch`, tasks fetched while all places are
# taken, is as in streaQ's published comparison.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _stdio import Handler, Options, background, each, follow, serve
from taskiq.api import run_receiver_task

if TYPE_CHECKING:
    from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask


async def work(broker: AsyncBroker, options: Options) -> None:
    handler = Handler(options)

    async def task(text: str) -> None:
        await handler()

    for name in options.names:
        broker.register_task(task, task_name=name)
    broker.is_worker_process = True
    await broker.startup()
    receiver = run_receiver_task(
        broker, max_async_tasks=options.concurrency, max_prefetch=options.concurrency
    )
    async with background(receiver):
        await serve(handler)
    await broker.shutdown()


async def dispatch(broker: AsyncBroker, poll: float) -> None:
    async def task(text: str) -> None: ...

    await broker.startup()
    await follow(Dispatcher(broker.register_task(task, task_name="work"), poll))
    await broker.shutdown()


class Dispatcher:
    def __init__(self, task: AsyncTaskiqDecoratedTask[[str], Any], poll: float) -> None:
        self._task = task
        self._poll = poll

    async def run(self, text: str) -> None:
        sent = await self._task.kiq(text)
        result = await sent.wait_result(check_interval=self._poll)
        assert not result.is_err, result

    async def enqueue(self, tasks: int, text: str) -> None:
        await each(tasks, lambda: self._task.kiq(text))
