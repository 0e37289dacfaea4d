# Turns: pairs of a dispatcher and its workers that do the same work, one pair after the other
#
# In every round each pair is started anew. Then the pairs take short turns in an order and back (a,
# b, b, a), so that a drift, or what slows the machine down for a while, meets all of them. Only the
# pair whose turn it is has work to do.

from __future__ import annotations

import itertools
import statistics
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from .roles import Role, RoleError, open_role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .figures import Figures
    from .runners import Runner
    from .servers import Server, Servers

LONGEST_TURN: Final = 10.0  # seconds, about
_TRIAL_SECONDS: Final = 0.2  # that a trial must take to tell the rate


@dataclass(frozen=True)
class Workload:
    """What a dispatcher is asked to do in a turn."""

    name: str
    in_flight: int
    payload: int = 0
    share: float = 1.0
    """How long its turns are, beside those of others."""
    ideal: float = 0.0
    """Tasks a second that can't be exceeded, if there is such a limit."""


@dataclass(frozen=True)
class Entrant:
    """A runner, as it is set up for a section."""

    name: str
    runner: Runner
    workers: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    optional: bool = False
    """If it can't run, the rest goes on without it."""


@dataclass
class Total:
    """What the turns of one round add up to, for one entrant and workload."""

    tasks: int = 0
    seconds: float = 0.0
    dispatcher_cpu: float = 0.0
    worker_cpu: float = 0.0
    server_cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def values(self, workload: Workload, runner: Runner) -> dict[str, float]:
        """By metric. Processor time is in seconds for 10,000 tasks, latency in seconds."""
        share = 10_000 / self.tasks
        values = {
            "tasks": float(self.tasks),
            "rate": self.tasks / self.seconds,
            "cpu_dispatcher": self.dispatcher_cpu * share,
            "cpu_both": (self.dispatcher_cpu + self.worker_cpu) * share,
        }
        if not runner.in_one_process:
            values["cpu_worker"] = self.worker_cpu * share
            values["cpu_server"] = self.server_cpu * share
        if workload.ideal:
            values["of_ideal"] = values["rate"] / workload.ideal
        if len(self.latencies) > 1:
            cuts = statistics.quantiles(self.latencies, n=1000, method="inclusive")
            values["median"] = cuts[499]
            values["p99"] = cuts[989]
            values["p99_9"] = cuts[998]
        return values


class Pair:
    """A dispatcher with its workers, ready to work. Made by `open_pair`."""

    def __init__(
        self, runner: Runner, server: Server, dispatcher: Role, workers: Sequence[Role]
    ) -> None:
        self._runner = runner
        self._server = server
        self._dispatcher = dispatcher
        self._workers = workers

    async def take_turn(self, workload: Workload, tasks: int, total: Total) -> None:
        workers_before = await self._workers_cpu()
        server_before = self._server.cpu_seconds()
        answer = await self._run(workload, tasks)
        total.server_cpu += self._server.cpu_seconds() - server_before
        total.worker_cpu += await self._workers_cpu() - workers_before
        total.dispatcher_cpu += answer["cpu"]
        total.tasks += tasks
        total.seconds += answer["seconds"]
        total.latencies += answer["latencies"]

    async def find_size(self, workload: Workload, seconds: float) -> int:
        """How many tasks take about so many seconds. It warms up as well."""
        # Every place in flight is used once at least, and a slow one has its turn soon over.
        least = tasks = workload.in_flight if workload.in_flight > 1 else 3
        while (taken := (await self._run(workload, tasks))["seconds"]) < _TRIAL_SECONDS:
            tasks *= 4
        wanted = int(tasks / taken * seconds)
        longest = int(tasks / taken * LONGEST_TURN)
        return max(1, min(max(wanted, least), longest, self._runner.most or longest))

    async def _run(self, workload: Workload, tasks: int) -> dict[str, Any]:
        await trio.sleep(self._runner.rest)
        return await self._dispatcher.ask(
            do="run", tasks=tasks, in_flight=workload.in_flight, payload=workload.payload
        )

    async def _workers_cpu(self) -> float:
        return sum([float((await worker.ask(do="tell"))["cpu"]) for worker in self._workers])


_numbers: Final = itertools.count(1)


def new_name() -> str:
    """A capability that no earlier process has used."""
    return f"bench-{next(_numbers)}"


@asynccontextmanager
async def open_pair(server: Server, entrant: Entrant, capability: str) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:

        async def start(role: str) -> Role:
            opened = open_role(entrant.runner, role, server.url, capability, **entrant.options)
            started = await stack.enter_async_context(opened)
            await started.wait_ready()
            return started

        workers = 0 if entrant.runner.in_one_process else entrant.workers
        # The workers come first: they make the streams.
        roles = [await start("worker") for _ in range(workers)]
        yield Pair(entrant.runner, server, await start("dispatcher"), roles)


@dataclass
class Contest:
    """Several entrants at several workloads."""

    section: str
    entrants: Sequence[Entrant]
    workloads: Sequence[Workload]
    rounds: int
    seconds: float
    """Of one turn, about."""
    cycles: int = 1
    """How often the turns go there and back in a round."""
    prefix: str = ""
    """Goes before the names of the workloads, where a section has several contests."""

    async def run(self, servers: Servers, figures: Figures) -> None:
        entrants = list(self.entrants)
        sizes: dict[tuple[str, str], int] = {}
        for _ in range(self.rounds):
            async with AsyncExitStack() as stack:
                pairs: dict[str, Pair] = {}
                for entrant in list(entrants):
                    try:
                        server = await servers.get(entrant.runner.server)
                        opened = open_pair(server, entrant, new_name())
                        pairs[entrant.name] = await stack.enter_async_context(opened)
                    except RoleError as exc:
                        if not entrant.optional:
                            raise
                        figures.problems[self.section, entrant.name] = str(exc)
                        entrants.remove(entrant)
                totals = await self._run_round(pairs, sizes)
            for index, workload in enumerate(self.workloads):
                for entrant in entrants:
                    values = totals[entrant.name][index].values(workload, entrant.runner)
                    figures.add(self.section, self.prefix + workload.name, entrant.name, values)

    async def _run_round(
        self, pairs: dict[str, Pair], sizes: dict[tuple[str, str], int]
    ) -> dict[str, list[Total]]:
        names = [*pairs]
        totals = {name: [Total() for _ in self.workloads] for name in names}
        for name, pair in pairs.items():
            for workload in self.workloads:
                if (name, workload.name) not in sizes:
                    size = await pair.find_size(workload, self.seconds * workload.share)
                    sizes[name, workload.name] = size
            # Of a later round, whose processes are new: what is slow at first is not counted.
            await pair.find_size(self.workloads[0], self.seconds)
        for _ in range(self.cycles):
            for index, workload in enumerate(self.workloads):
                for name in (*names, *reversed(names)):
                    size = sizes[name, workload.name]
                    await pairs[name].take_turn(workload, size, totals[name][index])
        return totals
