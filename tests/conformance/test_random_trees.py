"""Random trees of groups, on both brokers: what a block has left behind runs no more.

In CI there are 30 of them, the same each time: 27 in memory, and 3 on a server. `nox -s
random-trees` plays 1,000 others, and says by which seed they are the same again:

    SWARMTASK_TREES=1000 SWARMTASK_SEED=4711 pytest tests/conformance/test_random_trees.py

A failure shows the tree, and what befell it. To play that one alone, on both brokers:

    SWARMTASK_TREE='0 17' pytest tests/conformance/test_random_trees.py
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import pytest
import trio

from tests._helpers.brokers import run_on_virtual_time
from tests._helpers.proxy import Proxy, open_proxy
from tests._helpers.random_trees import Plan, Site, play
from trio_swarmtask import (
    BrokerError,
    Dispatcher,
    MemoryBroker,
    NATSConfig,
    Worker,
    open_dispatcher,
    open_worker,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from trio_swarmtask.server import Server

COUNT: Final = int(os.environ.get("SWARMTASK_TREES", "30"))
SEED: Final = os.environ.get("SWARMTASK_SEED", "0")
ALONE: Final = os.environ.get("SWARMTASK_TREE")
REPEATS: Final = 10  # of one that is played alone: it may fail only now and then
EACH: Final = 27  # in a test
ONE_IN: Final = 10  # is played on a server

SEEDS: Final = [f"{SEED} {n}" for n in range(COUNT)] if ALONE is None else [ALONE] * REPEATS
ON_SERVER: Final = SEEDS[::ONE_IN] if ALONE is None else SEEDS
IN_MEMORY: Final = SEEDS if ALONE is not None else [n for n in SEEDS if n not in ON_SERVER]


def parts(seeds: list[str], each: int) -> list[list[str]]:
    return [seeds[start : start + each] for start in range(0, len(seeds), each)]


def span(seeds: list[str]) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


class InMemory(Site):
    scale = 1.0

    def __init__(self) -> None:
        self._broker = MemoryBroker()

    def dispatcher(self) -> AbstractAsyncContextManager[Dispatcher]:
        return open_dispatcher(self._broker)

    def worker(self) -> AbstractAsyncContextManager[Worker]:
        return open_worker(self._broker)

    def lose(self, role: Dispatcher | Worker) -> None:
        gone = BrokerError("gone")
        dispatcher = (
            role if isinstance(role, Dispatcher) else role._runner.own_dispatcher._dispatcher
        )
        if dispatcher is not None:
            dispatcher._core.futures.broker_lost(gone)
        if isinstance(role, Worker):
            role._closing.interrupt(gone)


Role = TypeVar("Role", Dispatcher, Worker)


class OnServer(Site):
    scale = 0.3

    def __init__(self, server: Server) -> None:
        self._server = server
        self._proxies: dict[Dispatcher | Worker, Proxy] = {}

    def dispatcher(self) -> AbstractAsyncContextManager[Dispatcher]:
        return self._behind_proxy(open_dispatcher)

    def worker(self) -> AbstractAsyncContextManager[Worker]:
        return self._behind_proxy(open_worker)

    @asynccontextmanager
    async def _behind_proxy(
        self, open_role: Callable[[NATSConfig], AbstractAsyncContextManager[Role]]
    ) -> AsyncIterator[Role]:
        async with open_proxy(self._server.port) as proxy:
            config = NATSConfig(proxy.url, reconnect_timeout=0.1)
            async with open_role(config) as role:
                self._proxies[role] = proxy
                yield role

    def lose(self, role: Dispatcher | Worker) -> None:
        self._proxies[role].cut(for_good=True)


@pytest.mark.parametrize("seeds", parts(IN_MEMORY, EACH), ids=span)
def test_trees_in_memory(seeds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # So that a tree comes out the same again, as near as can be.
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    for seed in seeds:
        trio._core._run._r.seed(seed)
        run_on_virtual_time(partial(play, Plan.draw(seed), InMemory()))


@pytest.mark.parametrize("seeds", parts(ON_SERVER, ONE_IN), ids=span)
async def test_trees_on_a_server(server: Server, seeds: list[str]) -> None:
    for seed in seeds:
        await play(Plan.draw(seed), OnServer(server))
