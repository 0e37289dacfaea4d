"""A partition, or a stall of some seconds, at the moment at which it could break one promise.

Five nodes with `replicas=3`. Each stream is on nodes of its own, so that one of them alone stalls.
In a stall its leader takes what is published, and can't confirm it: of what is published once more
it says "wrong last sequence" (10164), or "duplicate message id is in process" (10158). That proves
nothing, and passes.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.clusters import PLACES, Cluster, make_streams, open_cluster
from tests._helpers.faults.ledger import demand, tasks_state
from trio_swarmtask import (
    Dispatcher,
    Message,
    NATSConfig,
    SwarmTaskError,
    TaskState,
    open_dispatcher,
    open_idempotency,
    open_worker,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests._helpers.faults.table import Row
    from tests._helpers.plain_nats import PlainClient

# A request is given up after 5 to 7.5 s without an answer, and made again.
STALL_SECONDS = 9.0
# Until there is another leader of those who are cut off from the old one: 4 to 9 s, and some more.
PARTITION_SECONDS = 13.0
# What is to be done once a stall is over may take so long.
SOON = 5.0


class Calls:
    """A handler that takes ``seconds``, and notes its calls."""

    def __init__(self) -> None:
        self.began: dict[str, list[float]] = {}
        self.cancelled = trio.Event()
        self.running = trio.Event()

    async def __call__(self, message: Message) -> str:
        self.began.setdefault(message.id, []).append(trio.current_time())
        self.running.set()
        try:
            await trio.sleep(float(message.inputs.get("seconds", 0)))
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return "done"


def at(cluster: Cluster, node: str) -> NATSConfig:
    """Of somebody who is connected to that node, and stays there."""
    return NATSConfig(cluster.nodes[node].url, replicas=3, connect_timeout=20)


@asynccontextmanager
async def open_site(directory: Path, turn: int) -> AsyncIterator[Cluster]:
    """A cluster with every stream in its place."""
    directory /= str(turn)
    directory.mkdir()
    async with open_cluster(directory, 5, cuttable=True, places=PLACES) as cluster:
        await make_streams(at(cluster, "node-1"))
        await cluster.place(PLACES)
        yield cluster


@asynccontextmanager
async def stalled(cluster: Cluster, *nodes: str) -> AsyncIterator[None]:
    """These nodes hang from now on; the block may go on after that."""

    async def resume() -> None:
        await trio.sleep(STALL_SECONDS)
        cluster.resume(*nodes)

    cluster.pause(*nodes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resume)
        yield


async def is_stored(cluster: Cluster, subject: str) -> bool:
    """Whether there is something soon.

    A leader that was cut off may answer before it knows; and for some seconds after a partition
    reading is refused (10008), by whatever node, where writing works.
    """
    async with cluster.client() as client:
        with trio.move_on_after(30):
            while True:
                try:
                    await client.api("STREAM.MSG.GET.TASK_RESULTS", last_by_subj=subject)
                except KeyError:
                    await trio.sleep(0.1)
                else:
                    return True
    return False


@pytest.mark.fault("partition, a handler ends in it", full=3, short=1)
@within(300)
async def test_partition_loses_no_task(tmp_path: Path, row: Row, times: int) -> None:
    """A worker acks what has a stored result; not what its cut-off leader may have stored."""
    groups = (("node-1", "node-4", "node-5"), ("node-2", "node-3"))
    for turn in range(times):
        calls = Calls()
        async with (
            open_site(tmp_path, turn) as cluster,
            open_worker(at(cluster, "node-4")) as worker,
            open_dispatcher(at(cluster, "node-5")) as dispatcher,
        ):
            await worker.handle("work", calls)
            await dispatcher.run("work", Message())
            await cluster.lead("STREAM TASK_RESULTS", "node-1")
            await cluster.lead("STREAM TASKS", "node-4", "node-5")
            await cluster.lead("CONSUMER TASKS.work-work", "node-4", "node-5")
            calls.running = trio.Event()
            future = await dispatcher.start("work", Message(inputs={"seconds": "1"}))
            row.tasks += 1
            await calls.running.wait()
            cluster.part(groups)
            await trio.sleep(PARTITION_SECONDS)
            cluster.rejoin(groups)
            mended = trio.current_time()
            with trio.move_on_after(30) as waiting:
                await future.wait()
                row.recoveries.append(trio.current_time() - mended)
            stored = await is_stored(cluster, f"done.{future.id}")
            async with cluster.client() as client:
                queued = (await tasks_state(client))["messages"]
        is_lost = not stored or waiting.cancelled_caught
        row.lost += is_lost
        demand(
            not is_lost,
            f"30 s after a partition {'there is a' if stored else 'no'} result, {queued} tasks are "
            f"in the queue, and the waiter {'waits' if waiting.cancelled_caught else 'has it'}",
        )


@pytest.mark.fault("stall of the results, a task is cancelled in it", full=3, short=1)
@within(300)
async def test_cancel_waits_for_a_stall(tmp_path: Path, row: Row, times: int) -> None:
    """`cancel` returns once there is a result, and the worker was told."""
    for turn in range(times):
        calls = Calls()
        async with (
            open_site(tmp_path, turn) as cluster,
            open_dispatcher(at(cluster, "node-4")) as dispatcher,
            open_worker(at(cluster, "node-4")) as worker,
        ):
            await worker.handle("work", calls)
            await cluster.lead("STREAM TASK_RESULTS", "node-1")
            future = await dispatcher.start("work", Message(inputs={"seconds": "60"}))
            row.tasks += 1
            await calls.running.wait()
            async with stalled(cluster, "node-2", "node-3"):
                await future.cancel()
                state = future.state
                with trio.move_on_after(SOON):
                    await calls.cancelled.wait()
                told = calls.cancelled.is_set()
            with trio.move_on_after(30):
                await future.wait()
        demand(state != TaskState.OUTSTANDING, "cancel() has returned, and there is no result")
        demand(told, "cancel() has returned, and the handler runs on")
        assert future.result.cancelled_by


async def start(dispatcher: Dispatcher) -> str:
    return (await dispatcher.start("work", Message())).id


async def start_own_id(dispatcher: Dispatcher) -> str:
    return (await dispatcher.start("work", Message(id="mine"))).id


async def run(dispatcher: Dispatcher) -> str:
    return (await dispatcher.run("work", Message())).id


async def group(dispatcher: Dispatcher) -> str:
    async with dispatcher.open_group() as tasks:
        return (await tasks.start("work", Message())).id


async def map_messages(dispatcher: Dispatcher) -> str:
    async with dispatcher.map("work", [Message()]) as results:
        return (await anext(results)).id


async def later(dispatcher: Dispatcher) -> str:
    due = datetime.now(UTC) + timedelta(seconds=STALL_SECONDS)
    return (await dispatcher.start("work", Message(id="later"), not_before=due)).id


@pytest.mark.fault("stall of the queue, tasks are started in it", full=3, short=1)
@within(300)
async def test_starts_wait_for_a_stall(tmp_path: Path, row: Row, times: int) -> None:
    """They are stored once, and run, and nobody hears that they are refused."""
    for turn in range(times):
        calls = Calls()
        ids: set[str] = set()
        raised: list[str] = []

        async def begin(
            kind: Callable[[Dispatcher], Awaitable[str]], dispatcher: Dispatcher
        ) -> None:
            try:
                ids.add(await kind(dispatcher))  # noqa: B023 - it ends within the turn
            except* SwarmTaskError as exc:
                raised.append(f"{kind.__name__} raised {exc.exceptions[0]!r}")  # noqa: B023

        async with (
            open_site(tmp_path, turn) as cluster,
            open_worker(at(cluster, "node-2")) as worker,
            open_dispatcher(at(cluster, "node-2")) as dispatcher,
        ):
            await worker.handle("work", calls)
            await dispatcher.run("work", Message())
            await cluster.lead("STREAM TASKS", "node-1")
            calls.began.clear()
            kinds = (start, start_own_id, run, group, map_messages, later)
            async with stalled(cluster, "node-4", "node-5"), trio.open_nursery() as nursery:
                for kind in kinds:
                    nursery.start_soon(begin, kind, dispatcher)
            row.tasks += len(kinds)
            with trio.fail_after(30):
                for task in ids:
                    await (await dispatcher.attach(task)).wait()
        demand(not raised, "; ".join(raised))
        assert all(len(began) == 1 for began in calls.began.values())
        assert calls.began.keys() == ids


@pytest.mark.fault("one ID is started twice at once", full=200, short=20)
@within(300)
async def test_one_id_at_once(tmp_path: Path, row: Row, times: int) -> None:
    """By two dispatchers of a healthy cluster: one task, and both get its one result."""
    calls = Calls()
    raised: Counter[str] = Counter()
    async with open_cluster(tmp_path) as cluster:
        one, two, three = (at(cluster, node) for node in cluster.nodes)

        async def start(dispatcher: Dispatcher, task: str) -> None:
            due = None
            if int(task) % 2:
                due = datetime.now(UTC) + timedelta(seconds=0.2)
            try:
                future = await dispatcher.start("work", Message(id=task), not_before=due)
                await future.wait()
            except SwarmTaskError as exc:
                raised[f"{'later' if due else 'now'}: {str(exc)[-60:]}"] += 1

        async with open_worker(one) as worker:
            await worker.handle("work", calls)
            for number in range(times):
                async with (
                    open_dispatcher(two) as first,
                    open_dispatcher(three) as second,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(start, first, f"{number}")
                    nursery.start_soon(start, second, f"{number}")
                row.tasks += 1
    demand(not raised, f"of {times} pairs: {raised}")
    row.doubled = sum(len(began) > 1 for began in calls.began.values())
    assert row.doubled == 0
    assert len(calls.began) == times


@asynccontextmanager
async def keyed(cluster: Cluster, calls: Calls, lease: float) -> AsyncIterator[Dispatcher]:
    """The bucket of keys is to stall alone: led by node-5, and node-2 and node-4 hang."""
    here = at(cluster, "node-5")
    async with (
        open_idempotency(here, bucket="keys", lease=lease) as once,
        open_dispatcher(here) as dispatcher,
        open_worker(here) as worker,
    ):
        await worker.handle("work", once(calls))
        await dispatcher.run("work", Message(idempotency="first"))
        await cluster.lead("STREAM KV_keys", "node-5")
        await cluster.lead("STREAM TASKS", "node-5", "node-1")
        await cluster.lead("CONSUMER TASKS.work-work", "node-5", "node-1")
        await cluster.lead("STREAM TASK_RESULTS", "node-1", "node-3")
        calls.began.clear()
        yield dispatcher


@pytest.mark.fault("stall of the keys, one is claimed in it", full=3, short=1)
@within(300)
async def test_claim_of_a_stall_is_ours(tmp_path: Path, row: Row, times: int) -> None:
    """A claim that was stored after all is its holder's: nobody waits until it expires."""
    for turn in range(times):
        calls = Calls()
        async with (
            open_site(tmp_path, turn) as cluster,
            keyed(cluster, calls, lease=90) as dispatcher,
        ):
            until = trio.current_time() + STALL_SECONDS
            async with stalled(cluster, "node-2", "node-4"):
                with trio.move_on_at(until + 30):
                    await dispatcher.run("work", Message(idempotency="one"))
            row.tasks += 1
            demand(bool(calls.began), "30 s after the stall the handler is not called yet")
            row.recoveries += [began[0] - until for began in calls.began.values()]


@pytest.mark.fault("stall of the keys, two of one wait in it", full=3, short=1)
@within(300)
async def test_claims_ask_with_pauses(tmp_path: Path, row: Row, times: int) -> None:
    """As for everything else that time changes, and one of the two is called when it has passed."""
    for turn in range(times):
        calls = Calls()
        async with (
            open_site(tmp_path, turn) as cluster,
            keyed(cluster, calls, lease=30) as dispatcher,
            cluster.client("node-5") as client,
            trio.open_nursery() as nursery,
        ):
            asked: Counter[str] = Counter()
            for subject in ("$KV.keys.>", "$JS.API.STREAM.MSG.GET.KV_keys"):
                nursery.start_soon(count, client, subject, asked)
            await client.flush()
            async with stalled(cluster, "node-2", "node-4"):
                messages = [Message(idempotency="one"), Message(idempotency="one")]
                futures = [await dispatcher.start("work", message) for message in messages]
                row.tasks += 2
                with trio.fail_after(STALL_SECONDS + 30):
                    for future in futures:
                        assert (await future.wait()).outputs == "done"
            nursery.cancel_scope.cancel()
        demand(asked.total() < 100, f"in a stall of {STALL_SECONDS:g} s it was asked {asked}")
        assert len(calls.began) == 1


async def count(client: PlainClient, subject: str, asked: Counter[str]) -> None:
    async for _ in await client.subscribe(subject):
        asked[subject] += 1
