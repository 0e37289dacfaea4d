"""Tasks that are cancelled from afar, at any moment of their life."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row

IN_FLIGHT = 20
GRACE = 20.0  # seconds; more than a lease


async def race(arena: Arena) -> bool:
    """Start a task and cancel it while it waits, runs, ends, or is over; whether it was in time."""
    future = await arena.start(arena.rng.choice((0, arena.rng.uniform(0, 0.1))))
    await trio.sleep(arena.rng.uniform(0, 0.1))
    began = trio.current_time()
    confirmed = await arena.dispatcher._core.futures.cancel(future, GRACE)
    took = trio.current_time() - began
    assert confirmed, f"nobody said that {future.id} runs no more"
    result = await arena.wait(future)
    if result.cancelled_by:
        arena.row.recoveries.append(took)
    return bool(result.cancelled_by)


@pytest.mark.fault("task cancelled from afar at a random moment", full=4000, short=400)
@within(300)
async def test_tasks_are_cancelled(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    in_time = 0
    left = times
    async with open_arena(tmp_path, row, rng, ack_wait=30) as arena:
        workers = await arena.add_workers(3, max_in_flight=IN_FLIGHT // 4)

        async def one_after_the_other() -> None:
            nonlocal in_time, left
            while left > 0:
                left -= 1
                in_time += await race(arena)

        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(one_after_the_other)
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled
        for worker in workers:
            assert not worker.running, f"{worker.running} are cancelled and run on"
    assert 0 < in_time < times
    assert row.doubled == 0


@pytest.mark.fault("task cancelled from afar, its worker killed", full=40, short=4)
@within(600)
async def test_workers_are_killed_while_tasks_are_cancelled(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    stopping = trio.Event()
    async with open_arena(tmp_path, row, rng) as arena:
        await arena.add_workers(3)

        async def one_after_the_other() -> None:
            while not stopping.is_set():
                future = await arena.start(rng.uniform(0, 0.2))
                await trio.sleep(rng.uniform(0, 0.1))
                await future.cancel()
                await arena.wait(future)

        async with arena.load(10), trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one_after_the_other)
            for _ in range(times):
                victim = arena.workers.pop(rng.randrange(3))
                await victim.wait_running()
                await trio.sleep(rng.uniform(0, 0.2))
                await victim.kill()
                await arena.add_worker()
            stopping.set()
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled
