# Clusters of nats-servers on this machine: nodes that can be killed and stopped at any moment, and,
# where asked for, routes that can be cut.
#
# Of a cuttable cluster each node reaches each other one by a proxy of its own. The nodes know the
# others by these proxies alone and tell nobody of themselves: else they would find a way past them.
# So such a cluster does not tell its clients of the other nodes either.

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from tests._helpers.faults.processes import FaultServer
from tests._helpers.plain_nats import PlainClient, open_plain_client
from tests._helpers.ports import free_ports
from tests._helpers.proxy import Proxy, open_proxy
from trio_swarmtask import Message, RetryTask, open_dispatcher, open_idempotency, open_worker
from trio_swarmtask.results import open_kv_publisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from pathlib import Path

    from trio_swarmtask import NATSConfig

    Groups = Sequence[Collection[str]]
    """The nodes, in groups that don't reach each other."""

NODE = """
server_name: {name}
server_tags: {tags}
cluster {{ name: swarm, listen: "127.0.0.1:{port}", {hidden} routes: [{routes}] }}
"""
HIDDEN = 'advertise: "127.0.0.1:1", no_advertise: true, pool_size: -1,'

# No two streams are on the same nodes: a partition may leave each of them a majority, on sides that
# don't reach each other, and one of them alone can be made to stall.
PLACES = {
    "TASKS": ("node-1", "node-4", "node-5"),
    "TASK_RESULTS": ("node-1", "node-2", "node-3"),
    "KV_keys": ("node-2", "node-4", "node-5"),
    "KV_updates": ("node-1", "node-3", "node-5"),
    "TASK_DEAD": ("node-2", "node-3", "node-4"),
}


class Cluster:
    """Made by `open_cluster`."""

    def __init__(
        self, nodes: dict[str, FaultServer], gates: dict[tuple[str, str], Proxy], directory: Path
    ) -> None:
        self.nodes = nodes
        self.directory = directory
        self.down: set[str] = set()  # killed, or stopped
        self._gates = gates
        self._partitions: list[tuple[Groups, bool]] = []

    @property
    def url(self) -> str:
        return self.urls()

    def urls(self, first: int = 0) -> str:
        """Of all nodes, from that one on."""
        urls = [node.url for node in self.nodes.values()]
        return ",".join(urls[first:] + urls[:first])

    @asynccontextmanager
    async def client(self, name: str | None = None) -> AsyncIterator[PlainClient]:
        """Of that node, or of one that is up."""
        if name is None:
            name = next(name for name in self.nodes if name not in self.down)
        async with open_plain_client(self.nodes[name].port) as client:
            yield client

    # Harm

    async def kill(self, *names: str) -> None:
        """SIGKILL; return once they are gone."""
        self.down.update(names)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self.nodes[name].kill)

    async def start(self, *names: str) -> None:
        """Start those that were killed, on their ports and stores; return once they are ready."""
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self.nodes[name].start)
        self.down.difference_update(names)

    def pause(self, *names: str) -> None:
        self.down.update(names)
        for name in names:
            self.nodes[name].pause()

    def resume(self, *names: str) -> None:
        for name in names:
            self.nodes[name].resume()
        self.down.difference_update(names)

    def part(self, groups: Groups, *, silent: bool = False) -> None:
        """Let nothing pass between these groups, until `rejoin`.

        Their connections end and new ones are refused. ``silent``: they stay, as in a network that
        drops packets, and what was held back arrives in the end.
        """
        self._partitions.append((groups, silent))
        self._set_gates()

    def rejoin(self, groups: Groups) -> None:
        self._partitions = [one for one in self._partitions if one[0] is not groups]
        self._set_gates()

    def _set_gates(self) -> None:
        for pair, gate in self._gates.items():
            parted = [silent for groups, silent in self._partitions if is_parted(pair, groups)]
            if not all(parted):
                gate.cut(for_good=True)
            else:
                gate.mend()
            if any(parted):
                gate.freeze()
            else:
                gate.thaw()

    # Looking

    async def wait_settled(self, *streams: str) -> dict[str, str]:
        """Wait until each stream has a leader and all replicas are up to date.

        Returns:
          The leaders.
        """
        async with self.client() as client:
            leaders = {}
            for stream in streams:
                while (leader := await settled_leader(client, f"STREAM {stream}")) is None:  # noqa: ASYNC110 - no event
                    await trio.sleep(0.1)
                leaders[stream] = leader
            return leaders

    async def lead(self, asset: str, *wanted: str) -> None:
        """Let one of these nodes lead ``"STREAM …"`` or ``"CONSUMER <stream>.<name>"``.

        Return once it does, and all replicas are up to date.
        """
        async with self.client() as client:
            while (leader := await settled_leader(client, asset)) not in wanted:
                if leader is not None:
                    with suppress(KeyError):  # it may be on its way already
                        await step_down(client, asset, wanted[0])
                await trio.sleep(0.1)

    async def place(self, places: Mapping[str, Collection[str]]) -> None:
        """Make these streams anew, empty, each on the nodes that have its name for a tag."""
        async with self.client() as client:
            for stream in places:
                config = (await client.api(f"STREAM.INFO.{stream}"))["config"]
                config["placement"] = {"tags": [stream.lower()]}
                await client.api(f"STREAM.DELETE.{stream}")
                await client.api(f"STREAM.CREATE.{stream}", **config)
        await self.wait_settled(*places)


