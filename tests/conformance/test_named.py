"""IDs of the caller's own: one ID is one task, on both brokers."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from trio_swarmtask import Future, Message, Result, Status


@within(30)
async def test_same_id_runs_once_and_both_get_the_result(swarm: Swarm) -> None:
    runs: Counter[str] = Counter()
    go_on = trio.Event()

    async def count(message: Message) -> int:
        runs[message.id] += 1
        await go_on.wait()
        return runs[message.id]

    async with (
        swarm.dispatcher() as here,
        swarm.dispatcher() as there,
        swarm.worker() as worker,
    ):
        await worker.handle("coder", count)
        await worker.handle("other", count)
        futures = [
            await here.start("coder", Message(id="order-7")),
            await here.start("coder", Message(id="order-7")),
            await there.start("coder", Message(id="order-7")),
            await there.start("other", Message(id="order-7")),  # whatever the capability
        ]
        go_on.set()
        results = [await future.wait() for future in futures]
        results.append(await there.run("coder", Message(id="order-7")))  # it is stored by now
    assert runs == {"order-7": 1}
    assert {(result.id, result.outputs) for result in results} == {("order-7", 1)}


@within(20)
async def test_task_that_is_stored_twice_ends_twice(swarm: Swarm) -> None:
    """Sent again after the broker has forgotten its ID: one result, and nothing is left over."""

    async def handle(message: Message) -> str:
        return "done"

    swarm.configure(ack_wait=1)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message(id="mine"))
        await swarm.store_again("coder", "mine", Message(id="mine").encode())
        await worker.handle("coder", handle)
        assert (await future.wait()).outputs == "done"
        await swarm.wait_until_empty()
        assert worker.statistics().succeeded == 1


@pytest.mark.parametrize("task_id", ["a--b", "-a", "a-", "---", "-", "_", "x" * 128, "0"])
@within(20)
async def test_odd_id(swarm: Swarm, task_id: str) -> None:
    async def name(message: Message) -> str:
        return message.id

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", name)
        result = await dispatcher.run("coder", Message(id=task_id))
    assert (result.id, result.outputs) == (task_id, task_id)


@within(20)
async def test_ids_that_fold_to_one_subject_are_told_apart(swarm: Swarm) -> None:
    release = {"a-b": trio.Event(), "a--b": trio.Event()}
    results: list[str] = []

    async def wait(message: Message) -> str:
        await release[message.id].wait()
        return message.id

    async def collect(future: Future) -> None:
        results.append((await future.wait()).id)

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", wait)
        async with trio.open_nursery() as nursery:
            for task_id in release:
                nursery.start_soon(collect, await dispatcher.start("coder", Message(id=task_id)))
            release["a--b"].set()
            await until(lambda: results)
            release["a-b"].set()
    assert results == ["a--b", "a-b"]


@within(20)
async def test_dispatchers_own_id_again(swarm: Swarm) -> None:
    async def count(message: Message) -> str:
        return message.id

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", count)
        first = await dispatcher.run("coder", Message())
        again = await dispatcher.run("coder", Message(id=first.id))
    assert again == first


@within(20)
async def test_first_result_wins_whoever_stored_it(swarm: Swarm) -> None:
    go_on = trio.Event()
    started = trio.Event()

    async def slow(message: Message) -> str:
        started.set()
        await go_on.wait()
        return "mine"

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", slow)
        future = await dispatcher.start("coder", Message())
        await started.wait()
        theirs = Result(id=future.id, status=Status.SUCCESS, outputs="theirs")
        await swarm.store_result(future.id, theirs.encode())
        assert (await future.wait()).outputs == "theirs"
        go_on.set()
        await swarm.wait_until_empty()
        assert worker.statistics().superseded == 1
        assert (await dispatcher.run("coder", Message(id=future.id))).outputs == "theirs"


@within(20)
async def test_cancelled_start_keeps_nothing(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with trio.CancelScope() as scope:
            scope.cancel()
            await dispatcher.start("coder", Message(id="mine"))
        assert scope.cancelled_caught
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_one_holder_gives_up_the_other_still_gets_it(swarm: Swarm) -> None:
    go_on = trio.Event()

    async def slow(message: Message) -> str:
        await go_on.wait()
        return "done"

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", slow)
        future = await dispatcher.start("coder", Message(id="mine"))
        with trio.move_on_after(0.2):
            await dispatcher.run("coder", Message(id="mine"))
        go_on.set()
        assert (await future.wait()).outputs == "done"
