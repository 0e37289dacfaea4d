"""A map is a group: what becomes of its tasks, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import WAIT, Staff
from trio_swarmtask import (
    Message,
    Result,
    Status,
    TaskState,
)
from trio_swarmtask._dispatcher._map import MapResults

if TYPE_CHECKING:
    import pytest

    from trio_swarmtask._abc import NewTask


@within(20)
async def test_map_in_a_handler_makes_a_tree(swarm: Swarm) -> None:
    staff = Staff()
    parent = Message(id="top", correlation_id="c")
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.map("coder", [Message()], parent=parent) as results:
            assert [result.correlation_id async for result in results] == ["c"]
    (message,) = staff.messages
    assert (message.parent, message.root, message.correlation_id) == ("top", "top", "c")


@within(20)
async def test_grace_of_a_map(swarm: Swarm) -> None:
    staff = Staff()
    slow = Message(inputs={"do": "wait", "clean_up": "3"})
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.map("coder", [slow], grace=0.5):
            await until(lambda: staff.running)
        assert staff.clean_ups == 0
        assert dispatcher.statistics().outstanding == 0


@within(15)
async def test_task_that_is_confirmed_late(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler runs already, somebody is about to cancel it, and the block is left meanwhile."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        outbox = dispatcher._core.outbox
        store = outbox.store
        tried_again = trio.Event()

        async def store_slowly(task: NewTask, *, tried: bool = False) -> bool:
            stored = await store(task, tried=tried)
            if not tried:
                await trio.sleep_forever()
            tried_again.set()
            await trio.testing.wait_all_tasks_blocked()
            return stored

        monkeypatch.setattr(outbox, "store", store_slowly)
        late = [Message(id="mine", inputs=WAIT.inputs)]
        async with trio.open_nursery() as nursery, dispatcher.map("coder", late) as results:
            await until(lambda: staff.running)
            assert isinstance(results, MapResults)
            tasks = results._tasks
            ((future, child),) = tasks.all.items()
            nursery.start_soon(tasks._stop, child)  # noqa: ASYNC111 - it ends after the block
            await tried_again.wait()
        assert future.state == TaskState.STOPPED
        assert staff.running == 0


@within(20)
async def test_ids_of_the_callers_own(swarm: Swarm) -> None:
    """One ID is one task, also twice in one map; a stored result is found."""
    stored = Result(id="done", status=Status.SUCCESS, outputs={"number": "9"})
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await swarm.store_result("done", stored.encode())
        ids = ["one", "done", "one", "two"]
        messages = [Message(id=each, inputs={"number": each}) for each in ids]
        async with dispatcher.map("coder", messages, ordered=True) as results:
            await until(lambda: dispatcher.statistics().started == 3)
            await worker.handle("coder", echo)
            outputs = [result.outputs["number"] async for result in results]
        assert outputs == ["one", "9", "one", "two"]
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_deadline_of_the_block_is_no_result(swarm: Swarm) -> None:
    """Though the worker hears of it first, it is the scope here that ends the reading."""
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", Staff())
        with trio.move_on_after(0.5) as scope:
            async with dispatcher.map("coder", [WAIT]) as results:
                await anext(results)
        assert scope.cancelled_caught
        with trio.move_on_after(0.5) as scope:
            async with dispatcher.map("coder", [WAIT]) as results:
                scope.deadline += 10  # it was given more time
                assert (await anext(results)).past_deadline


@within(20)
async def test_child_that_somebody_else_cancels_is_a_result(swarm: Swarm) -> None:
    staff = Staff()
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.dispatcher(name="rival") as rival,
        swarm.worker() as worker,
        dispatcher.map("coder", [WAIT]) as results,
    ):
        await worker.handle("coder", staff)
        await until(lambda: staff.messages)
        await (await rival.attach(staff.messages[0].id)).cancel()
        assert (await anext(results)).cancelled_by == "rival"
