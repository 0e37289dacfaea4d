"""A cluster of three, with `replicas=3`: one dies, or the leader steps down, under load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.clusters import Cluster, open_cluster
from tests._helpers.faults.deployment import Arena, open_arena_on
from trio_swarmtask import Dispatcher, NATSConfig, open_dispatcher

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row


async def kill(arena: Arena, cluster: Cluster, victim: str) -> None:
    await cluster.kill(victim)
    await note_recovery(arena)
    await cluster.start(victim)


async def note_recovery(arena: Arena) -> None:
    before = trio.current_time()
    with trio.fail_after(60):
        await arena.run()
    arena.row.recoveries.append(trio.current_time() - before)


@pytest.mark.parametrize("fault", ["leader killed", "follower killed", "leader stepped down"])
@pytest.mark.fault("cluster of three", full=10, short=1)
@within(900)
async def test_cluster(
    tmp_path: Path, row: Row, rng: random.Random, times: int, fault: str
) -> None:
    row.fault = f"cluster of three: {fault}"
    async with (
        open_cluster(tmp_path) as cluster,
        open_arena_on(
            cluster.url, tmp_path, row, rng, ack_wait=5, replicas=3, connect_timeout=20
        ) as arena,
    ):
        await arena.add_workers(2)
        async with arena.load():
            for _ in range(times):
                await arena.ledger.wait_result()
                leaders = await cluster.wait_settled("TASKS", "TASK_RESULTS")
                leader = leaders[rng.choice(["TASKS", "TASK_RESULTS"])]
                if fault == "leader stepped down":
                    async with cluster.client() as client:
                        await client.api("STREAM.LEADER.STEPDOWN.TASKS")
                        await client.api("STREAM.LEADER.STEPDOWN.TASK_RESULTS")
                        await client.api("CONSUMER.LEADER.STEPDOWN.TASKS.work-work")
                    await note_recovery(arena)
                elif fault == "leader killed":
                    await kill(arena, cluster, leader)
                else:
                    followers = [name for name in cluster.nodes if name not in leaders.values()]
                    await kill(arena, cluster, rng.choice(followers))
        await cluster.wait_settled("TASKS", "TASK_RESULTS")
        await arena.ledger.check(next(iter(cluster.nodes.values())).port, leases_may_lapse=True)


AT_ONCE = 10
LONGEST = 0.1  # seconds of a handler


async def contend(arena: Arena, others: tuple[Dispatcher, Dispatcher]) -> None:
    """A task that its worker ends while two cancel it; each of the three waits for its result."""
    future = await arena.start(arena.rng.uniform(0, LONGEST))
    task_id = future.id

    async def cancel(dispatcher: Dispatcher) -> None:
        own = await dispatcher.attach(task_id)
        await trio.sleep(arena.rng.uniform(0, LONGEST))
        await own.cancel()
        await arena.wait(own)

    async with trio.open_nursery() as nursery:
        for other in others:
            nursery.start_soon(cancel, other)
        await arena.wait(future)


@pytest.mark.fault("cluster of three: a worker and two who cancel", full=1000, short=20)
@within(900)
async def test_contested_results(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """The first result of each is the only one, and what everybody hears."""
    numbers = iter(range(times))
    async with (
        open_cluster(tmp_path) as cluster,
        open_arena_on(
            cluster.url, tmp_path, row, rng, ack_wait=5, replicas=3, connect_timeout=20
        ) as arena,
        open_dispatcher(NATSConfig(cluster.urls(1), connect_timeout=20)) as one,
        open_dispatcher(NATSConfig(cluster.urls(2), connect_timeout=20)) as two,
    ):
        await arena.add_workers(2)

        async def one_after_the_other() -> None:
            for _ in numbers:
                await contend(arena, (one, two))

        async def harm() -> None:
            # In an outage all handlers end before anybody can cancel: the first are without one.
            while len(arena.ledger.got) < AT_ONCE:
                await arena.ledger.wait_result()
            while True:
                leaders = await cluster.wait_settled("TASKS", "TASK_RESULTS")
                if rng.random() < 0.5:
                    async with cluster.client() as client:
                        await client.api("STREAM.LEADER.STEPDOWN.TASK_RESULTS")
                else:
                    victim = leaders["TASK_RESULTS"]
                    await cluster.kill(victim)
                    await trio.sleep(1)
                    await cluster.start(victim)

        async with trio.open_nursery() as harming:
            harming.start_soon(harm)
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(one_after_the_other)
            harming.cancel_scope.cancel()
        await cluster.start(*cluster.down)
        await cluster.wait_settled("TASKS", "TASK_RESULTS")
        await arena.ledger.check(next(iter(cluster.nodes.values())).port, leases_may_lapse=True)
        ends = [found[0].status for found in arena.ledger.got.values()]
        assert 0.1 < ends.count("success") / times < 0.9, "there was nothing to contend for"
