# One worker process of the demo: `python -m trio_swarmtask._demo._worker URL NAME`.
#
# It tells the demo on its standard output, a line each: `ready` once both capabilities have their
# consumer, `began <task id>` whenever a handler begins. SIGTERM ends it in order.

from __future__ import annotations

import re
import signal
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from .. import NATSConfig, open_worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .. import Message

ACK_WAIT: Final = 2.0
"""Seconds until the tasks of a killed worker are others'. Short, for somebody is watching."""
IN_FLIGHT: Final = 3
"""Handlers of one capability that a worker runs at once."""
SHUTDOWN_SECONDS: Final = 1.0
"""Seconds that handlers have to finish after a SIGTERM."""


async def count_words(message: Message) -> dict[str, int]:
    """Count the words of ``text``, after ``seconds`` of what stands for a slow service."""
    await trio.sleep(float(message.inputs["seconds"]))
    words = message.inputs["text"].split()
    if not words:
        raise ValueError("the text has no words")
    return {"words": len(words)}


async def summarize(message: Message) -> dict[str, str]:
    """Return the sentence of ``text`` whose words are the most frequent ones, likewise."""
    await trio.sleep(float(message.inputs["seconds"]))
    text = message.inputs["text"]
    counts = Counter(re.findall(r"\w+", text.lower()))
    sentences = re.split(r"(?<=[.!?])\s+", text)
    best = max(sentences, key=lambda s: sum(counts[word] for word in re.findall(r"\w+", s.lower())))
    return {"summary": best}


def telling(
    handler: Callable[[Message], Awaitable[object]],
) -> Callable[[Message], Awaitable[object]]:
    """A handler that prints that it begins, and then calls ``handler``."""

    async def tell(message: Message) -> object:
        print("began", message.id, flush=True)
        return await handler(message)

    return tell


async def work(url: str, name: str) -> None:
    """Handle both capabilities until SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_worker(NATSConfig(url=url, ack_wait=ACK_WAIT), name=name) as worker:
            for capability, handler in CAPABILITIES.items():
                await worker.handle(capability, telling(handler), max_in_flight=IN_FLIGHT)
            print("ready", flush=True)
            await anext(signals)
            # Too slow: the tasks have been given back, and others do them.
            with suppress(trio.TooSlowError):
                await worker.shutdown(SHUTDOWN_SECONDS)


CAPABILITIES: Final = {"count-words": count_words, "summarize": summarize}
if __name__ == "__main__":
    trio.run(work, sys.argv[1], sys.argv[2])
