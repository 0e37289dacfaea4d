"""Connections that are cut at the worst moment, or freeze, or are gone for a while."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena
from tests._helpers.plain_nats import PlainClient, open_plain_client
from tests._helpers.proxy import Proxy, open_proxy
from trio_swarmtask import Dispatcher, Future, NATSConfig, open_dispatcher
from trio_swarmtask._jetstream import _outbox

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests._helpers.faults.table import Row

# Connections that have their faults at the same time.
ABREAST = 5

NOTICED = 3 * 5 + 2  # three pings, and a bit


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be found by the slow look at all that is outstanding alone."""
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)


@asynccontextmanager
async def dispatcher_by_proxy(arena: Arena) -> AsyncIterator[tuple[Proxy, Dispatcher]]:
    async with (
        open_proxy(arena.server.port) as proxy,
        open_dispatcher(NATSConfig(proxy.url)) as dispatcher,
    ):
        yield proxy, dispatcher


@pytest.mark.fault("connection cut between a task and its PubAck", full=500, short=25)
@within(600)
async def test_cut_before_the_tasks_acknowledgement(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    async def run_and_cut() -> None:
        async with dispatcher_by_proxy(arena) as (proxy, dispatcher):
            for _ in range(times // ABREAST):
                proxy.cut_at_answer(b'"stream":"TASKS"')
                before = trio.current_time()
                await arena.run(0, dispatcher)
                row.recoveries.append(trio.current_time() - before)
            assert proxy.cuts == times // ABREAST

    async with open_arena(tmp_path, row, rng) as arena:
        await arena.add_worker()
        async with trio.open_nursery() as nursery:
            for _ in range(ABREAST):
                nursery.start_soon(run_and_cut)
        await arena.check()
    assert row.doubled == 0


@pytest.mark.fault("connection cut between a result and its PubAck", full=500, short=25)
@within(600)
async def test_cut_before_the_results_acknowledgement(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    """In a stream that would keep several results of a task, if they were sent."""

    async def run_and_cut(capability: str) -> None:
        async with (
            open_proxy(arena.server.port) as proxy,
            open_plain_client(arena.server.port) as client,
        ):
            await arena.add_worker(url=proxy.url, capability=capability)
            for _ in range(times // ABREAST):
                proxy.cut_at_answer(b'"stream":"TASK_RESULTS"')
                await arena.run(capability=capability)
                before = trio.current_time()
                while await unsettled(client, capability):  # noqa: ASYNC110 - no event
                    await trio.sleep(0.02)
                row.recoveries.append(trio.current_time() - before)
            assert proxy.cuts == times // ABREAST

    async with open_arena(tmp_path, row, rng, ack_wait=5) as arena:
        async with open_plain_client(arena.server.port) as client:
            config = (await client.api("STREAM.INFO.TASK_RESULTS"))["config"]
            several = {"max_msgs_per_subject": -1, "discard_new_per_subject": False}
            await client.api("STREAM.UPDATE.TASK_RESULTS", **{**config, **several})
        async with trio.open_nursery() as nursery:
            for number in range(ABREAST):
                nursery.start_soon(run_and_cut, f"work-{number}")
        await arena.check()
    assert row.doubled == 0


@pytest.mark.fault("network: a black hole for 30 s", full=10, short=2)
@within(300)
async def test_black_hole(
    tmp_path: Path, row: Row, rng: random.Random, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It accepts, and forwards nothing: for a dispatcher and a worker, each on its own."""

    async def fall_in() -> None:
        async with dispatcher_by_proxy(arena) as (proxy, dispatcher):
            worker = await arena.add_worker(url=proxy.url)
            async with arena.load(in_flight=5, dispatcher=dispatcher):
                await trio.sleep(rng.uniform(0, 1))
                proxy.freeze()
                frozen_at = trio.current_time()
                noticed = 0.0
                while trio.current_time() < frozen_at + 30:
                    before = trio.current_time()
                    with trio.move_on_after(0.5):
                        await arena.try_to_run(dispatcher)
                    assert trio.current_time() - before < 2, "a deadline did not hold"
                    if not noticed and told(proxy.url) and told(proxy.url, worker.log):
                        noticed = trio.current_time() - frozen_at
                assert 0 < noticed < NOTICED
                proxy.thaw()
                before = trio.current_time()
                await arena.run(0, dispatcher)
                row.recoveries.append(trio.current_time() - before)

    def told(url: str, log: str | None = None) -> bool:
        return f"lost the connection to {url}" in (caplog.text if log is None else log)

    caplog.set_level(logging.WARNING)
    async with open_arena(tmp_path, row, rng, ack_wait=5) as arena:
        await arena.add_worker()
        for first in range(0, times, ABREAST):
            async with trio.open_nursery() as nursery:
                for _ in range(min(ABREAST, times - first)):
                    nursery.start_soon(fall_in)
        await arena.check(leases_may_lapse=True)


@pytest.mark.fault("dispatcher: connection gone while results arrive", full=100, short=10)
@within(300)
async def test_dispatcher_is_away(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """What was stored meanwhile is looked up once the connection is back."""

    async def go_away_and_come_back() -> None:
        async with dispatcher_by_proxy(arena) as (proxy, dispatcher):
            for _ in range(times // ABREAST):
                futures = [await arena.start(rng.uniform(0, 0.4), dispatcher) for _ in range(10)]
                async with trio.open_nursery() as nursery:
                    for future in futures:
                        nursery.start_soon(arena.wait, future)
                    await trio.sleep(rng.uniform(0, 0.3))
                    proxy.cut(for_good=True)
                    async with open_plain_client(arena.server.port) as client:
                        while not await all_stored(client, futures):  # noqa: ASYNC110 - no event
                            await trio.sleep(0.02)
                    proxy.mend()
                    before = trio.current_time()
                row.recoveries.append(trio.current_time() - before)

    async with open_arena(tmp_path, row, rng) as arena:
        await arena.add_worker(max_in_flight=20 * ABREAST)
        async with trio.open_nursery() as nursery:
            for _ in range(ABREAST):
                nursery.start_soon(go_away_and_come_back)
        await arena.check()
    assert row.doubled == 0
    assert max(row.recoveries) < 5


async def all_stored(client: PlainClient, futures: list[Future]) -> bool:
    names = [f"done.{future.id}" for future in futures]
    info = await client.api("STREAM.INFO.TASK_RESULTS", subjects_filter="done.>")
    return set(names) <= set(info["state"].get("subjects") or {})


async def unsettled(client: PlainClient, capability: str) -> int:
    """How many tasks of a capability were not acked."""
    info = await client.api(f"CONSUMER.INFO.TASKS.work-{capability}")
    return info["num_pending"] + info["num_ack_pending"]
