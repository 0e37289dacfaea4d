"""Many workers, many capabilities: who gets which task, on both brokers."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import Dispatcher, Message, Result, Status


async def run_many(dispatcher: Dispatcher, count: int, capability: str = "coder") -> list[Result]:
    results: list[Result] = []

    async def run() -> None:
        results.append(await dispatcher.run(capability, Message()))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(run)
    return results


@within(60)
async def test_three_workers_share_300_tasks_each_runs_once(swarm: Swarm) -> None:
    runs: Counter[str] = Counter()

    async def count(message: Message) -> None:
        runs[message.id] += 1
        await trio.sleep(0.002)

    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker(name="a") as a,
        swarm.worker(name="b") as b,
        swarm.worker(name="c") as c,
    ):
        for worker in (a, b, c):
            await worker.handle("coder", count, max_in_flight=10)
        results = await run_many(dispatcher, 300)
        agents = Counter(result.agent for result in results)
    assert len(runs) == 300
    assert set(runs.values()) == {1}
    assert set(agents) == {"a", "b", "c"}


@within(60)
async def test_busy_worker_holds_nothing_back(swarm: Swarm) -> None:
    stuck = trio.Event()
    go_on = trio.Event()

    async def once_stuck(message: Message) -> None:
        if not stuck.is_set():
            stuck.set()
            await go_on.wait()

    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker(name="a") as a,
        swarm.worker(name="b") as b,
    ):
        await a.handle("coder", once_stuck, max_in_flight=1)
        first = await dispatcher.start("coder", Message())
        await stuck.wait()
        await b.handle("coder", once_stuck, max_in_flight=1)
        results = await run_many(dispatcher, 50)
        assert {result.agent for result in results} == {"b"}
        go_on.set()
        assert (await first.wait()).agent == "a"


@pytest.mark.parametrize("limit", [1, 3])
@within(60)
async def test_no_more_handlers_run_than_max_in_flight(swarm: Swarm, limit: int) -> None:
    running = 0
    most = 0

    async def count(message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.005)
        running -= 1

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", count, max_in_flight=limit)
        await run_many(dispatcher, 40)
    assert most == limit


@pytest.mark.parametrize("capability", ["a", "-", "_", "A-b_9", "x" * 64, "later", "work"])
@within(20)
async def test_unusual_capability(swarm: Swarm, capability: str) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle(capability, echo)
        assert (await dispatcher.run(capability, Message())).status == Status.SUCCESS


@within(60)
async def test_many_capabilities_on_one_worker(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        for number in range(20):
            await worker.handle(f"c{number}", echo)
        for number in range(20):
            message = Message(inputs={"n": str(number)})
            result = await dispatcher.run(f"c{number}", message)
            assert result.outputs == message.inputs
        assert worker.statistics().capabilities == 20
        assert repr(worker).startswith("<Worker ")


@within(20)
async def test_capability_without_a_handler_waits(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        future = await dispatcher.start("nobody", Message())
        await dispatcher.run("coder", Message())
        assert "waiting" in repr(future)
        await worker.handle("nobody", echo)
        await future.wait()
        assert "resolved" in repr(future)


@within(20)
async def test_handle_refuses_what_cannot_be(swarm: Swarm) -> None:
    async with swarm.worker() as worker:
        await worker.handle("coder", echo)
        with pytest.raises(ValueError, match="handles 'coder' already"):
            await worker.handle("coder", echo)
        with pytest.raises(TypeError, match="must be an async function"):
            await worker.handle("other", lambda message: None)  # type: ignore[arg-type, return-value]  # wrong on purpose
        for places in (0, -1):
            with pytest.raises(ValueError, match="max_in_flight must be from 1 up"):
                await worker.handle("other", echo, max_in_flight=places)
        for wrong in (1.5, "3", True, None):
            with pytest.raises(TypeError, match=f"must be a whole number, not {wrong!r}"):
                await worker.handle("other", echo, max_in_flight=wrong)  # type: ignore[arg-type]  # wrong on purpose
        await worker.handle("other", echo)  # none of these was kept
