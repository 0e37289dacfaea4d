# taskiq 0.13 with taskiq-redis 1.2: tasks in a Redis stream, results in keys
#
# RedisStreamBroker, the one of its brokers with acknowledgements, and RedisAsyncResultBackend, with
# results that expire.
#
# A result is awaited by looking for it again and again (`wait_result`, every 0.2 s by default).
# There is no call for many tasks at once. Nothing takes tasks that are done out of the stream.

from __future__ import annotations

from typing import Final

import _taskiq
from _stdio import Options, main
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

POLL: Final = 0.003  # seconds: the fastest of 0.001 to 0.03 with 100 tasks in flight
RESULT_TTL: Final = 3600  # seconds


def make_broker(url: str, name: str) -> RedisStreamBroker:
    broker = RedisStreamBroker(url, queue_name=name)
    broker.with_result_backend(RedisAsyncResultBackend(url, result_ex_time=RESULT_TTL))
    return broker


async def work(url: str, name: str, options: Options) -> None:
    await _taskiq.work(make_broker(url, name), options)


async def dispatch(url: str, name: str, options: Options) -> None:
    await _taskiq.dispatch(make_broker(url, name), options.poll or POLL)


if __name__ == "__main__":
    main(work, dispatch)
