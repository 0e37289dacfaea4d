"""A worker: counts the words of the texts that it is sent, until Ctrl-C.

    python examples/worker.py [nats://host:port]

Without an argument the server is that of NATS_URL, else nats://127.0.0.1:4222. Run it as often as
you like, on other machines too: the workers of a capability share its tasks. `dispatcher.py` and
`fan_out.py` send it some.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import trio

from trio_swarmtask import Message, open_worker


async def count_words(message: Message) -> dict[str, int | str]:
    """What this returns becomes the outputs of a success; what it raises, a failure's error."""
    words = message.inputs["text"].split()
    if not words:
        raise ValueError("the text has no words")
    await trio.sleep(0.1)  # stands for a slow service
    return {"words": len(words), "longest": max(words, key=len)}


async def main(url: str | None) -> None:
    async with open_worker(url) as worker:
        await worker.handle("count-words", count_words, max_in_flight=10)
        print(f"{worker.name} is ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    # Ctrl-C leaves the block by an exception: running handlers are cancelled, and their tasks go
    # back to the queue. `graceful_shutdown.py` lets them finish first.
    with suppress(KeyboardInterrupt):
        trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
