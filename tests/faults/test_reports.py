"""Handlers that report without pause, and a dispatcher on a slow link that follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.attack import LOST, logged
from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena
from tests._helpers.slow_link import open_link
from trio_swarmtask import Dispatcher, Future, NATSConfig, open_dispatcher

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row

RATE = 1_000_000  # bytes a second
FLOODS = 3  # at once
SECONDS = 5
PATIENCE = 3  # seconds for a task that takes none


async def follow(future: Future, heard: dict[str, list[int]]) -> None:
    async for update in future.updates():
        assert update.metadata is not None
        heard.setdefault(future.id, []).append(int(update.metadata["note"].partition(" ")[0]))


async def flood(arena: Arena, dispatcher: Dispatcher, size: int) -> None:
    """Follow tasks that report all the time; others are to come and go as if nothing were."""
    heard: dict[str, list[int]] = {}
    futures = [
        await arena.start(0, dispatcher, reports=f"{SECONDS}", size=f"{size}")
        for _ in range(FLOODS)
    ]
    async with trio.open_nursery() as nursery:
        for future in futures:
            nursery.start_soon(follow, future, heard)
        while any(future.state == "outstanding" for future in futures):
            began = trio.current_time()
            await arena.run(0, dispatcher)
            arena.row.recoveries.append(trio.current_time() - began)
            await trio.sleep(0.1)
        for future in futures:
            result = await arena.wait(future)
            last = int(result.outputs["reported"])
            numbers = heard[future.id]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == last, f"{last} was the last report, {numbers[-1]} was heard"
            assert last > 10 * len(numbers), "nothing was held back"


@pytest.mark.fault("handlers report without pause to a slow link", full=40, short=2)
@within(900)
async def test_reports_without_pause(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    """Recovery: what a task takes that has nothing to do with it, on the same connection."""
    with logged() as log:
        async with (
            open_arena(tmp_path, row, rng, ack_wait=30) as arena,
            open_link(arena.server.port, rate=RATE) as link,
            open_dispatcher(NATSConfig(link.url)) as dispatcher,
        ):
            await arena.add_worker()
            for _ in range(times):
                await flood(arena, dispatcher, rng.choice((0, 1000, 20_000)))
            await arena.check()
        assert link.connections == 1
    assert max(row.recoveries) < PATIENCE
    assert not [line for line in log.lines if LOST in line]
    assert row.doubled == 0
