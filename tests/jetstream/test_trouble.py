"""What goes wrong on a server that is up: things deleted, connections cut, streams full."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.proxy import open_proxy
from tests._helpers.stream_setup import REPUBLISH, make
from trio_swarmtask import (
    BrokerError,
    Dispatcher,
    Message,
    NATSConfig,
    Status,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import _outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests._helpers.api_client import Raw
    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of the slow sweep alone."""
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)


@asynccontextmanager
async def standing(swarm: NATSSwarm) -> AsyncIterator[tuple[Raw, Dispatcher]]:
    """A dispatcher and a worker of "coder" that have done a task."""
    async with swarm.raw() as raw, swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
        await swarm.wait_until_empty()
        yield raw, dispatcher


@within(30)
async def test_durable_is_deleted_while_in_use(nats_swarm: NATSSwarm) -> None:
    async with standing(nats_swarm) as (raw, dispatcher):
        for _ in range(2):
            await raw.api("CONSUMER.DELETE.TASKS.work-coder")
            for _ in range(3):
                assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        info = await raw.api("CONSUMER.INFO.TASKS.work-coder")
        assert info["config"]["max_deliver"] == -1


@pytest.mark.parametrize("stream", ["TASKS", "TASK_RESULTS", "TASK_DEAD"])
@within(30)
async def test_stream_is_deleted_while_in_use(nats_swarm: NATSSwarm, stream: str) -> None:
    async with standing(nats_swarm) as (raw, dispatcher):
        await raw.api(f"STREAM.DELETE.{stream}")
        for task_id in ("", "mine", ""):
            result = await dispatcher.run("coder", Message(id=task_id))
            assert result.status == Status.SUCCESS
        async with nats_swarm.outbox() as outbox:
            await outbox.store(NewTask("coder", "bad", b"not JSON"))
        assert (await dispatcher.run("coder", Message(id="bad"))).status == Status.FAILED
        assert list(await nats_swarm.dead_letters()) == ["bad"]


