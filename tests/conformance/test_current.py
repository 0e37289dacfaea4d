"""Inside a handler: which task it is for, on both brokers."""

from __future__ import annotations

import gc
import math

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from trio_swarmtask import (
    CurrentTask,
    MemoryBroker,
    Message,
    current_task,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._worker._job import Job


def test_outside_of_a_handler() -> None:
    with pytest.raises(RuntimeError, match=r"call current_task\(\) in a handler"):
        current_task()


def test_no_public_constructor() -> None:
    with pytest.raises(TypeError, match="CurrentTask has no public constructor"):
        CurrentTask()


@within(10)
async def test_what_a_handler_sees(swarm: Swarm) -> None:
    async def handle(message: Message) -> list[object]:
        task = current_task()
        assert task.message is message
        assert task is current_task()
        assert repr(task) == "<CurrentTask 't-1' of coder>"
        return [task.capability, task.attempt, task.deadline == math.inf]

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        result = await dispatcher.run("coder", Message(id="t-1", attempt=3))
        assert result.outputs == ["coder", 3, True]
        assert result.attempt == 3


@within(10)
async def test_deadline_is_that_of_the_handlers_scope(swarm: Swarm) -> None:
    """By the message, by the worker's default, or by the scope round a group."""

    async def handle(message: Message) -> bool:
        return current_task().deadline == trio.current_effective_deadline() < math.inf

    async with swarm.worker(default_timeout=60) as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        for timeout in (0, 5):
            assert (await dispatcher.run("coder", Message(timeout=timeout))).outputs is True
        with trio.fail_after(5):
            async with dispatcher.open_group() as group:
                assert (await group.run("coder", Message())).outputs is True


@within(10)
async def test_each_handler_has_its_own_and_so_has_what_it_starts(swarm: Swarm) -> None:
    found: dict[str, list[str]] = {}
    together = trio.Event()

    def note(name: str) -> None:
        found[name].append(current_task().message.id)

    async def note_in_a_task(name: str) -> None:
        note(name)

    async def handle(message: Message) -> None:
        found[message.id] = []
        if len(found) == 3:
            together.set()
        await together.wait()
        note(message.id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_in_a_task, message.id)
            nursery.start_soon(note_in_a_task, message.id)

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        async with dispatcher.open_group() as group:
            for name in ("a", "b", "c"):
                await group.start("coder", Message(id=name))
        assert found == {name: [name] * 3 for name in ("a", "b", "c")}


async def test_in_a_thread() -> None:
    """Not on virtual time, which does not wait for threads."""

    def find() -> str:
        return current_task().message.id

    async def handle(message: Message) -> str:
        return await trio.to_thread.run_sync(find)

    broker = MemoryBroker()
    async with open_worker(broker) as worker, open_dispatcher(broker) as dispatcher:
        await worker.handle("coder", handle)
        assert (await dispatcher.run("coder", Message(id="t-1"))).outputs == "t-1"


@within(10)
async def test_attempt_of_a_task_that_comes_again(swarm: Swarm) -> None:
    attempts: list[int] = []
    began = trio.Event()

    async def handle(message: Message) -> None:
        attempts.append(current_task().attempt)
        began.set()
        if len(attempts) == 1:
            await trio.sleep_forever()

    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", handle)
            future = await dispatcher.start("coder", Message())
            await began.wait()
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        async with swarm.worker() as worker:
            await worker.handle("coder", handle)
            assert (await future.wait()).attempt == 2
    assert attempts == [1, 2]


@within(10)
async def test_after_the_handler_has_ended(swarm: Swarm) -> None:
    """It still says what it was; nothing can be done for it."""
    tasks: list[CurrentTask] = []

    async def handle(message: Message) -> None:
        tasks.append(current_task())

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        await dispatcher.run("coder", Message(id="t-1"))
        (task,) = tasks
        assert (task.capability, task.message.id, task.attempt) == ("coder", "t-1", 1)
        assert task.deadline == math.inf
        with pytest.raises(RuntimeError, match="t-1 has ended at this worker, so nobody can start"):
            await task.dispatcher()
        with pytest.raises(RuntimeError, match="t-1 has ended at this worker, so nobody can repor"):
            await task.report(0.5)


@within(10)
async def test_idle_worker_holds_no_task(swarm: Swarm) -> None:
    """Not even by the context in which the last handler ran."""

    async def handle(message: Message) -> None:
        await (await current_task().dispatcher()).run("echo", Message())

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        await worker.handle("echo", echo)
        await dispatcher.run("coder", Message())
        await swarm.wait_until_empty()
        await until(lambda: worker.statistics().in_flight == 0)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert [one for one in gc.get_objects() if isinstance(one, Job)] == []


# A dispatcher for tasks below
