"""Fan-out: many tasks at once, in a nursery.

    python examples/fan_out.py [nats://host:port]

Leaving the nursery's block waits for every result, and a task that fails reaches it as an
exception, just as if the tasks ran here; they run in as many processes of `worker.py` as you start.
Without an argument the server is that of NATS_URL, else nats://127.0.0.1:4222.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from trio_swarmtask import Dispatcher, Message, TaskFailedError, open_dispatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXTS = [f"{count} bottles of beer on the wall" for count in range(99, 0, -1)]


async def count_all(dispatcher: Dispatcher, texts: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}

    async def count(text: str) -> None:
        result = await dispatcher.run("count-words", Message(inputs={"text": text}))
        counts[text] = result.raise_for_status().outputs["words"]

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for text in texts:
                nursery.start_soon(count, text)
    return counts


async def main(url: str | None) -> None:
    async with open_dispatcher(url) as dispatcher:
        counts = await count_all(dispatcher, TEXTS)
        print(f"{len(counts)} texts have {sum(counts.values())} words")
        try:
            await count_all(dispatcher, ["one good text", ""])
        except* TaskFailedError as failures:
            for failure in failures.exceptions:
                print(f"the nursery was left by: {failure}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
