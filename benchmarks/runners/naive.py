# The obvious way from Trio: trio-asyncio's `aio_as_trio` round every call of nats-py
#
# Written as a sensible person would, on the same wire as the library: JetStream's own publish and
# pull subscription, a Trio task for each handler, no more tasks fetched than there are free
# places, one subscription for all results. None of what the library adds.

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import nats
import trio
from nats.errors import TimeoutError as FetchTimeout
from role import Meter, Options, capabilities, in_turn, read_arguments
from trio_asyncio import aio_as_trio, open_loop
from trio_role import serve_dispatcher, serve_worker
from wire import (
    MESSAGES,
    RESULTS,
    SAME,
    make_durable,
    make_streams,
    new_message,
    new_result,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext
    from wire import Message

FETCH_SECONDS: Final = 5.0  # nats-py's default


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    async with open_loop():
        client = await aio_as_trio(nats.connect)(url)
        yield client
        await aio_as_trio(client.close)()


class Worker:
    """Fetches tasks of one capability and runs each in a Trio task."""

    def __init__(
        self,
        js: JetStreamContext,
        handler: Callable[[Message], Awaitable[str | None]],
        concurrency: int,
    ) -> None:
        self._js = js
        self._handler = handler
        self._free = concurrency
        self._left = trio.Event()

    async def serve(self, client: Client, capability: str) -> None:
        await aio_as_trio(make_durable)(client, SAME, capability)
        subscription = await aio_as_trio(self._js.pull_subscribe)(
            f"{SAME.work}.{capability}.*", durable=SAME.durable(capability), stream=SAME.tasks
        )
        async with trio.open_nursery() as nursery:
            while True:
                free = await self._wait_free()
                try:
                    deliveries = await aio_as_trio(subscription.fetch)(free, FETCH_SECONDS)
                except FetchTimeout:
                    continue
                for delivery in deliveries:
                    self._free -= 1
                    nursery.start_soon(self._run, delivery)

    async def _wait_free(self) -> int:
        while not self._free:
            self._left = trio.Event()
            await self._left.wait()
        return self._free

    async def _run(self, delivery: Msg) -> None:
        started = time.monotonic()
        message = MESSAGES.decode(delivery.data)
        outputs = await self._handler(message)
        self._free += 1
        self._left.set()
        await aio_as_trio(self._js.publish)(
            SAME.result_subject(message.id),
            new_result(message.id, "naive", time.monotonic() - started, outputs),
            headers=SAME.result_headers(),
        )
        await aio_as_trio(delivery.ack)()


class Dispatcher:
    """Sends tasks and hears of all their results on one subscription."""

    def __init__(self, js: JetStreamContext, capabilities: Iterator[str]) -> None:
        self._js = js
        self._capabilities = capabilities
        self._count = 0
        self._ended: dict[str, trio.Event] = {}
        self.key = token_hex(6)

    async def listen(self, subscription: Subscription) -> None:
        async for message in aio_as_trio(subscription.messages):
            result = RESULTS.decode(message.data)
            assert result.status == "success", result
            if (ended := self._ended.pop(result.id, None)) is not None:
                ended.set()

    async def start(self, text: str) -> trio.Event:
        self._count += 1
        task_id = f"{self.key}-{self._count}"
        ended = self._ended[task_id] = trio.Event()
        await aio_as_trio(self._js.publish)(
            SAME.task_subject(next(self._capabilities), task_id),
            new_message(task_id, text),
            headers=SAME.task_headers(task_id),
        )
        return ended


async def run_worker(url: str, name: str, options: Options) -> None:
    meter = Meter()

    async def handle(message: Message) -> str | None:
        if options.sleep:
            await trio.sleep(options.sleep)
        meter.served += 1
        return message.inputs["text"] if options.echo else None

    async with connected(url) as client:
        await aio_as_trio(make_streams)(client, SAME)
        async with trio.open_nursery() as nursery:
            for capability in capabilities(name, options.capabilities):
                worker = Worker(client.jetstream(), handle, options.concurrency)
                nursery.start_soon(worker.serve, client, capability)
            await serve_worker(meter)
            nursery.cancel_scope.cancel()


async def run_dispatcher(url: str, name: str, options: Options) -> None:
    async with connected(url) as client, trio.open_nursery() as nursery:
        dispatcher = Dispatcher(client.jetstream(), in_turn(name, options))
        results = SAME.results_of(dispatcher.key)
        nursery.start_soon(dispatcher.listen, await aio_as_trio(client.subscribe)(results))

        async def run(text: str) -> None:
            ended = await dispatcher.start(text)
            await ended.wait()

        async def start(text: str) -> None:
            await dispatcher.start(text)

        await serve_dispatcher(run, start)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    role, url, name, options = read_arguments()
    trio.run({"worker": run_worker, "dispatcher": run_dispatcher}[role], url, name, options)
