"""Five nodes whose routes can be cut, harmed at random in rounds, under every kind of use."""

from __future__ import annotations

import logging
import random
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.callers import Crowd
from tests._helpers.faults.cluster_faults import do_harm, plan
from tests._helpers.faults.clusters import PLACES, Cluster, make_streams, open_cluster
from tests._helpers.faults.ledger import Runs, dead_letters, demand, tasks_state
from tests._helpers.faults.processes import WorkerProcess
from tests._helpers.faults.round_ledger import RoundLedger, Witness
from trio_swarmtask import NATSConfig, open_dispatcher
from trio_swarmtask.results import open_kv_publisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests._helpers.faults.table import Row
    from trio_swarmtask import Dispatcher
    from trio_swarmtask.results import ResultPublisher

# Seconds from the last mend until every wait has ended, every handler too.
PATIENCE = 30
SETTLE_SECONDS = 60

# More than the patience: a claim that nobody holds any more has to be given up, not to expire.
LEASE = 90


class Stage:
    """A cluster, and who uses it in every round."""

    def __init__(
        self, cluster: Cluster, nursery: trio.Nursery, row: Row, rng: random.Random
    ) -> None:
        self.cluster = cluster
        self.nursery = nursery
        self.row = row
        self.seed = rng.getrandbits(64)
        self.dispatchers: list[Dispatcher] = []
        self.publishers: list[ResultPublisher] = []
        self.workers: list[WorkerProcess] = []
        self.witness = Witness(cluster)
        self.runs = Runs(cluster.directory)
        self.run_on: set[str] = set()  # told already
        self.journal = cluster.directory / "rounds.txt"

    def config(self, first: int) -> NATSConfig:
        return NATSConfig(self.cluster.urls(first), replicas=3, connect_timeout=20)

    async def enter(self, stack: AsyncExitStack) -> None:
        for number in range(3):
            opening = open_dispatcher(self.config(number), name=f"dispatcher-{number + 1}")
            self.dispatchers.append(await stack.enter_async_context(opening))
        for number in range(2):
            publishing = open_kv_publisher(self.config(3 + number), bucket="updates")
            self.publishers.append(await stack.enter_async_context(publishing))
        for name in self.cluster.nodes:
            self.nursery.start_soon(self.witness.listen, name)
        while len(self.workers) < 3:
            await self.add_worker()

    async def add_worker(self) -> None:
        number = len(list(self.cluster.directory.glob("*.ledger")))
        worker = await WorkerProcess.start(
            self.nursery,
            self.cluster.directory,
            f"worker-{number + 1}",
            self.cluster.urls(number % len(self.cluster.nodes)),
            max_in_flight=30,
            ack_wait=6,
            keys="keys",
            lease=LEASE,
            replicas=3,
            connect_timeout=20,
        )
        self.workers.append(worker)

    async def play(self, number: int) -> str:
        """One round; what was broken in it."""
        rng = random.Random(f"{self.seed} {number}")
        harms = plan(rng, list(self.cluster.nodes))
        done = f"--round {number}\n  " + "\n  ".join(f"harm: {harm}" for harm in harms)
        ledger = RoundLedger(number)
        crowd = Crowd(ledger, self.dispatchers, self.publishers)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crowd.act, rng, max(harm.until for harm in harms), 5)
                await do_harm(self.cluster, harms)
                mended = trio.current_time()
                crowd.scope.deadline = mended + PATIENCE
            self.row.recoveries.append(trio.current_time() - mended)
            await self.check(ledger, mended)
        except Exception as exc:
            exc.add_note(f"in {done}")
            raise
        with self.journal.open("a") as journal:
            took = f"the last was {crowd.last} after {self.row.recoveries[-1]:.1f} s"
            told = [f"broken: {one}" for one in ledger.broken] or [took]
            done += "\n  " + "\n  ".join(told)
            journal.write(f"{done}\n")
        return done if ledger.broken else ""

    async def check(self, ledger: RoundLedger, mended: float) -> None:
        with trio.move_on_at(mended + PATIENCE):
            while self.running() - self.run_on:  # noqa: ASYNC110 - files have no event
                await trio.sleep(0.1)
        if running := self.running() - self.run_on:
            ledger.breaks(f"handlers run on: {running}")
            self.run_on |= running
        for worker in [worker for worker in self.workers if worker.has_ended]:
            ledger.breaks(f"{worker.name} has ended: {worker.log[-2000:]}")
            self.workers.remove(worker)
            await self.add_worker()
        with trio.fail_after(SETTLE_SECONDS):
            await self.cluster.wait_settled(*PLACES)
            async with self.cluster.client() as client:
                await ledger.check(client, self.witness, self.runs, self.row)

    def running(self) -> set[str]:
        self.runs.read()
        return self.runs.running

    async def check_all(self) -> list[str]:
        """Of all rounds: what has changed, and what was left."""
        async with self.cluster.client() as client:
            changed = await self.witness.look(client, anew=True)
            with trio.move_on_after(PATIENCE):
                while (await tasks_state(client))["messages"]:  # noqa: ASYNC110 - no event
                    await trio.sleep(0.1)
            left = (await tasks_state(client))["messages"]
            dead = await dead_letters(client)
        if left:
            changed.append(f"{left} tasks are left in the queue")
        if dead:
            changed.append(f"dead letters: {dead}")
        for log in self.cluster.directory.glob("worker-*.log"):
            changed += [line for line in log.read_text().splitlines() if " is lost: " in line]
        return changed


@pytest.mark.parametrize("apart", [False, True], ids=["as_made", "apart"])
@pytest.mark.fault("cluster of five: random cuts, pauses, kills, leader changes", full=150, short=3)
@within(3 * 3600)
async def test_cluster_is_harmed_in_rounds(
    tmp_path: Path,
    row: Row,
    rng: random.Random,
    times: int,
    request: pytest.FixtureRequest,
    apart: bool,
) -> None:
    """The round that fails can be played alone: ``--seed`` of the run and ``--round``."""
    row.fault += f"; streams {'apart' if apart else 'as made'}"
    option = request.config.option
    rounds = range(1, times + 1) if option.round is None else [option.round]
    async with (
        open_cluster(tmp_path, 5, cuttable=True, places=PLACES) as cluster,
        trio.open_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        stack.enter_context(logging_to(tmp_path / "callers.log"))
        stage = Stage(cluster, nursery, row, rng)
        await make_streams(stage.config(0))
        if apart:
            await cluster.place(PLACES)
        await stage.enter(stack)
        broken = [told for number in rounds if (told := await stage.play(number))]
        broken += await stage.check_all()
        nursery.cancel_scope.cancel()
    again = f"--seed {option.seed} -k {'apart' if apart else 'as_made'}, and --round for one alone"
    head = f"{len(broken)} of {len(rounds)} rounds: {again}; all logs are in {tmp_path}"
    demand(not broken, "\n".join([head, *broken]))


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """What the dispatchers and publishers log goes into a file: it is much."""
    logger = logging.getLogger("trio_swarmtask")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
        handler.close()