@within(30)
async def test_cut_between_a_task_and_its_acknowledgement(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    runs: Counter[str] = Counter()

    async def count(message: Message) -> None:
        runs[message.id] += 1

    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        for task_id in ("", "mine"):
            proxy.cut_at_answer(b'{"stream":"TASKS"')
            future = await dispatcher.start("coder", Message(id=task_id))
            assert await nats_swarm.count_tasks() == 1
            async with nats_swarm.worker() as worker:
                await worker.handle("coder", count)
                await future.wait()
                await nats_swarm.wait_until_empty()
        assert proxy.cuts == 2
    assert set(runs.values()) == {1}
    assert len(runs) == 2


@within(30)
async def test_cut_and_the_task_ends_before_it_is_repeated(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """The dispatcher comes back when the result is there already: nothing runs again."""
    runs: Counter[str] = Counter()

    async def count(message: Message) -> None:
        runs[message.id] += 1

    async def start() -> None:
        result = await dispatcher.run("coder", Message())
        assert result.status == Status.SUCCESS

    async with (
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await dispatcher.start("other", Message())  # so that the stream is known
        proxy.cut_at_answer(b'{"stream":"TASKS"')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await until(lambda: proxy.cuts > 0)
            proxy.cut(for_good=True)
            await worker.handle("coder", count)
            await until(lambda: worker.statistics().succeeded == 1)
            proxy.mend()
    assert list(runs.values()) == [1]


@within(30)
async def test_cut_between_a_result_and_its_acknowledgement(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    runs: Counter[str] = Counter()

    async def count(message: Message) -> int:
        runs[message.id] += 1
        return runs[message.id]

    async with open_proxy(server.port) as proxy, nats_swarm.dispatcher() as dispatcher:
        async with open_worker(proxy.url) as worker, nats_swarm.raw() as raw:
            await worker.handle("coder", count)
            proxy.cut_at_answer(b'{"stream":"TASK_RESULTS"')
            assert (await dispatcher.run("coder", Message())).outputs == 1
            await nats_swarm.wait_until_empty()
            info = await raw.api("STREAM.INFO.TASK_RESULTS")
            assert info["state"]["messages"] == 1
            assert (await dispatcher.run("coder", Message())).outputs == 1
            # The worker knows its own result again, and does not take it for another's.
            await until(lambda: worker.statistics().succeeded == 2)
            assert worker.statistics().superseded == 0
        assert proxy.cuts == 1
    assert list(runs.values()) == [1, 1]


@within(30)
async def test_full_stream_of_tasks(nats_swarm: NATSSwarm) -> None:
    """`start` returns when there is room, and not before."""
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await make(raw, "TASKS", "work.>", retention="workqueue", discard="new", max_msgs=2)
        futures = [await dispatcher.start("coder", Message()) for _ in range(2)]
        with trio.move_on_after(0.5) as scope:
            await dispatcher.start("coder", Message())
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                futures.append(await dispatcher.start("coder", Message()))

            nursery.start_soon(start)
            async with nats_swarm.worker() as worker:
                await worker.handle("coder", echo)
                await until(lambda: len(futures) == 3)
                for future in futures:
                    await future.wait()


@within(30)
async def test_full_stream_of_results(nats_swarm: NATSSwarm) -> None:
    """The task is not acked, and its handler does not run again; it ends once there is room."""
    runs: Counter[str] = Counter()

    async def count(message: Message) -> None:
        runs[message.id] += 1

    async with nats_swarm.raw() as raw:
        limits = {"max_msgs": 1, "discard": "new", "republish": REPUBLISH}
        await make(raw, "ANSWERS", "done.>", **limits)
        await raw.store("done.filler", b"")
        nats_swarm.configure(ack_wait=1)
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", count)
            future = await dispatcher.start("coder", Message())
            with trio.move_on_after(1.5) as scope:  # longer than the lease
                await future.wait()
            assert scope.cancelled_caught
            assert await nats_swarm.count_tasks() == 1
            limits["max_msgs"] = 9
            await raw.api("STREAM.UPDATE.ANSWERS", name="ANSWERS", subjects=["done.>"], **limits)
            assert (await future.wait()).status == Status.SUCCESS
            await nats_swarm.wait_until_empty()
    assert runs == {future.id: 1}


@within(60)
async def test_network_that_drops_packets(server: Server, nats_swarm: NATSSwarm) -> None:
    """A worker that is cut off for longer than its lease lets the task go; another does it."""
    running = trio.Event()
    ended: list[str] = []

    async def stick(message: Message) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(message.id)

    nats_swarm.configure(ack_wait=1)
    async with (
        open_proxy(server.port) as proxy,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker(name="b") as other,
        open_worker(NATSConfig(proxy.url, ack_wait=1), name="a") as worker,
    ):
        await other.handle("first", echo)  # makes the streams
        await worker.handle("coder", stick)
        future = await dispatcher.start("coder", Message())
        await running.wait()
        proxy.freeze()
        await other.handle("coder", echo)
        assert (await future.wait()).agent == "b"
        await until(lambda: worker.statistics().leases_lost == 1)
        assert ended == [future.id]
        proxy.thaw()


@within(30)
async def test_dead_letters_of_a_stream_that_was_made_anew(nats_swarm: NATSSwarm) -> None:
    """Its tasks are numbered from 1 again: what was kept before is no reason to keep no more."""
    async with standing(nats_swarm) as (raw, dispatcher):
        for task_id in ("bad-1", "bad-2"):
            await raw.api("STREAM.DELETE.TASKS")
            async with nats_swarm.outbox() as outbox:
                await outbox.store(NewTask("coder", task_id, b"not JSON"))
            assert (await dispatcher.run("coder", Message(id=task_id))).status == Status.FAILED
        assert set(await nats_swarm.dead_letters()) == {"bad-1", "bad-2"}


@pytest.mark.parametrize("stream", ["TASKS", "TASK_RESULTS"])
@within(30)
async def test_stream_that_is_not_ours_is_deleted_while_in_use(
    nats_swarm: NATSSwarm, stream: str
) -> None:
    """It is not made again; everybody who needs it hears that it is missing."""
    async with standing(nats_swarm):
        pass  # makes what the others find
    nats_swarm.configure(manage_streams=False)
    needed = {"TASKS": "work.coder.*", "TASK_RESULTS": r"done.\*"}[stream]
    missing = f"has no stream that holds {needed}, and manage_streams is False"
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        with pytest.raises(BrokerError, match=missing):
            async with nats_swarm.worker() as worker:
                await worker.handle("coder", echo)
                await dispatcher.run("coder", Message())
                await raw.api(f"STREAM.DELETE.{stream}")
                with pytest.raises(BrokerError, match=missing):
                    await dispatcher.run("coder", Message(id="mine"))
                if stream == "TASK_RESULTS":
                    await dispatcher.start("coder", Message())  # a result to store
                await trio.sleep_forever()
