"""A cluster of three, with `replicas=3`: one dies, or the leader steps down, under load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from arena import Arena, open_arena_on
from clusters import Cluster, open_cluster
from swarm import within

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from fault_rows import Row


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
