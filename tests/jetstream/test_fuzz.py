"""Mutated messages of every kind, published to roles on a real server: no block ends, no waiter
hangs, no task is unsettled.

In CI there are 200 of each kind, the same each time. `nox -s fuzz` has 100,000 others of each. Dead
letters are not among the kinds: nobody reads them. What the server itself says is in
`test_fuzz_server.py`, and what reads bytes without a server in `test_untrusted.py`.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.attack import Siege, open_siege
from tests._helpers.brokers import until, within
from tests._helpers.fuzz import (
    MESSAGES,
    RECORDS,
    RESULTS,
    ROUND,
    SECONDS,
    Round,
    is_for_today,
    rounds,
    told,
)
from tests._helpers.plain_nats import PlainClient, publication
from trio_swarmtask import (
    Message,
    Retry,
    RetryTask,
    Status,
    UnsupportedVersionError,
    current_task,
    open_idempotency,
    open_worker,
)
from trio_swarmtask._abc import Entry
from trio_swarmtask._idempotency import _hash, _read
from trio_swarmtask._jetstream._headers import parse_count
from trio_swarmtask._util import LONGEST_SECONDS
from trio_swarmtask.bus import open_nats_bus
from trio_swarmtask.results import BusPublisher, Result, ResultStatus, open_kv_publisher

if TYPE_CHECKING:
    from trio_swarmtask import Future
    from trio_swarmtask.results import ResultPublisher
    from trio_swarmtask.server import Server

Play = Callable[[Round], Awaitable[None]]
Kind = Callable[[Siege, str], AbstractAsyncContextManager[Play]]
Ready = set[str]
Headers = Callable[[str], dict[str, str]]

TARGETS = 20  # what the messages of a round are about, if not each of them of something else
END = Result(status=ResultStatus.SUCCESS)


def each(play: Callable[[Siege, Round], Awaitable[None]]) -> Kind:
    """A kind that needs nothing but what `open_siege` opens."""

    @asynccontextmanager
    async def opened(siege: Siege, url: str) -> AsyncIterator[Play]:
        yield functools.partial(play, siege)

    return opened


async def in_queue(client: PlainClient) -> int:
    return int((await client.api("STREAM.INFO.TASKS"))["state"]["messages"])


async def last_of(client: PlainClient) -> int:
    return int((await client.api("STREAM.INFO.TASKS"))["state"]["last_seq"])


async def settle_all(siege: Siege, messages: list[bytes]) -> None:
    """Publish tasks: each that is stored must leave the queue, and have a result."""
    client = siege.client
    await client.api("STREAM.PURGE.TASK_RESULTS")
    before = await last_of(client)
    await client.send(b"".join(messages))
    last = await client.request(f"work.work.last-{before}", {"version": 1})  # behind all of these
    stored = json.loads(last.data)["seq"] - before
    assert stored > len(messages) * 0.9
    assert await siege.wait_left(0, 60) == 0
    results = (await client.api("STREAM.INFO.TASK_RESULTS"))["state"]["messages"]
    assert results == stored


async def start_many(siege: Siege, count: int = TARGETS) -> list[Future]:
    """Tasks that no worker takes."""
    return [await siege.dispatcher.start("nobody", Message()) for _ in range(count)]


async def end_all(siege: Siege, futures: list[Future]) -> None:
    """Answer them, if nothing has, and wait for each."""
    for future in futures:
        await siege.client.publish(f"done.{future.id}", b"bad")
    for future in futures:
        with suppress(UnsupportedVersionError):  # an answer too
            await future.wait()
    await siege.client.api("STREAM.PURGE.TASKS", filter="work.nobody.>")


def as_token(data: bytes) -> bytes:
    """What a server takes in a subject, of any bytes."""
    return re.sub(rb"[^!-~]|[.*>]", b"_", data)[:200] or b"_"


@each
async def tasks(siege: Siege, played: Round) -> None:
    await settle_all(
        siege,
        [
            publication(
                f"work.work.{played.name(index)}",
                played.about(played.name(index), MESSAGES, is_for_today),
                played.headers(
                    Swarm_Seconds_Left="5.000",
                    Swarm_Lease="group-1",
                    Swarm_Due="1700000000.5",
                    Swarm_Resent="1",
                    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                ),
            )
            for index in range(played.count)
        ],
    )


@each
async def firings(siege: Siege, played: Round) -> None:
    """What a schedule starts."""
    names = [played.name(index) for index in range(played.count)]
    await settle_all(
        siege,
        [
            publication(
                f"work.work.{name}",
                played.mutated(MESSAGES, is_for_today),
                played.headers(Swarm_Schedule=name, Swarm_Due="1700000000.5")
                if played.rng.random() < 0.3
                else f"NATS/1.0\r\nSwarm-Schedule: {name}\r\n\r\n".encode(),
            )
            for name in names
        ],
    )


@each
async def schedules(siege: Siege, played: Round) -> None:
    """They are listed, one of them is registered over, and that is ended."""
    good = [played.name(played.count)]
    for index in range(played.count):
        name = played.name(index)
        timing = played.rng.choice(("@every 1h", "@every 3600s", "0 30 3 * * *", "@at 2199-01-01"))
        own = name.encode() if played.rng.random() < 0.5 else played.line(name.encode())
        block = (
            f"NATS/1.0\r\nNats-Schedule: {timing}\r\nNats-Schedule-Target: work.work.{name}\r\n"
        ).encode()
        if played.rng.random() < 0.9:
            block += b"Swarm-Schedule: %b\r\n" % own
            good += [name] * (own == name.encode())
        data = played.about(name, MESSAGES)
        await siege.client.publish(f"work.work.{name}.later", data, block + b"\r\n")
    await siege.client.flush()
    held = await in_queue(siege.client)
    assert held > 0
    assert len(await siege.dispatcher.schedules()) <= held
    name = played.rng.choice(good)
    await siege.dispatcher.schedule(name, "work", Message(), every=3600)
    assert name in {plan.name for plan in await siege.dispatcher.schedules()}
    assert await siege.dispatcher.unschedule(name)
    await siege.client.api("STREAM.PURGE.TASKS", filter="work.work.*.later")


@each
async def results(siege: Siege, played: Round) -> None:
    """Stored, of tasks that somebody waits for."""
    futures = await start_many(siege, played.count)
    for future in futures:
        data = played.about(future.id, RESULTS)
        await siege.client.publish(f"done.{future.id}", data, played.headers(traceparent="00-1"))
    await end_all(siege, futures)


@each
async def notices(siege: Siege, played: Round) -> None:
    """Of results, on the dispatcher's subject; what has the right header is believed."""
    futures = await start_many(siege, max(TARGETS, played.count // 5))
    for index in range(played.count):
        future = futures[index % len(futures)]
        parts = ".".join(part for part in future.id.split("-") if part)
        block = played.headers(Nats_Subject=f"done.{future.id}", Nats_Sequence="5")
        await siege.client.publish(f"notify.{parts}", played.about(future.id, RESULTS), block)
    await end_all(siege, futures)


@each
async def cancellations(siege: Siege, played: Round) -> None:
    """Notices of them, to a worker that runs these tasks, or others, or has never heard of them.

    Whoever may send one may cancel, whatever is in it.
    """
    ids = [played.name(index) for index in range(TARGETS)]
    left_alone = ids[::2]
    outcomes: dict[str, bool] = {}

    async def run(task_id: str) -> None:
        message = Message(id=task_id, inputs={"seconds": "0.2"})
        result = await siege.dispatcher.run("work", message)
        outcomes[task_id] = result.status is Status.SUCCESS
        assert outcomes[task_id] or result.cancelled_by

    def subject(index: int) -> bytes:
        kind, task_id = index % 3, ids[index % TARGETS].encode()
        if kind == 0 and ids[index % TARGETS] not in left_alone:
            return b"cancel.work." + task_id
        if kind == 1:
            token = as_token(played.line(task_id))
            return b"cancel.work." + (b"other" if token.decode() in ids else token)
        return b"cancel.work.other"

    async with trio.open_nursery() as nursery:
        for task_id in ids:
            nursery.start_soon(run, task_id)
        for index in range(played.count):
            reply = played.rng.choice(("", "_INBOX.nobody.x", "nobody.there"))
            data, block = played.mutated([b"", b"running"]), played.headers(Status="503")
            await siege.client.publish(subject(index), data, block, reply)
    assert all(outcomes[task_id] for task_id in left_alone)
    assert all(siege.runs[task_id] <= 1 for task_id in ids)


@asynccontextmanager
async def answers_to_a_canceller(siege: Siege, url: str) -> AsyncIterator[Play]:
    """What a worker says of a task that it is to cancel."""
    pushes = await siege.client.subscribe("cancel.nobody.*")

    async def answer(played: Round, count: int) -> None:
        async for push in pushes:
            lines = [
                publication(
                    push.reply,
                    played.mutated([b"running", b"ended", b""]),
                    played.headers(Status="503"),
                )
                for _ in range(count)
            ]
            lines += [publication(push.reply, b"ended")] * (count + 1)
            with trio.move_on_after(5, shield=True):  # half a line would end the connection
                await siege.client.send(b"".join(lines))

    async def play(played: Round) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, played, max(1, played.count // TARGETS))
            async with siege.dispatcher.open_group(grace=20) as group:
                futures = [await group.start("nobody", Message()) for _ in range(TARGETS)]
                group.cancel_scope.cancel()
            assert all(future.result.cancelled_by for future in futures)
            nursery.cancel_scope.cancel()

    yield play


@asynccontextmanager
async def notes(siege: Siege, url: str) -> AsyncIterator[Play]:
    """Notes of retries and of give-backs, of tasks that are tried again."""

    async def handle(message: Message) -> int:
        if current_task().attempt == 1:
            raise RetryTask(delay=0.01)
        return 5

    def is_fair(token: bytes) -> bool:
        """No note of a pause that is not over: that is what notes are for."""
        rest = (parse_count(token.decode(errors="replace")) or 0) / 1000 - time.time()
        return not -60 < rest < LONGEST_SECONDS + 60

    def subject(played: Round, task_id: str) -> bytes:
        about = b"back.again.%b" % task_id.encode()
        if played.rng.random() < 0.1:
            return about
        token = played.mutated([b"%d" % (time.time() * 1000)], is_fair)
        return b"%b.retry.%b" % (about, as_token(token))

    async def play(played: Round) -> None:
        ids = [played.name(index) for index in range(TARGETS)]
        for index in range(played.count):
            data, block = played.mutated(MESSAGES), played.headers(traceparent="00-1")
            await siege.client.publish(subject(played, ids[index % TARGETS]), data, block)
        await siege.client.flush()
        futures = [
            await siege.dispatcher.start("again", Message(id=task_id, max_attempts=3))
            for task_id in ids
        ]
        for future in futures:
            assert (await future.wait()).outputs == 5

    async with open_worker(url) as worker:
        await worker.handle("again", handle, retry=Retry())
        yield play


@asynccontextmanager
async def leases(siege: Siege, url: str) -> AsyncIterator[Play]:
    """Whatever is in one, it stands, or it has lapsed."""
    async with siege.dispatcher.open_group(orphans="cancel") as group:
        await group.run("work", Message())  # which makes their stream

    async def play(played: Round) -> None:
        lines, block = [], b"NATS/1.0\r\nSwarm-Lease: %b\r\n\r\n"
        for index in range(played.count):
            name = played.name(index)
            data, headers = played.mutated([b"", *MESSAGES]), played.headers(Swarm_Lease=name)
            await siege.client.publish(f"lease.{name}", data, headers)
            if index % 10 == 0:
                task = Message(id=name).encode()
                lines.append(publication(f"work.work.{name}", task, block % name.encode()))
        await settle_all(siege, lines)

    yield play


@asynccontextmanager
async def keys(siege: Siege, url: str) -> AsyncIterator[Play]:
    """Entries of the bucket of idempotency keys."""

    async def handle(message: Message) -> int:
        return 5

    def is_fair(data: bytes) -> bool:
        """No claim: whoever made that is waited for."""
        record = _read(Entry("key", 1, data))
        return record is None or not record.holder

    samples = [
        b'{"task":"t-1","outputs":{"a":[1,2.5,null]}}',
        b'{"task":"t-1","holder":"0123456789abcdef"}',
        b'{"task":"t-1"}',
    ]
    outcomes: list[Status] = []

    async def run(key: str) -> None:
        result = await siege.dispatcher.run("payer", Message(idempotency=key))
        outcomes.append(result.status)

    async with open_idempotency(url) as idempotent, open_worker(url) as worker:
        await worker.handle("payer", idempotent(handle))

        async def play(played: Round) -> None:
            outcomes.clear()
            wanted = [played.name(index) for index in range(played.count)]
            for key in wanted:
                subject = f"$KV.idempotency.{_hash('payer', key)}"
                block = played.headers(KV_Operation="PUT", traceparent="00-1")
                await siege.client.publish(subject, played.mutated(samples, is_fair), block)
            await siege.client.flush()
            async with trio.open_nursery() as nursery:
                for key in wanted:
                    nursery.start_soon(run, key)
            assert outcomes == [Status.SUCCESS] * played.count

        yield play


async def read_all(publisher: ResultPublisher, task_id: str, ready: Ready) -> None:
    async with publisher.subscribe(task_id) as updates:
        ready.add(task_id)
        async for _ in updates:
            pass


async def followed(
    siege: Siege, played: Round, publisher: ResultPublisher, prefix: str, headers: Headers
) -> None:
    """Publish to who follows, and then the end. Some are told the end by what is mutated."""
    ids = [played.name(index) for index in range(max(TARGETS, played.count // 5))]
    ready: Ready = set()
    async with trio.open_nursery() as nursery:
        for task_id in ids:
            nursery.start_soon(read_all, publisher, task_id, ready)
        await until(lambda: len(ready) == len(ids))
        for index in range(played.count):
            task_id = ids[index % len(ids)]
            data = played.about(task_id, RECORDS)
            block = played.headers(**headers(task_id))
            await siege.client.publish(prefix + task_id, data, block)
        await siege.client.flush()
        for task_id in ids:
            await publisher.publish(task_id, END)
    for task_id in ids:
        assert (await publisher.get(task_id)).status is ResultStatus.SUCCESS


@asynccontextmanager
async def records_of_a_bucket(siege: Siege, url: str) -> AsyncIterator[Play]:
    """Stored. They are followed, listed, and looked up."""
    async with open_kv_publisher(url) as publisher:

        async def play(played: Round) -> None:
            await followed(
                siege,
                played,
                publisher,
                "$KV.results.",
                lambda _: {"KV_Operation": "DEL", "Nats_Marker_Reason": "MaxAge"},
            )
            for index in range(TARGETS):
                task_id = f"listed-{index}"
                data = played.about(task_id, RECORDS)
                await siege.client.publish(f"$KV.results.{task_id}", data)
            await siege.client.flush()
            assert len(await publisher.list()) >= TARGETS
            await siege.client.api("STREAM.PURGE.KV_results")

        yield play


@asynccontextmanager
async def updates_of_a_bucket(siege: Siege, url: str) -> AsyncIterator[Play]:
    """Where the stream republishes what it has stored."""
    async with open_kv_publisher(url) as publisher:

        async def play(played: Round) -> None:
            await followed(
                siege,
                played,
                publisher,
                "kv.results.",
                lambda task_id: {
                    "Nats_Subject": f"$KV.results.{task_id}",
                    "Nats_Sequence": "5",
                    "Nats_Time_Stamp": "2026-01-01T00:00:00Z",
                    "KV_Operation": "DEL",
                },
            )

        yield play


@asynccontextmanager
async def records_on_a_bus(siege: Siege, url: str) -> AsyncIterator[Play]:
    async with open_nats_bus(url) as bus:
        publisher = BusPublisher(bus)

        async def play(played: Round) -> None:
            await followed(siege, played, publisher, "results.", lambda _: {"Status": "503"})

        yield play


@each
async def reports(siege: Siege, played: Round) -> None:
    futures = await start_many(siege)
    ready: Ready = set()

    async def follow(future: Future) -> None:
        async with future.updates() as updates:
            ready.add(future.id)
            async for _ in updates:
                pass

    async with trio.open_nursery() as nursery:
        for future in futures:
            nursery.start_soon(follow, future)
        await until(lambda: len(ready) == TARGETS)
        for index in range(played.count):
            future = futures[index % TARGETS]
            data = played.about(future.id, RECORDS)
            await siege.client.publish(f"results.{future.id}", data, played.headers(Status="503"))
        await siege.client.flush()
        await end_all(siege, futures)


KINDS: dict[str, Kind] = {
    "tasks": tasks,
    "what a schedule starts": firings,
    "schedules": schedules,
    "results": results,
    "notices of results": notices,
    "notices of cancellations": cancellations,
    "answers to who cancels": answers_to_a_canceller,
    "notes of retries": notes,
    "leases": leases,
    "idempotency keys": keys,
    "records of a bucket": records_of_a_bucket,
    "updates of a bucket": updates_of_a_bucket,
    "records on a bus": records_on_a_bus,
    "reports": reports,
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(name, marks=pytest.mark.needs_schedules if name == "schedules" else ())
        for name in KINDS
    ],
)
@within(SECONDS)
async def test_mutated(server: Server, kind: str) -> None:
    async with (
        open_siege(server.port, ack_wait=20) as siege,
        KINDS[kind](siege, server.url) as play,
    ):
        for played in rounds(kind):
            with told(played):
                logged = siege.log.count
                await play(played)
                assert not await siege.serve(40)
                assert not siege.log.tracebacks, siege.log.tracebacks[0]
                assert not [line for line in siege.log.lines if "lost the connection" in line]
                assert siege.log.count - logged <= 4 * ROUND, siege.log.lines
