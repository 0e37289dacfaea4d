"""A cluster of three, with `replicas=3`: one dies, or the leader steps down, under load."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from arena import Arena, open_arena_on
from plain_nats import PlainClient, open_plain_client
from ports import free_ports
from processes import FaultServer
from swarm import within

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fault_rows import Row

NODE = """
server_name: {name}
cluster {{ name: swarm, listen: "127.0.0.1:{port}", routes: [{routes}] }}
"""


class Cluster:
    def __init__(self, nodes: dict[str, FaultServer]) -> None:
        self.nodes = nodes
        self.down: str | None = None

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes.values())

    @asynccontextmanager
    async def client(self) -> AsyncIterator[PlainClient]:
        """Of a node that is up."""
        node = next(node for name, node in self.nodes.items() if name != self.down)
        async with open_plain_client(node.port) as client:
            yield client

    async def wait_settled(self, *streams: str) -> dict[str, Any]:
        """Wait until each stream has a leader and all replicas are up to date.

        Returns:
          The leaders.
        """
        async with self.client() as client:
            leaders = {}
            for stream in streams:
                while (leader := await settled_leader(client, stream)) is None:  # noqa: ASYNC110 - no event
                    await trio.sleep(0.1)
                leaders[stream] = leader
            return leaders


async def settled_leader(client: PlainClient, stream: str) -> str | None:
    with trio.move_on_after(2):
        try:
            cluster = (await client.api(f"STREAM.INFO.{stream}"))["cluster"]
        except KeyError:
            return None
        replicas = cluster.get("replicas") or []
        if len(replicas) == 2 and all(peer["current"] for peer in replicas):
            return cluster.get("leader")
    return None


@asynccontextmanager
async def open_cluster(directory: Path) -> AsyncIterator[Cluster]:
    ports = [next(free_ports) for _ in range(6)]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports[3:])
    async with trio.open_nursery() as nursery:
        nodes = {}
        for number in range(3):
            name = f"node-{number + 1}"
            config = directory / f"{name}.conf"
            config.write_text(NODE.format(name=name, port=ports[3 + number], routes=routes))
            arguments = ["--jetstream", "-c", str(config)]
            nodes[name] = FaultServer(nursery, ports[number], directory / name, arguments)
        async with trio.open_nursery() as starting:
            for node in nodes.values():
                starting.start_soon(node.start)
        cluster = Cluster(nodes)
        async with cluster.client() as client:
            while not await knows_all(client):  # noqa: ASYNC110 - no event
                await trio.sleep(0.1)
        yield cluster
        nursery.cancel_scope.cancel()


async def knows_all(client: PlainClient) -> bool:
    """Whether there is a leader of the cluster who can place a stream on all three."""
    with trio.move_on_after(2):
        try:
            await client.api("STREAM.CREATE.PROBE", name="PROBE", num_replicas=3)
            await client.api("STREAM.DELETE.PROBE")
        except KeyError:
            return False
        return True
    return False


async def kill(arena: Arena, cluster: Cluster, victim: str) -> None:
    cluster.down = victim
    await cluster.nodes[victim].kill()
    await note_recovery(arena)
    await cluster.nodes[victim].start()
    cluster.down = None


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
