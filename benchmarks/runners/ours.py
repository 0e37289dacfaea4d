# The library: a dispatcher and a worker as its users write them
#
# With the option `public_api` the library is told to use nothing of nats-py but its public API,
# as it does by itself with a client that it does not know.

from __future__ import annotations

from typing import TYPE_CHECKING

import nats.aio.client
import trio
from role import Meter, Options, capabilities, in_turn, read_arguments
from trio_role import serve_dispatcher, serve_worker

from trio_swarmtask import Message, open_dispatcher, open_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_swarmtask import Dispatcher, Future, Handler, TaskGroup


def make_handler(options: Options, meter: Meter) -> Handler:
    async def handle(message: Message) -> str | None:
        if options.sleep:
            await trio.sleep(options.sleep)
        meter.served += 1
        return message.inputs["text"] if options.echo else None

    return handle


async def run_worker(url: str, name: str, options: Options) -> None:
    meter = Meter()
    handler = make_handler(options, meter)
    async with open_worker(url) as worker:
        for capability in capabilities(name, options.capabilities):
            await worker.handle(capability, handler, max_in_flight=options.concurrency)
        await serve_worker(meter)


async def run_dispatcher(url: str, name: str, options: Options) -> None:
    async with open_dispatcher(url) as dispatcher:
        if not options.group:
            await serve(dispatcher, in_turn(name, options), options)
            return
        async with dispatcher.open_group() as group:
            await serve(group, in_turn(name, options), options)


async def serve(
    starter: Dispatcher | TaskGroup, capabilities: Iterator[str], options: Options
) -> None:
    """Carry out the driver's orders with this dispatcher, or this group of its."""

    async def run(text: str) -> None:
        result = await starter.run(next(capabilities), Message(inputs={"text": text}))
        result.raise_for_status()

    async def start(text: str) -> Future:
        return await starter.start(next(capabilities), Message(inputs={"text": text}))

    async def start_and_wait(text: str) -> None:
        future = await start(text)
        (await future.wait()).raise_for_status()

    await serve_dispatcher(start_and_wait if options.start else run, start)


def use_public_api() -> None:
    """Be as with a nats-py that is not known: nothing but its public API."""
    nats.aio.client.__version__ = "2.999.0"


def main() -> None:
    role, url, name, options = read_arguments()
    if options.public_api:
        use_public_api()
    run_role = {"worker": run_worker, "dispatcher": run_dispatcher}[role]
    trio.run(run_role, url, name, options)


if __name__ == "__main__":
    main()
