"""Follows a task that examples/progress.py, or anybody else, publishes the results of.

    python examples/follow.py TASK_ID [nats://host:port]

It shows what is there already, then each update, and ends when the task has ended. Without a URL
the server is that of NATS_URL, else nats://127.0.0.1:4222.
"""

from __future__ import annotations

import sys

import trio

from trio_swarmtask.results import open_kv_publisher


async def main(task_id: str, url: str | None) -> None:
    async with open_kv_publisher(url) as publisher, publisher.subscribe(task_id) as updates:
        print(f"following {task_id}", flush=True)
        async for result in updates:
            print(f"{result.status}: {result.output.decode() or result.error}", flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
