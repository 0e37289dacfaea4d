"""Callers that give up by the thousand, and clocks that are set back."""

from __future__ import annotations

import gc
import json
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import echo, within
from tests._helpers.faults.deployment import Arena, open_arena
from trio_swarmtask import Message, Status, open_worker
from trio_swarmtask._dispatcher import _core as _starter
from trio_swarmtask._worker import _handler

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row

ROUNDS = 3


@pytest.mark.fault("cancel storm: `run` cancelled at random moments", full=10_000, short=1_500)
@within(300)
async def test_cancel_storm(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """Three rounds. Nothing is left of them in the dispatcher, and it works on."""

    async def give_up(task_id: str) -> None:
        with trio.move_on_after(rng.uniform(0, 1)):
            await arena.dispatcher.run("work", Message(id=task_id))

    async with open_arena(tmp_path, row, rng, ack_wait=5) as arena:
        await arena.add_worker(max_in_flight=100)
        starter = arena.dispatcher._starter
        made: set[str] = set()
        make_id = starter.make_id

        def make_noted_id() -> str:
            made.add(task_id := make_id())
            return task_id

        starter.make_id = make_noted_id  # type: ignore[method-assign]  # IDs can't be guessed
        before: dict[str, int] = {}
        objects = 0
        for turn in range(ROUNDS):
            async with trio.open_nursery() as nursery:
                for number in range(times):
                    own = number % 2
                    nursery.start_soon(give_up, "" if own else f"given-up-{turn}-{number}")
            await arena.run()
            assert arena.dispatcher.statistics().outstanding == 0
            gc.collect()
            left = what_is_held(arena)
            if turn == 0:
                before, objects = left, count_objects()
            assert left == before
            # One object that stayed for each call would be `times` more in each turn.
            grown = count_objects() - objects
            assert grown < times / 2, grown
        arena.ledger.leftover = made | {
            f"given-up-{turn}-{number}" for turn in range(ROUNDS) for number in range(times)
        }
        row.tasks = ROUNDS * times
        await arena.check()
    assert row.doubled == 0


def what_is_held(arena: Arena) -> dict[str, int]:
    outbox = arena.dispatcher._core.outbox
    connection = outbox._connection  # type: ignore[attr-defined]  # it is the NATS one's
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return {
        "tasks": count_tasks(root),
        "subscriptions": len(connection.client._subs),
        "requests": len(outbox._requests._waiting),  # type: ignore[attr-defined]  # it is the NATS one's
        "watched": len(outbox._watched),  # type: ignore[attr-defined]  # it is the NATS one's
    }


def count_objects() -> int:
    """Without the scopes in Trio's heap of deadlines, which it clears a thousand at a time."""
    return sum(type(one) not in (trio.CancelScope, tuple) for one in gc.get_objects())


def count_tasks(task: trio.lowlevel.Task) -> int:
    return 1 + sum(
        count_tasks(child) for nursery in task.child_nurseries for child in nursery.child_tasks
    )


@pytest.mark.fault("clock set back by an hour during a run", full=100, short=20)
@within(60)
async def test_clock_is_set_back(
    tmp_path: Path, row: Row, rng: random.Random, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock is in envelopes alone."""
    offset = timedelta()

    class Clock:
        @staticmethod
        def now(tz: tzinfo) -> datetime:
            return datetime.now(tz) - offset

    async def set_back(message: Message) -> dict[str, str]:
        nonlocal offset
        offset += timedelta(hours=1)
        await trio.sleep(0.01)
        return await echo(message)

    for module in (_starter, _handler):  # of the successes, msgspec needs the true class
        monkeypatch.setattr(module, "datetime", Clock)
    async with open_arena(tmp_path, row, rng) as arena, open_worker(arena.url) as worker:
        await worker.handle("work", set_back)
        for _ in range(times):
            result = await arena.run()
            assert result.status == Status.SUCCESS
            assert 10 <= result.duration < 1000
            assert result.completed_at is not None
            row.tasks += 1
        await worker.handle("stuck", sleep_on)
        began = trio.current_time()
        late = await arena.dispatcher.run("stuck", Message(timeout=1))
        assert late.status == Status.TIMEOUT
        assert 1 <= trio.current_time() - began < 2
        with trio.move_on_after(0.5) as scope:
            await arena.dispatcher.run("stuck", Message())
        assert scope.cancelled_caught
        assert json.loads(late.encode())["duration"] >= 1000
        with pytest.raises(trio.TooSlowError):
            await worker.shutdown(0)


async def sleep_on(message: Message) -> None:
    await trio.sleep_forever()
