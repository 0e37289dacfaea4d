# What is done to a cluster in one round: partitions, pauses, kills and changes of leaders, several
# of them at a time.
#
# Invariant: a plan is a function of its random generator alone, which is that of one round. So a
# round can be done again by itself.

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import trio

from tests._helpers.faults.clusters import PLACES, step_down

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests._helpers.faults.clusters import Cluster

# A request that had no answer is given up after 5 to 7.5 s and made again. Only a longer harm shows
# what comes of that; of a shorter one there can be more.
SHORTEST, LONG, LONGEST = 2.0, 8.0, 11.0

# So late at least comes what is not a change of leaders: who leads when it comes is settled.
FIRST = 0.3

# How many of the cuts are not noticed by the servers' connections.
SILENT = 1 / 3

# At a time. More leaves no stream a majority: an outage, in which less happens.
MOST_DOWN = 2

LED = (
    "STREAM TASKS",
    "STREAM TASK_RESULTS",
    "STREAM KV_keys",
    "STREAM KV_updates",
    "CONSUMER TASKS.work-work",
)


@dataclass(frozen=True)
class Harm:
    """Done ``at`` seconds after the round's begin, and mended at ``until``."""

    at: float
    until: float
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        kind = type(self).__name__.lower()
        return f"{self.at:.2f} to {self.until:.2f} s: {kind} {' '.join(self.nodes)}"

    async def do(self, cluster: Cluster) -> None:
        raise NotImplementedError


class Pause(Harm):
    """SIGSTOP."""

    async def do(self, cluster: Cluster) -> None:
        await trio.sleep(self.at)
        cluster.pause(*self.nodes)
        try:
            await trio.sleep(self.until - self.at)
        finally:
            cluster.resume(*self.nodes)


class Kill(Harm):
    async def do(self, cluster: Cluster) -> None:
        await trio.sleep(self.at)
        await cluster.kill(*self.nodes)
        await trio.sleep(self.until - self.at)
        await cluster.start(*self.nodes)


@dataclass(frozen=True)
class Cut(Harm):
    groups: tuple[tuple[str, ...], ...]
    silent: bool

    def __str__(self) -> str:
        groups = " | ".join(" ".join(group) for group in self.groups)
        kind = "silence between" if self.silent else "cut"
        return f"{self.at:.2f} to {self.until:.2f} s: {kind} {groups}"

    async def do(self, cluster: Cluster) -> None:
        await trio.sleep(self.at)
        cluster.part(self.groups, silent=self.silent)
        try:
            await trio.sleep(self.until - self.at)
        finally:
            cluster.rejoin(self.groups)


@dataclass(frozen=True)
class StepDown(Harm):
    """The first of the nodes is to lead, if it can."""

    asset: str

    def __str__(self) -> str:
        return f"{self.at:.2f} s: {self.asset} to be led by {self.nodes[0]}"

    async def do(self, cluster: Cluster) -> None:
        await trio.sleep(self.at)
        with trio.move_on_after(1):
            try:
                async with cluster.client() as client:
                    await step_down(client, self.asset, self.nodes[0])
            except* (KeyError, OSError, trio.BrokenResourceError):
                pass  # there is no leader, none that is reached, or none that can give it up


def plan(rng: random.Random, nodes: Sequence[str]) -> list[Harm]:
    """The harm of one round."""
    is_long = rng.random() < 0.5
    end = rng.uniform(LONG, LONGEST) if is_long else rng.uniform(SHORTEST, LONG)
    victims = rng.sample(nodes, MOST_DOWN)
    harms: list[Harm] = []
    for number in range(rng.randint(1, 3)):
        at = FIRST + rng.uniform(0, 0.3 if is_long else end / 2)
        until = end if is_long or number == 0 else rng.uniform(at, end)
        blow = rng.choice((Pause, Kill, None, None))
        if blow is not None and victims:
            count = rng.randint(1, len(victims))
            harms.append(blow(at, until, tuple(victims.pop() for _ in range(count))))
        elif rng.random() < 0.5:
            harms.append(Cut(at, until, (), random_groups(rng, nodes), rng.random() < SILENT))
        else:
            harms += cut_off_a_leader(rng, at, until)
    for _ in range(rng.randint(0, 4)):
        at = rng.choice((0, rng.uniform(0, end)))
        harms.append(StepDown(at, at, (rng.choice(nodes),), rng.choice(LED)))
    return sorted(harms, key=lambda harm: harm.at)


def cut_off_a_leader(rng: random.Random, at: float, until: float) -> list[Harm]:
    """From the others that hold its stream, where it is in its place, with any of the rest."""
    stream = rng.choice(("TASK_RESULTS", *PLACES))
    leader, *others = rng.sample(PLACES[stream], len(PLACES[stream]))
    here, there = [leader], others
    for node in sorted({node for place in PLACES.values() for node in place} - {leader, *others}):
        rng.choice((here, here, there)).append(node)
    groups = (tuple(sorted(here)), tuple(sorted(there)))
    cut = Cut(at, until, (), groups, rng.random() < SILENT)
    return [StepDown(0, 0, (leader,), f"STREAM {stream}"), cut]


def random_groups(rng: random.Random, nodes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The nodes in two or three groups."""
    shuffled = rng.sample(nodes, len(nodes))
    cuts = sorted(rng.sample(range(1, len(nodes)), rng.randint(1, 2)))
    edges = [0, *cuts, len(nodes)]
    return tuple(tuple(sorted(shuffled[start:end])) for start, end in pairwise(edges))


async def do_harm(cluster: Cluster, harms: Sequence[Harm]) -> None:
    """Return once all is mended."""
    async with trio.open_nursery() as nursery:
        for harm in harms:
            nursery.start_soon(harm.do, cluster)
