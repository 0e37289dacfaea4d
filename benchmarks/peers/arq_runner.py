# arq 0.28: tasks in a Redis sorted set, results in keys
#
# `Worker.async_run` inside a program. Both sides look again and again, every 0.5 s by default: the
# worker for tasks (`poll_delay`), `Job.result` for the result (`poll_delay` too). Looking seldom is
# better for many in flight (0.03 s), often for one.
#
# There is no call for many tasks at once.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from _stdio import Handler, Options, background, each, follow, main, serve
from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker

if TYPE_CHECKING:
    from arq import ArqRedis

POLL: Final = 0.001  # seconds: the fastest of 0.001 to 0.03 with one task in flight


async def work(url: str, name: str, options: Options) -> None:
    handler = Handler(options)

    async def task(ctx: dict[Any, Any], *_args: Any, **_kwargs: Any) -> None:
        await handler()

    worker = Worker(
        [func(task, name=task_name) for task_name in options.names],
        queue_name=name,
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=options.concurrency,
        poll_delay=options.poll or POLL,
        handle_signals=False,
    )
    async with background(worker.async_run()):
        await serve(handler)
    await worker.close()


class Dispatcher:
    def __init__(self, redis: ArqRedis, poll: float) -> None:
        self._redis = redis
        self._poll = poll

    async def run(self, text: str) -> None:
        job = await self._redis.enqueue_job("work", text)
        assert job is not None
        await job.result(poll_delay=self._poll)  # raises what the task raised

    async def enqueue(self, tasks: int, text: str) -> None:
        await each(tasks, lambda: self._redis.enqueue_job("work", text))


async def dispatch(url: str, name: str, options: Options) -> None:
    redis = await create_pool(RedisSettings.from_dsn(url), default_queue_name=name)
    await follow(Dispatcher(redis, options.poll or POLL))
    await redis.aclose()


if __name__ == "__main__":
    main(work, dispatch)
