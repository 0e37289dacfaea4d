"""Publishes how far a piece of work has come, and what it came to, for whoever follows it.

    python examples/progress.py TASK_ID [nats://host:port]

Run examples/follow.py with the same ID in other terminals, before, during or after. The results
are in a key-value bucket on the server, so they outlive this process. Without a URL the server is
that of NATS_URL, else nats://127.0.0.1:4222.
"""

from __future__ import annotations

import sys

import trio

from trio_swarmtask.results import Result, ResultStatus, open_kv_publisher


async def main(task_id: str, url: str | None) -> None:
    async with open_kv_publisher(url) as publisher:
        for percent in range(0, 100, 25):
            progress = Result(status=ResultStatus.PENDING, output=b"%d%%" % percent)
            await publisher.publish(task_id, progress)
            await trio.sleep(0.1)  # stands for the work
        end = Result(status=ResultStatus.SUCCESS, output=b"42", metadata={"unit": "answers"})
        await publisher.publish(task_id, end)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
