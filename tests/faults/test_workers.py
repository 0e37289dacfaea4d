"""Worker processes that are killed, ended, stopped, or cut off from the server."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena
from tests._helpers.faults.exits import PLACES
from tests._helpers.plain_nats import open_plain_client
from tests._helpers.proxy import open_proxy
from trio_swarmtask import Status

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests._helpers.faults.processes import WorkerProcess
    from tests._helpers.faults.table import Row

ACK_WAIT = 2.0


@pytest.mark.fault("worker: SIGKILL in the middle of handlers", full=200, short=6)
@within(900)
async def test_workers_are_killed(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    kills: list[tuple[float, set[str]]] = []
    async with open_arena(tmp_path, row, rng, ack_wait=ACK_WAIT) as arena:
        await arena.add_workers(3)
        async with arena.load():
            for _ in range(times):
                victim = arena.workers.pop(rng.randrange(3))
                await victim.wait_running()
                await trio.sleep(rng.uniform(0, 0.2))  # at any moment of what the handlers do
                await victim.kill()
                kills.append((time.time(), victim.running))
                await arena.add_worker()
        await arena.check()
        for killed_at, tasks in kills:
            ended = [arena.ledger.stored_at(task) - killed_at for task in tasks]
            row.recoveries += [max(ended)] if ended else []
    assert row.doubled > 0, "no kill hit a handler"


@pytest.mark.fault("worker: SIGTERM, `shutdown(1)`", full=50, short=4)
@within(600)
async def test_workers_are_ended(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    grace = 1.0
    async with open_arena(tmp_path, row, rng, ack_wait=30) as arena:
        await arena.add_workers(3, grace=grace)
        async with arena.load(longest=2 * grace):  # half of them end in time
            for _ in range(times):
                leaver = arena.workers.pop(rng.randrange(3))
                await leaver.wait_running(3)
                before = trio.current_time()
                leaver.terminate()
                assert await leaver.wait() == 0, leaver.log
                row.recoveries.append(trio.current_time() - before)
                await arena.add_worker(grace=grace)
        await arena.check()
    assert max(row.recoveries) < grace + 2
    for task, runs in arena.ledger.runs.items():
        outcomes = [run.outcome for run in runs]
        assert outcomes == ["cut"] * (len(runs) - 1) + ["ended"], (task, outcomes)
    assert row.doubled > 0, "no handler was cut short"


@pytest.mark.fault("worker: SIGSTOP for longer than `ack_wait`, SIGCONT", full=20, short=3)
@within(300)
async def test_workers_are_stopped(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    async with open_arena(tmp_path, row, rng, ack_wait=ACK_WAIT) as arena:
        for victims in groups(times):
            zombies = await arena.add_workers(victims, max_in_flight=1)
            async with holding(arena, zombies), arena.load():
                for zombie in zombies:
                    zombie.pause()
                await arena.add_worker(max_in_flight=30)
                await trio.sleep(1.5 * ACK_WAIT)
                for zombie in zombies:
                    zombie.resume()
            await retire(arena, zombies)
        await check_zombies(arena)


@pytest.mark.fault("worker: cut off for longer than `ack_wait`", full=20, short=3)
@within(300)
async def test_workers_are_cut_off(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    async with (
        open_arena(tmp_path, row, rng, ack_wait=ACK_WAIT) as arena,
        AsyncExitStack() as stack,
    ):
        for victims in groups(times):
            proxies = [
                await stack.enter_async_context(open_proxy(arena.server.port))
                for _ in range(victims)
            ]
            zombies = [await arena.add_worker(url=proxy.url, max_in_flight=1) for proxy in proxies]
            async with holding(arena, zombies), arena.load():
                for proxy in proxies:
                    if rng.random() < 0.5:
                        proxy.cut(for_good=True)
                    else:
                        proxy.freeze()
                await arena.add_worker(max_in_flight=30)
                await trio.sleep(1.5 * ACK_WAIT)
                for proxy in proxies:
                    proxy.mend()
                    proxy.thaw()
            await retire(arena, zombies)
        await check_zombies(arena)


@pytest.mark.fault("handler: 10 times longer than `ack_wait`", full=20, short=4)
@within(120)
async def test_handlers_are_long(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    ack_wait = 1.0
    async with open_arena(tmp_path, row, rng, ack_wait=ack_wait) as arena:
        await arena.add_workers(2)
        async with arena.load(10), trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(arena.run, 10 * ack_wait)
        await arena.check()
        async with open_plain_client(arena.server.port) as client:
            info = await client.api("CONSUMER.INFO.TASKS.work-work")
    assert info["delivered"]["consumer_seq"] == row.tasks  # each was delivered once
    assert row.doubled == 0


def groups(times: int) -> list[int]:
    """So many at a time: each one is a process."""
    return [min(5, times - done) for done in range(0, times, 5)]


@asynccontextmanager
async def holding(arena: Arena, workers: list[WorkerProcess]) -> AsyncIterator[None]:
    """Each of these workers, which take one task, runs a handler for three times `ack_wait`."""
    async with trio.open_nursery() as nursery:
        for _ in workers:
            nursery.start_soon(arena.run, 3 * ACK_WAIT)
        for worker in workers:
            await worker.wait_running()
        yield


async def retire(arena: Arena, workers: list[WorkerProcess]) -> None:
    """End these workers and all others."""
    for worker in arena.workers:
        worker.terminate()
    for worker in arena.workers:
        assert await worker.wait() == 0, worker.log
    for zombie in workers:
        lost = [line for line in zombie.log.splitlines() if "lost the lease of task" in line]
        assert lost, zombie.log
    arena.workers.clear()


async def check_zombies(arena: Arena) -> None:
    """The first result won; the zombies' handlers were cancelled and their tasks let be."""
    await arena.check(leases_may_lapse=True)
    long = {task: runs for task, runs in arena.ledger.runs.items() if len(runs) > 1}
    for task, runs in long.items():
        assert [run.outcome for run in runs].count("ended") >= 1, (task, runs)
    async with open_plain_client(arena.server.port) as client:
        notes = await client.api("STREAM.INFO.TASK_DEAD", subjects_filter="back.>")
    assert not notes["state"].get("subjects"), "a zombie gave a task back"
    assert arena.row.doubled > 0


@pytest.mark.fault("a handler exits, at each of eleven places", full=20, short=2)
@within(600)
async def test_handlers_exit(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """Each is a failure of its task, tried once; the workers live, and so does all else."""
    async with open_arena(tmp_path, row, rng, ack_wait=ACK_WAIT) as arena:
        workers = await arena.add_workers(3)
        async with arena.load():
            for _ in range(times):
                for place in rng.sample(list(PLACES), len(PLACES)):
                    result = await arena.run(exits=place)
                    assert result.status is Status.FAILED
                    assert result.error
                    if "group" in place:
                        arena.ledger.leftover.add(f"{result.id}-child")
        await arena.check()
        assert not [worker.name for worker in workers if worker.has_ended]
        assert row.doubled == 0
