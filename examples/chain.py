"""A chain: what one capability gives is what the next one works on.

    python examples/chain.py [nats://host:port]

The second message names its `parent`, the task that it follows from, and `root`, the first task of
the chain, so that logs can be put together again. `prior` carries what the parent gave. Worker and
dispatcher share one connection here; they might as well be on two machines. Without an argument the
server is that of NATS_URL, else nats://127.0.0.1:4222.
"""

from __future__ import annotations

import sys

import msgspec
import trio

from trio_swarmtask import Message, Result, open_broker, open_dispatcher, open_worker


class Outline(msgspec.Struct):
    """What `outline` gives: any type that msgspec knows goes out as JSON."""

    title: str
    headings: list[str]


async def outline(message: Message) -> Outline:
    subject = message.inputs["subject"]
    return Outline(title=f"All about {subject}", headings=[f"Why {subject}", f"How {subject}"])


async def write(message: Message) -> str:
    before = message.prior_as(message.parent, Outline)  # checked, and a type again
    return "\n".join([before.title.upper(), *(f"{text}: ..." for text in before.headings)])


def follow_up(message: Message, result: Result) -> Message:
    """The message of the task after ``message``, which ended in ``result``."""
    return Message(
        parent=result.id,
        root=message.root or result.id,
        prior={**message.prior, result.id: result.outputs},
    )


async def main(url: str | None) -> None:
    async with (
        open_broker(url) as broker,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        await worker.handle("outline", outline)
        await worker.handle("write", write)
        with trio.fail_after(30):
            first = Message(inputs={"subject": "nurseries"})
            outlined = (await dispatcher.run("outline", first)).raise_for_status()
            second = follow_up(first, outlined)
            written = (await dispatcher.run("write", second)).raise_for_status()
        print(written.outputs)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
