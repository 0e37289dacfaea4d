# The baseline: a dispatcher and a worker written by hand on asyncio and nats-py
#
# The same algorithm on the same wire as the library, and as fast as a careful asyncio programmer
# would make it without reaching into the client's private parts. It has none of what the library
# adds: no reconnecting, no renewal of leases, no time limits, no dead letters, no shutdown.
#
# Publishing with a PubAck: one inbox subscription for all acknowledgements and a map of futures.
# Tried with nats-py 2.16, at 100 in flight: JetStreamContext.publish reached 0.70 of this rate (a
# random token, a timer and a parsed dict for each), publish_async with its future awaited 0.76, a
# deadline round each wait (asyncio.timeout) 0.85; without the client's check of subjects 0.99.
#
# With the option `uvloop` it runs on that loop, with `lean` it leaves out the headers and the
# republish.

from __future__ import annotations

import asyncio
import os
import time
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import msgspec
import nats
from asyncio_role import serve_dispatcher, serve_worker
from role import Meter, Options, capabilities, in_turn, read_arguments
from wire import (
    DUPLICATE_RESULT,
    ENCODER,
    LEAN,
    MESSAGES,
    RESULTS,
    SAME,
    make_durable,
    make_streams,
    new_message,
    new_result,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from wire import Message, Result, Wire

PULL_EXPIRES: Final = 30.0  # seconds after which the server ends a pull request
PULL_HEARTBEAT: Final = 5.0  # seconds


class PubAck(msgspec.Struct):
    """What the server answers to a publish: an acknowledgement or an error."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, int | str] | None = None


ACKS: Final = msgspec.json.Decoder(PubAck)


class Publisher:
    """Publishes to streams; each publish waits for its acknowledgement."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._inbox = client.new_inbox()
        self._count = 0
        self._waiting: dict[str, asyncio.Future[PubAck]] = {}

    async def open(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_ack)

    async def _on_ack(self, message: Msg) -> None:
        future = self._waiting.pop(message.subject)
        if message.headers is not None:  # a status: nobody listens to the subject
            future.set_exception(RuntimeError(f"not stored: {message.headers}"))
        else:
            future.set_result(ACKS.decode(message.data))

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> None:
        self._count += 1
        reply = f"{self._inbox}.{self._count}"
        future = self._waiting[reply] = self._loop.create_future()
        await self._client.publish(subject, payload, reply, headers)
        ack = await future
        if ack.error is not None and ack.error["err_code"] != DUPLICATE_RESULT:
            raise RuntimeError(f"not stored: {ack.error}")


class Dispatcher:
    """Sends tasks and hears of all their results on one subscription."""

    def __init__(self, client: Client, wire: Wire, name: str, options: Options) -> None:
        self._client = client
        self._wire = wire
        self._publisher = Publisher(client)
        self._loop = asyncio.get_running_loop()
        self._capabilities = in_turn(name, options)
        self._key = token_hex(6)
        self._count = 0
        self._results: dict[str, asyncio.Future[Result]] = {}

    async def open(self) -> None:
        await self._publisher.open()
        await self._client.subscribe(self._wire.results_of(self._key), cb=self._on_result)

    async def _on_result(self, message: Msg) -> None:
        result = RESULTS.decode(message.data)
        self._results.pop(result.id).set_result(result)

    async def start(self, text: str) -> asyncio.Future[Result]:
        self._count += 1
        task_id = f"{self._key}-{self._count}"
        future = self._results[task_id] = self._loop.create_future()
        await self._publisher.publish(
            self._wire.task_subject(next(self._capabilities), task_id),
            new_message(task_id, text),
            self._wire.task_headers(task_id),
        )
        return future


class Worker:
    """Pulls tasks, runs each in an asyncio task, stores the result, then acknowledges."""

    def __init__(
        self,
        client: Client,
        wire: Wire,
        publisher: Publisher,
        capability: str,
        handler: Callable[[Message], Awaitable[str | None]],
        concurrency: int,
    ) -> None:
        self._client = client
        self._wire = wire
        self._publisher = publisher
        self._handler = handler
        self._places = concurrency
        self._name = f"bare-{os.getpid()}"
        self._inbox = client.new_inbox()
        self._pull = f"$JS.API.CONSUMER.MSG.NEXT.{wire.tasks}.{wire.durable(capability)}"
        self._asked = 0  # what the server still owes us
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._client.subscribe(self._inbox, cb=self._on_message)
        await self._top_up()

    async def _top_up(self) -> None:
        # Never more than the free places, and only when half of what may be asked for has come
        # in, as nats.go does it: a request for each task cost 8% of the rate at 100 in flight.
        free = self._places - self._running
        if free == 0 or self._asked * 2 > free:
            return
        request = {
            "batch": free - self._asked,
            "expires": int(PULL_EXPIRES * 1e9),
            "idle_heartbeat": int(PULL_HEARTBEAT * 1e9),
        }
        self._asked = free
        await self._client.publish(self._pull, ENCODER.encode(request), self._inbox)

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._asked -= 1
            self._running += 1
            task = asyncio.create_task(self._run(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif message.headers and message.headers.get("Status") != "100":  # 100: a heartbeat
            self._asked -= int(message.headers.get("Nats-Pending-Messages", 0))
            await self._top_up()

    async def _run(self, delivery: Msg) -> None:
        started = time.monotonic()
        message = MESSAGES.decode(delivery.data)
        outputs = await self._handler(message)
        self._running -= 1
        await self._top_up()
        await self._publisher.publish(
            self._wire.result_subject(message.id),
            new_result(message.id, self._name, time.monotonic() - started, outputs),
            self._wire.result_headers(),
        )
        await self._client.publish(delivery.reply, b"+ACK")


async def run_worker(url: str, name: str, options: Options) -> None:
    meter = Meter()

    async def handle(message: Message) -> str | None:
        if options.sleep:
            await asyncio.sleep(options.sleep)
        meter.served += 1
        return message.inputs["text"] if options.echo else None

    wire = LEAN if options.lean else SAME
    async with await nats.connect(url) as client:
        await make_streams(client, wire)
        publisher = Publisher(client)
        await publisher.open()
        for capability in capabilities(name, options.capabilities):
            await make_durable(client, wire, capability)
            worker = Worker(client, wire, publisher, capability, handle, options.concurrency)
            await worker.open()
        await serve_worker(meter)


async def run_dispatcher(url: str, name: str, options: Options) -> None:
    async with await nats.connect(url) as client:
        dispatcher = Dispatcher(client, LEAN if options.lean else SAME, name, options)
        await dispatcher.open()

        async def run(text: str) -> None:
            result = await (await dispatcher.start(text))
            assert result.status == "success", result

        async def start(text: str) -> None:
            await dispatcher.start(text)

        await serve_dispatcher(run, start)


def main() -> None:
    role, url, name, options = read_arguments()
    run_role = {"worker": run_worker, "dispatcher": run_dispatcher}[role]
    if options.uvloop:
        import uvloop

        uvloop.run(run_role(url, name, options))
    else:
        asyncio.run(run_role(url, name, options))


if __name__ == "__main__":
    main()