def is_parted(pair: Collection[str], groups: Groups) -> bool:
    return not any(set(pair) <= set(group) for group in groups)


async def make_streams(config: NATSConfig) -> None:
    """All that are in `PLACES`, as the library makes them."""

    async def try_again(message: Message) -> None:
        raise RetryTask  # the note of it goes into the stream of dead letters

    async with (
        open_dispatcher(config) as dispatcher,
        open_worker(config) as worker,
        open_kv_publisher(config, bucket="updates"),
        open_idempotency(config, bucket="keys"),
    ):
        await worker.handle("nothing", try_again)
        await dispatcher.run("nothing", Message(max_attempts=2))


async def settled_leader(client: PlainClient, asset: str) -> str | None:
    """Who leads it, if all its replicas are up to date."""
    kind, name = asset.split()
    with trio.move_on_after(2):
        try:
            info = await client.api(f"{kind}.INFO.{name}")
        except KeyError:
            return None
        peers = info["cluster"].get("replicas") or []
        replicas = info["config"].get("num_replicas") or 1 + len(peers)
        if len(peers) == replicas - 1 and all(peer["current"] for peer in peers):
            leader: str | None = info["cluster"].get("leader")
            return leader
    return None


async def step_down(client: PlainClient, asset: str, preferred: str | None = None) -> None:
    """Let another node lead it: ``preferred``, if it can."""
    kind, name = asset.split()
    body = {"placement": {"preferred": preferred}} if preferred else {}
    await client.api(f"{kind}.LEADER.STEPDOWN.{name}", **body)


@asynccontextmanager
async def open_cluster(
    directory: Path,
    size: int = 3,
    *,
    cuttable: bool = False,
    places: Mapping[str, Collection[str]] | None = None,
    more: str = "",
) -> AsyncIterator[Cluster]:
    """Nodes ``node-1`` and so on, which have found each other; each logs to a file of its name.

    Args:
      directory: For configurations, stores and logs.
      cuttable: Whether `Cluster.part` can cut the routes.
      places: What `Cluster.place` will be asked for: streams, and who may hold them.
      more: Of each node's configuration.
    """
    names = [f"node-{number + 1}" for number in range(size)]
    ports = {name: next(free_ports) for name in names}
    routes = {name: next(free_ports) for name in names}
    async with AsyncExitStack() as stack:
        gates: dict[tuple[str, str], Proxy] = {}
        if cuttable:
            for pair in ((here, there) for here in names for there in names if here != there):
                gates[pair] = await stack.enter_async_context(open_proxy(routes[pair[1]]))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nodes = {}
        for name in names:
            ways = {
                there: gates[name, there].port if cuttable else routes[there]
                for there in names
                if there != name or not cuttable
            }
            config = directory / f"{name}.conf"
            config.write_text(
                NODE.format(
                    name=name,
                    tags=json.dumps([s.lower() for s in places or {} if name in places[s]]),
                    port=routes[name],
                    hidden=HIDDEN if cuttable else "",
                    routes=", ".join(f"nats://127.0.0.1:{port}" for port in ways.values()),
                )
                + more
            )
            arguments = ["--jetstream", "-c", str(config)]
            nodes[name] = FaultServer(nursery, ports[name], directory / name, arguments)
        cluster = Cluster(nodes, gates, directory)
        await cluster.start(*names)
        async with cluster.client() as client:
            while not await knows_all(client, size):  # noqa: ASYNC110 - no event
                await trio.sleep(0.1)
        yield cluster
        nursery.cancel_scope.cancel()


async def knows_all(client: PlainClient, size: int) -> bool:
    """Whether there is a leader of the cluster who can place a stream on all of them."""
    with trio.move_on_after(2):
        try:
            await client.api("STREAM.CREATE.PROBE", name="PROBE", num_replicas=size)
            await client.api("STREAM.DELETE.PROBE")
        except KeyError:
            return False
        return True
    return False
