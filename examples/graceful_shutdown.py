"""A worker under a service manager: SIGTERM, or Ctrl-C, ends it in order.

    python examples/graceful_shutdown.py [nats://host:port [seconds]]

It takes no more tasks, and running handlers have that many seconds (10) to finish. What is left
then is cancelled and goes back to the queue at once, where another worker finds it: nothing is
lost, and nobody waits for a lease to lapse. Without a URL the server is that of NATS_URL, else
nats://127.0.0.1:4222.
"""

from __future__ import annotations

import signal
import sys

import trio

from trio_swarmtask import Message, open_worker


async def rest(message: Message) -> str:
    """Take as long as the message says."""
    print(f"{message.id} begins", flush=True)
    await trio.sleep(float(message.inputs["seconds"]))
    return "rested"


async def main(url: str | None, seconds: float) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_worker(url) as worker:
            await worker.handle("rest", rest)
            print(f"{worker.name} is ready", flush=True)
            number = await anext(signals)
            print(f"{signal.Signals(number).name}: no more tasks", flush=True)
            try:
                await worker.shutdown(seconds)
            except trio.TooSlowError:
                print("what was not done in time is back in the queue")
            else:
                print("all that had begun is done")


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else None
    trio.run(main, url, float(sys.argv[2]) if len(sys.argv) > 2 else 10.0)
