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
# Both roles are driven through their standard streams, as ours.py is; run.py says how.

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import msgspec
import nats
from nats.js import api
from nats.js.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg

MAX_IN_FLIGHT: Final = 100  # of one worker; the library's default
ACK_WAIT: Final = 30.0  # seconds
RESULT_TTL: Final = 86_400.0  # seconds
PULL_EXPIRES: Final = 30.0  # seconds after which the server ends a pull request
PULL_HEARTBEAT: Final = 5.0  # seconds
DUPLICATE_RESULT: Final = 10071  # the server's error where the expected sequence differs


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task on the wire; the fields that this benchmark uses."""

    version: int = msgspec.field(default_factory=lambda: 1)
    id: str
    timeout: int = 0
    inputs: dict[str, str]
    created_at: datetime
    submitted_at: datetime


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One result on the wire; the fields that a success without outputs has."""

    version: int
    id: str
    status: str
    agent: str
    attempt: int
    duration: int
    completed_at: datetime


class PubAck(msgspec.Struct):
    """What the server answers to a publish: an acknowledgement or an error."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, int | str] | None = None


MESSAGES: Final = msgspec.json.Decoder(Message)
RESULTS: Final = msgspec.json.Decoder(Result)
ACKS: Final = msgspec.json.Decoder(PubAck)
ENCODER: Final = msgspec.json.Encoder()


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

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        self._count += 1
        reply = f"{self._inbox}.{self._count}"
        future = self._waiting[reply] = self._loop.create_future()
        await self._client.publish(subject, payload, reply, headers)
        ack = await future
        if ack.error is not None and ack.error["err_code"] != DUPLICATE_RESULT:
            raise RuntimeError(f"not stored: {ack.error}")


class Dispatcher:
    """Sends tasks and hears of all their results on one subscription."""

    def __init__(self, client: Client, capability: str) -> None:
        self._client = client
        self._publisher = Publisher(client)
        self._loop = asyncio.get_running_loop()
        self._capability = capability
        self._key = token_hex(6)
        self._count = 0
        self._results: dict[str, asyncio.Future[Result]] = {}

    async def open(self) -> None:
        await self._publisher.open()
        await self._client.subscribe(f"notify.{self._key}.>", cb=self._on_result)

    async def _on_result(self, message: Msg) -> None:
        result = RESULTS.decode(message.data)
        self._results.pop(result.id).set_result(result)

    async def run(self, inputs: dict[str, str]) -> Result:
        self._count += 1
        task_id = f"{self._key}-{self._count}"
        now = datetime.now(UTC)
        task = Message(id=task_id, inputs=inputs, created_at=now, submitted_at=now)
        future: asyncio.Future[Result] = self._loop.create_future()
        self._results[task_id] = future
        await self._publisher.publish(
            f"work.{self._capability}.{task_id}", ENCODER.encode(task), {"Nats-Msg-Id": task_id}
        )
        return await future


class Worker:
    """Pulls tasks, runs each in an asyncio task, stores the result, then acknowledges."""

    def __init__(
        self, client: Client, capability: str, handler: Callable[[Message], Awaitable[object]]
    ) -> None:
        self._client = client
        self._publisher = Publisher(client)
        self._handler = handler
        self._name = f"bare-{os.getpid()}"
        self._inbox = client.new_inbox()
        self._pull = f"$JS.API.CONSUMER.MSG.NEXT.TASKS.work-{capability}"
        self._asked = 0  # what the server still owes us
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._publisher.open()
        await self._client.subscribe(self._inbox, cb=self._on_message)
        await self._top_up()

    async def _top_up(self) -> None:
        # Never more than the free places, and only when half of what may be asked for has come
        # in, as nats.go does it: a request for each task cost 8% of the rate at 100 in flight.
        free = MAX_IN_FLIGHT - self._running
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
        await self._handler(message)
        self._running -= 1
        await self._top_up()
        result = Result(
            version=1,
            id=message.id,
            status="success",
            agent=self._name,
            attempt=1,
            duration=int((time.monotonic() - started) * 1000),
            completed_at=datetime.now(UTC),
        )
        await self._publisher.publish(
            f"done.{message.id}",
            ENCODER.encode(result),
            {"Nats-Expected-Last-Subject-Sequence": "0"},
        )
        await self._client.publish(delivery.reply, b"+ACK")


async def make_streams(client: Client, capability: str) -> None:
    """Make the two streams if they are missing, and the durable of one capability."""
    manager = client.jsm()
    try:
        await manager.stream_info("TASKS")
    except NotFoundError:
        await manager.add_stream(
            name="TASKS",
            subjects=["work.>"],
            retention=api.RetentionPolicy.WORK_QUEUE,
            storage=api.StorageType.FILE,
            allow_msg_schedules=True,
        )
        await manager.add_stream(
            name="TASK_RESULTS",
            subjects=["done.>"],
            storage=api.StorageType.FILE,
            max_age=RESULT_TTL,
            max_msgs_per_subject=1,
            discard=api.DiscardPolicy.NEW,
            discard_new_per_subject=True,
            allow_direct=True,
            republish=api.RePublish(src="done.*", dest="notify.{{split(1,-)}}"),
        )
    await manager.add_consumer(
        "TASKS",
        durable_name=f"work-{capability}",
        filter_subject=f"work.{capability}.*",
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT,
        max_deliver=-1,
        max_ack_pending=100_000,
    )


async def no_op(message: Message) -> None:
    """The handler that is measured: nothing."""


async def run_worker(url: str, capability: str) -> None:
    async with await nats.connect(url) as client:
        await make_streams(client, capability)
        await Worker(client, capability, no_op).open()
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps({"cpu": time.process_time()}), flush=True)


async def run_dispatcher(url: str, capability: str) -> None:
    async with await nats.connect(url) as client:
        sender = Dispatcher(client, capability)
        await sender.open()
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            figures = await measure(sender, order["tasks"], order["in_flight"])
            print(json.dumps(figures), flush=True)


async def measure(sender: Dispatcher, tasks: int, in_flight: int) -> dict[str, object]:
    """Send so many tasks with so many in flight, and time each and all."""
    left = tasks
    latencies: list[float] = []

    async def lane() -> None:
        nonlocal left
        while left:
            left -= 1
            started = time.perf_counter()
            result = await sender.run({"file": "main.py"})
            latencies.append(time.perf_counter() - started)
            assert result.status == "success", result

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "latencies": latencies if in_flight == 1 else [],
    }


if __name__ == "__main__":
    roles = {"worker": run_worker, "dispatcher": run_dispatcher}
    _, role, url, capability = sys.argv
    asyncio.run(roles[role](url, capability))
