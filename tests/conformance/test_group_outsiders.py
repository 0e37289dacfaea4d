"""Groups whose tasks others call for, hold, or cancel, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from staff import Staff
from swarm import Swarm, until, within

from trio_swarmtask import (
    Message,
    Result,
    Status,
    TaskState,
    TaskTimeoutError,
    _group,
)
from trio_swarmtask._envelope import PAST_DEADLINE

if TYPE_CHECKING:
    from trio_swarmtask._broker import NewTask

SLOW = Message(id="mine", inputs={"do": "wait", "clean_up": "0.5"})
# What a worker stores whose clock is a little fast.
CUT_OFF = Result(id="mine", status=Status.TIMEOUT, metadata={PAST_DEADLINE: "theirs"})


@pytest.mark.parametrize("call", ["start", "run"])
@pytest.mark.parametrize("own", [False, True])
@within(20)
async def test_call_from_outside_the_block_that_is_cancelled(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, call: str, own: bool
) -> None:
    """It waits for the clean-up of its handler, and so does the block."""
    staff = Staff()
    stored = trio.Event()
    message = Message(inputs=SLOW.inputs) if own else SLOW
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        outbox = dispatcher._outbox
        store = outbox.store

        async def store_slowly(task: NewTask, *, tried: bool = False) -> bool:
            new = await store(task, tried=tried)
            if not tried:
                stored.set()
                await trio.sleep_forever()
            return new

        if call == "start":  # or it would be over before it is cancelled
            monkeypatch.setattr(outbox, "store", store_slowly)
        scope = trio.CancelScope()

        async def call_it() -> None:
            with scope:
                await getattr(group, call)("coder", message)

        async with trio.open_nursery() as nursery:
            async with dispatcher.open_group() as group:
                nursery.start_soon(call_it)
                await until(lambda: staff.running)
                (child,) = group._children.values()
                scope.cancel()
            assert (staff.running, staff.clean_ups) == (0, 1)
            assert child.future.state == TaskState.STOPPED
        assert group.statistics().cancelled == 1


@within(20)
async def test_run_from_outside_that_is_cut_off_and_has_more_time(swarm: Swarm) -> None:
    """The block is not left before that is decided: it is a failure like any other."""
    async with swarm.dispatcher() as dispatcher, trio.open_nursery() as nursery:

        async def run() -> None:
            with trio.move_on_after(3) as scope:
                nursery.start_soon(extend, scope)
                assert (await group.run("coder", SLOW)).past_deadline
            assert not scope.cancelled_caught

        async def extend(scope: trio.CancelScope) -> None:
            await until(lambda: group.statistics().cancelled)
            scope.deadline += 10

        with pytest.RaisesGroup(TaskTimeoutError):
            async with dispatcher.open_group() as group:
                nursery.start_soon(run)
                await until(lambda: "mine" in dispatcher._futures.waiting)
                await swarm.store_result("mine", CUT_OFF.encode())
        assert group.statistics().failed == 1


@within(20)
async def test_map_that_was_left_in_an_outage_keeps_nobody_from_hearing(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told nothing more, and who came after it is."""

    async def hang(*_: object) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(_group, "_TELLING", 0.1)
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", SLOW)
        with trio.move_on_after(4) as scope, monkeypatch.context() as patch:
            patch.setattr(dispatcher._outbox, "store_result", hang)
            async with dispatcher.map("coder", [SLOW], grace=0.1):
                await until(lambda: len(future._watchers) == 2)
        assert future._watchers == ()
        with trio.CancelScope(deadline=scope.deadline) as scope:
            async with dispatcher.open_group() as group:
                assert await group.start("coder", SLOW) is future
                await swarm.store_result("mine", CUT_OFF.encode())
        assert scope.cancelled_caught
        assert future.result.past_deadline
    assert caplog.records == []


@within(20)
async def test_child_of_several_groups_and_a_map(swarm: Swarm) -> None:
    """Each hears of it, also where another one does not get over it."""
    heard: list[str] = []

    def stumble(_: object) -> None:
        heard.append("one that stumbles")
        raise RuntimeError("over its own feet")

    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", SLOW)
        future._watch(stumble)
        async with (
            dispatcher.map("coder", [SLOW]) as results,
            dispatcher.open_group() as one,
            dispatcher.open_group() as two,
        ):
            for group in (one, two):
                assert await group.start("coder", SLOW) is future
            await until(lambda: len(future._watchers) == 5)
            done = Result(id="mine", status=Status.SUCCESS)
            await swarm.store_result("mine", done.encode())
            assert await anext(results) == done
        assert one.statistics().succeeded == two.statistics().succeeded == 1
        assert heard == ["one that stumbles"]
