"""Tasks for later, over several processes: late, started twice, or moved while they fire."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena
from tests._helpers.faults.ledger import SLACK, look, read_runs
from tests._helpers.plain_nats import open_plain_client
from tests._helpers.proxy import Proxy, open_proxy
from tests._helpers.slow_link import open_link
from trio_swarmtask import Dispatcher, Future, Message, NATSConfig, open_dispatcher

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row

SIZE = 20


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def come_late(arena: Arena, proxy: Proxy, dispatcher: Dispatcher) -> dict[str, float]:
    """The server is down as tasks of a group become due, and whoever started them is cut off.

    Returns:
      The deadline of each, by the wall clock.
    """
    deadline = time.time() + 5
    futures: list[Future] = []
    with trio.move_on_after(5):
        async with dispatcher.open_group(grace=0) as group:
            for _ in range(SIZE):
                message, due = Message(inputs={"seconds": "60"}), in_seconds(1.5)
                futures.append(await group.start("work", message, not_before=due))
            proxy.cut(for_good=True)
            await arena.server.kill()
            await trio.sleep(2)  # from before they are due to after it
            await arena.server.start()
            await trio.sleep_forever()
    return {future.id: deadline for future in futures}


@pytest.mark.fault("server is down as tasks under a deadline become due", full=20, short=1)
@pytest.mark.needs_schedules
@within(900)
async def test_deadline_of_late_tasks(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    """Recovery: from the deadline until the handler was cut off, by the worker alone."""
    async with open_arena(tmp_path, row, rng) as arena:
        await arena.add_workers(2, max_in_flight=SIZE)
        for _ in range(times):
            async with open_proxy(arena.server.port) as proxy:
                async with open_dispatcher(NATSConfig(proxy.url)) as dispatcher:
                    deadlines = await come_late(arena, proxy, dispatcher)
                    proxy.mend()
                for task_id, deadline in deadlines.items():
                    result = await (await arena.dispatcher.attach(task_id)).wait()
                    assert result.past_deadline or result.cancelled_by, result
                    row.tasks += 1
                    for run in read_runs(tmp_path).get(task_id, []):
                        assert run.ended is not None
                        assert run.began < deadline
                        row.recoveries.append(run.ended - deadline)
        assert len(row.recoveries) > SIZE * times / 2  # or hardly any was late in its queue
        assert max(row.recoveries) < 2 * SLACK


async def shorten_window(port: int, seconds: float) -> None:
    """In which the server takes a second publish of one ID for the first."""
    async with open_plain_client(port) as client:
        config = (await client.api("STREAM.INFO.TASKS"))["config"]
        config["duplicate_window"] = int(seconds * 1e9)
        await client.api("STREAM.UPDATE.TASKS", **config)


@pytest.mark.fault("ID that is not due is started once more", full=1000, short=40)
@pytest.mark.needs_schedules
@within(600)
async def test_id_is_started_again_before_it_is_due(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    """Later than the server remembers the first: now, elsewhere, for the same time, for later."""
    ways = ("now", "other", "same", "later")
    async with (
        open_arena(tmp_path, row, rng, ack_wait=30) as arena,
        open_dispatcher(arena.url) as second,
    ):
        await arena.add_workers(2)
        await arena.add_worker(capability="other")
        await shorten_window(arena.server.port, 0.5)
        due = in_seconds(4 + times / 20)
        futures: list[Future] = []
        limit = trio.CapacityLimiter(20)

        async def start_again(number: int) -> None:
            way = ways[number % 4]
            async with limit:
                message = Message(id=f"{way}-{number}")
                capability = "other" if way == "other" else "work"
                not_before = due + timedelta(seconds=1) if way == "later" else due
                if way == "now":
                    futures.append(await second.start(capability, message))
                else:
                    future = await second.start(capability, message, not_before=not_before)
                    futures.append(future)

        for number in range(times):
            message = Message(id=f"{ways[number % 4]}-{number}")
            futures.append(await arena.dispatcher.start("work", message, not_before=due))
        await trio.sleep(1)  # more than the window
        async with trio.open_nursery() as nursery:
            for number in range(times):
                nursery.start_soon(start_again, number)
        assert datetime.now(UTC) < due, "the second starts took too long to tell anything"
        row.tasks = times
        for future in futures:
            await future.wait()
        await trio.sleep(max(0, (due - datetime.now(UTC)).total_seconds()) + 2)
        runs = read_runs(tmp_path)
        stored = await look(arena.server.port)
        row.doubled = sum(len(found) > 1 for found in runs.values())
        row.lost = sum(not stored.results.get(task) for task in {one.id for one in futures})
        assert Counter(len(found) for found in runs.values()) == {1: times}
        assert stored.tasks_left == row.lost == 0
        assert min(found[0].began for found in runs.values()) > due.timestamp() - SLACK


EVERY_SECOND = "* * * * * *"
MOMENT = 0.5  # seconds: two firings that are as close are one that was doubled


@pytest.mark.fault("schedule moves to another capability while it fires", full=60, short=6)
@pytest.mark.needs_schedules
@within(600)
async def test_schedule_moves(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """Two programs with two capabilities under one name, one of them on a link of 50 ms."""
    async with (
        open_arena(tmp_path, row, rng, ack_wait=30) as arena,
        open_link(arena.server.port, latency=0.05) as link,
        open_dispatcher(link.url) as far,
    ):
        await arena.add_worker()
        await arena.add_worker(capability="other")
        for number in range(times):
            capability, dispatcher = ("work", far) if number % 2 else ("other", arena.dispatcher)
            await dispatcher.schedule("tick", capability, Message(), cron=EVERY_SECOND)
            await trio.sleep(rng.uniform(0.7, 1.7))
            [plan] = await far.schedules()
            assert plan.capability == capability
        # Both at once: whoever is second finds the other's, and one is left.
        async with trio.open_nursery() as nursery:
            for capability, dispatcher in (("work", far), ("other", arena.dispatcher)):
                nursery.start_soon(schedule, dispatcher, capability)
        assert len(await far.schedules()) == 1
        assert await far.unschedule("tick")
        stored = await look(arena.server.port)
        runs = read_runs(tmp_path)
        row.tasks = len(runs)
        row.doubled = sum(len(found) > 1 for found in runs.values())
        row.lost = len(runs.keys() - stored.results.keys())
        assert row.tasks > times / 2
        assert row.doubled == row.lost == stored.tasks_left == 0
        began = sorted(int(task_id.rpartition("-")[2]) / 1000 for task_id in runs)
        gaps = [after - before for before, after in itertools.pairwise(began)]
        assert min(gaps, default=math.inf) > MOMENT, "two firings of one second"


async def schedule(dispatcher: Dispatcher, capability: str) -> None:
    await dispatcher.schedule("tick", capability, Message(), cron=EVERY_SECOND)
