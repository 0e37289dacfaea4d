"""A dispatcher: sends texts to `worker.py`, one at a time, and prints what became of each.

    python examples/dispatcher.py [nats://host:port]

Without an argument the server is that of NATS_URL, else nats://127.0.0.1:4222. Start it before any
worker if you like: the tasks wait on the server.
"""

from __future__ import annotations

import sys

import msgspec
import trio

from trio_swarmtask import Dispatcher, Message, Status, open_dispatcher

TEXTS = ("Tasks that happen to run on other machines", "  ")


class Count(msgspec.Struct):
    """What `count-words` gives."""

    words: int
    longest: str


async def count(dispatcher: Dispatcher, text: str) -> None:
    message = Message(inputs={"text": text}, timeout=10)  # seconds that the handler may take
    result = await dispatcher.run("count-words", message)
    if result.status is Status.SUCCESS:
        outputs = result.outputs_as(Count)
        print(f"{text!r} has {outputs.words} words, the longest is {outputs.longest!r}")
    else:
        # A failure is a reply, not an exception; `result.raise_for_status()` would make it one.
        print(f"{text!r} {result.status}: {result.error}")


async def main(url: str | None) -> None:
    async with open_dispatcher(url) as dispatcher:
        for text in TEXTS:
            with trio.fail_after(30):  # seconds that we wait, here for a worker to come up too
                await count(dispatcher, text)


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
    except trio.TooSlowError:
        sys.exit("no result within 30 seconds: is examples/worker.py running?")
