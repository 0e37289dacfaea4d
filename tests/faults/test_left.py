"""What a group's block has left runs no more, or the block says so: by the workers' own files."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    BrokerError,
    ClosedError,
    Dispatcher,
    Future,
    Message,
    NATSConfig,
    TaskCancelledError,
    TaskGroup,
    TaskState,
    open_dispatcher,
)

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row
    from tests._helpers.proxy import Proxy
    from trio_swarmtask._dispatcher._group import OnFailure

SIZE = 10  # tasks of a group
ROUNDS_AT_ONCE = 4
WAYS = ("aclose", "shutdown", "lost")


def running(arena: Arena, futures: list[Future]) -> set[str]:
    """Those whose handler has begun and not ended."""
    return set.union(*(worker.running for worker in arena.workers)) & {one.id for one in futures}


async def wait_running(arena: Arena, futures: list[Future]) -> None:
    while len(running(arena, futures)) < len(futures):  # noqa: ASYNC110 - files
        await trio.sleep(0.02)


async def start(arena: Arena, group: TaskGroup, count: int = SIZE) -> list[Future]:
    """Tasks that take a minute, and a while to clean up."""
    futures: list[Future] = []
    for _ in range(count):
        inputs = {"seconds": "60", "clean_up": f"{arena.rng.uniform(0, 0.5):.2f}"}
        futures.append(await group.start("work", Message(inputs=inputs)))
        arena.ledger.sent.add(futures[-1].id)
    return futures


async def close(dispatcher: Dispatcher, proxy: Proxy, how: str) -> None:
    if how == "aclose":
        await dispatcher.aclose()
    elif how == "shutdown":
        with suppress(trio.TooSlowError):
            await dispatcher.shutdown(0.2)
    else:
        proxy.cut(for_good=True)


async def close_under_a_group(arena: Arena, how: str, on_failure: OnFailure) -> None:
    """Recovery: until the block was left."""
    futures: list[Future] = []
    left, errors, closed_at = set[str](), 0, 0.0
    try:
        async with (
            open_proxy(arena.server.port) as proxy,
            open_dispatcher(NATSConfig(proxy.url, reconnect_timeout=0.5)) as dispatcher,
            trio.open_nursery() as nursery,
        ):
            try:
                async with dispatcher.open_group(on_failure=on_failure) as group:
                    futures += await start(arena, group)
                    await wait_running(arena, futures)
                    closed_at = trio.current_time()
                    nursery.start_soon(close, dispatcher, proxy, how)
            finally:
                arena.row.recoveries.append(trio.current_time() - closed_at)
                left = running(arena, futures)
    except* (ClosedError, BrokerError):
        errors += 1
    assert errors, f"{how}: the blocks were left without any exception"
    states = {future.id: future.state for future in futures}
    said = (TaskState.UNCONFIRMED, TaskState.OUTSTANDING)
    if how == "lost":  # nobody could tell the workers
        assert all(state in said for state in states.values()), states
        for future in futures:
            await (await arena.dispatcher.attach(future.id)).cancel()
    else:
        assert not left, f"{how}: {left} run on: {states}"
    while running(arena, futures):  # noqa: ASYNC110 - files
        await trio.sleep(0.02)


@pytest.mark.fault("group is open as its dispatcher is closed or lost", full=120, short=6)
@within(900)
async def test_dispatcher_is_closed_under_a_group(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    failures: tuple[OnFailure, ...] = ("cancel", "collect")
    rounds = itertools.product(WAYS, failures)
    todo = list(itertools.islice(itertools.cycle(rounds), times))
    async with open_arena(tmp_path, row, rng, ack_wait=30) as arena:
        await arena.add_workers(3, max_in_flight=SIZE * ROUNDS_AT_ONCE)

        async def one_after_the_other() -> None:
            while todo:
                await close_under_a_group(arena, *todo.pop())

        async with trio.open_nursery() as nursery:
            for _ in range(ROUNDS_AT_ONCE):
                nursery.start_soon(one_after_the_other)
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled
    assert row.doubled == 0


async def cancel_from_elsewhere(arena: Arena, other: Dispatcher, by_group: bool) -> None:
    """Recovery: until the block was left."""
    futures: list[Future] = []
    with pytest.RaisesGroup(TaskCancelledError):
        async with arena.dispatcher.open_group(grace=20) as group:
            futures += await start(arena, group)
            await wait_running(arena, futures)
            victim = arena.rng.choice(futures).id
            cancelled_at = trio.current_time()
            if by_group:
                async with other.open_group(grace=0.01) as others:
                    await others.start("work", Message(id=victim))
                    others.cancel_scope.cancel()
            else:
                await (await other.attach(victim)).cancel()
    arena.row.recoveries.append(trio.current_time() - cancelled_at)
    left = running(arena, futures)
    states = [future.state for future in futures]
    assert not left, f"{left} run on: {states}"
    assert states == [TaskState.STOPPED] * SIZE


@pytest.mark.fault("task of a group is cancelled by another dispatcher", full=200, short=10)
@within(900)
async def test_child_is_cancelled_by_another(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    left = times
    async with (
        open_arena(tmp_path, row, rng, ack_wait=30) as arena,
        open_dispatcher(arena.url) as other,
    ):
        await arena.add_workers(3, max_in_flight=SIZE * ROUNDS_AT_ONCE)

        async def one_after_the_other() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await cancel_from_elsewhere(arena, other, by_group=bool(left % 2))

        async with trio.open_nursery() as nursery:
            for _ in range(ROUNDS_AT_ONCE):
                nursery.start_soon(one_after_the_other)
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled
    assert row.doubled == 0


async def give_up_from_outside(arena: Arena, task_id: str, how: str) -> None:
    """A call into a group by a Trio task outside of its block, cancelled at a random moment.

    Recovery: from then until the block was left.
    """
    inputs = {"seconds": "60", "clean_up": f"{arena.rng.uniform(0, 0.5):.2f}"}
    scope = trio.CancelScope()
    arena.ledger.leftover.add(task_id)

    async def call(group: TaskGroup) -> None:
        with scope:
            await getattr(group, how)("work", Message(id=task_id, inputs=inputs))

    async with trio.open_nursery() as nursery:
        async with arena.dispatcher.open_group(grace=20) as group:
            nursery.start_soon(call, group)  # noqa: ASYNC111 - from outside, which is the point
            await trio.sleep(arena.rng.uniform(0, 0.1))
            gave_up_at = time.time()
            scope.cancel()
            if how == "start":  # one that has returned is the block's to cancel
                group.cancel_scope.cancel()
        arena.row.recoveries.append(time.time() - gave_up_at)
        left = {task_id} & set.union(*(worker.running for worker in arena.workers))
        assert not left, f"{left} runs on, which `{how}` had called for"


@pytest.mark.fault("call into a group from outside its block is cancelled", full=400, short=20)
@within(900)
async def test_call_from_outside_is_cancelled(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    numbers = iter(range(times))
    async with open_arena(tmp_path, row, rng, ack_wait=30) as arena:
        await arena.add_workers(3, max_in_flight=ROUNDS_AT_ONCE)

        async def one_after_the_other() -> None:
            for number in numbers:
                how = "run" if number % 2 else "start"
                await give_up_from_outside(arena, f"outside-{number}", how)

        async with trio.open_nursery() as nursery:
            for _ in range(ROUNDS_AT_ONCE):
                nursery.start_soon(one_after_the_other)
        row.tasks = times
        await arena.check(leases_may_lapse=True)  # a handler ends after its task was cancelled
        runs = arena.ledger.runs
        assert len(runs) > times / 4  # or there was nothing to be left
        assert not [task_id for task_id in runs if runs[task_id][-1].ended is None]
    assert row.doubled == 0
