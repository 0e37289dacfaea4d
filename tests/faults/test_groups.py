"""Groups of tasks over several worker processes: one of them fails, or workers die."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena
from trio_swarmtask import Future, Message, TaskFailedError, TaskGroup, TaskState

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row

SIZE = 200


async def start(arena: Arena, group: TaskGroup, **inputs: str) -> Future:
    future = await group.start("work", Message(inputs=inputs))
    arena.ledger.sent.add(future.id)
    return future


async def wait_all_running(arena: Arena, count: int) -> None:
    while sum(len(worker.running) for worker in arena.workers) < count:  # noqa: ASYNC110 - files
        await trio.sleep(0.02)


@pytest.mark.fault("group of 200 on three workers: one task fails", full=20, short=2)
@within(300)
async def test_one_of_a_group_fails(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    """Then nothing of it runs or waits anywhere. Recovery: until the block was left."""
    async with open_arena(tmp_path, row, rng, ack_wait=30) as arena:
        await arena.add_workers(3, max_in_flight=SIZE)
        for _ in range(times):
            futures: list[Future] = []
            with pytest.RaisesGroup(TaskFailedError):
                async with arena.dispatcher.open_group() as group:
                    futures += [await start(arena, group, seconds="60") for _ in range(SIZE - 2)]
                    futures.append(await group.start("nobody", Message()))
                    await wait_all_running(arena, SIZE - 2)
                    failed_at = time.time()
                    futures.append(await start(arena, group, fails="no luck"))
            row.recoveries.append(time.time() - failed_at)
            running = [task for worker in arena.workers for task in worker.running]
            assert not running, f"{len(running)} run on, {running[:5]} among them"
            states = [future.state for future in futures]
            assert (states.count(TaskState.STOPPED), states.count(TaskState.ENDED)) == (SIZE - 2, 1)
            assert futures[-2].state == TaskState.UNCONFIRMED  # nobody has ever handled it
            arena.ledger.leftover.add(futures[-2].id)
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled


@pytest.mark.fault("group is cancelled, its workers are killed", full=40, short=4)
@within(600)
async def test_workers_of_groups_are_killed(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    stopping = trio.Event()

    async with open_arena(tmp_path, row, rng) as arena:
        await arena.add_workers(3)

        async def one_group_after_the_other() -> None:
            while not stopping.is_set():
                async with arena.dispatcher.open_group(grace=1) as group:
                    for _ in range(5):
                        await start(arena, group, seconds=f"{rng.uniform(0, 0.3)}")
                    await trio.sleep(rng.uniform(0, 0.2))
                    group.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one_group_after_the_other)
            for _ in range(times):
                victim = arena.workers.pop(rng.randrange(3))
                await victim.wait_running()
                await trio.sleep(rng.uniform(0, 0.2))
                await victim.kill()
                await arena.add_worker()
            stopping.set()
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled


@pytest.mark.fault("group is cancelled behind a backlog", full=100, short=6)
@within(600)
async def test_group_is_cancelled_behind_a_backlog(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    """Of more tasks than its workers have places: what waits has stopped for sure, and at once."""
    async with open_arena(tmp_path, row, rng, ack_wait=30) as arena:
        await arena.add_workers(2, max_in_flight=2)
        for _ in range(times):
            futures: list[Future] = []
            async with arena.dispatcher.open_group(grace=10) as group:
                size = rng.randrange(2, 20)
                futures += [await start(arena, group, seconds="60") for _ in range(size)]
                await trio.sleep(rng.uniform(0, 0.1))
                cancelled_at = trio.current_time()
                group.cancel_scope.cancel()
            row.recoveries.append(trio.current_time() - cancelled_at)
            states = Counter(future.state for future in futures)
            assert states[TaskState.STOPPED] == len(futures), states
        assert max(row.recoveries) < 2, row.recoveries
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled
