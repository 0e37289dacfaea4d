"""Groups whose tasks others call for, hold, or cancel, on both brokers."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from tests._helpers.handlers import Staff
from trio_swarmtask import (
    Dispatcher,
    Future,
    Message,
    Result,
    Status,
    TaskCancelledError,
    TaskState,
    TaskTimeoutError,
)
from trio_swarmtask._dispatcher import _group
from trio_swarmtask._dispatcher._future import is_resolved, watch
from trio_swarmtask._envelope import CANCELLED_BY, CAPABILITY, PAST_DEADLINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask._abc import NewTask

    Canceller = Callable[[Swarm, Future], Awaitable[None]]

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
        outbox = dispatcher._core.outbox
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
                (child,) = group._tasks.all.values()
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
                await until(lambda: "mine" in dispatcher._core.futures.waiting)
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
            patch.setattr(dispatcher._core.outbox, "store_result", hang)
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
        watch(future, stumble)
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


async def by_attaching(swarm: Swarm, future: Future) -> None:
    async with swarm.dispatcher(name="rival") as rival:
        await (await rival.attach(future.id)).cancel()


async def by_a_group(swarm: Swarm, future: Future) -> None:
    async with swarm.dispatcher(name="rival") as rival, rival.open_group() as group:
        await group.start("coder", SLOW)
        group.cancel_scope.cancel()


async def by_a_group_that_has_no_time(swarm: Swarm, future: Future) -> None:
    async with swarm.dispatcher(name="rival") as rival, rival.open_group(grace=0) as group:
        await group.start("coder", SLOW)
        group.cancel_scope.cancel()


CANCELLERS = pytest.mark.parametrize(
    "cancel", [by_attaching, by_a_group, by_a_group_that_has_no_time]
)


@CANCELLERS
@pytest.mark.parametrize("on_failure", ["cancel", "collect"])
@within(20)
async def test_child_that_is_cancelled_by_others(
    swarm: Swarm, cancel: Canceller, on_failure: str
) -> None:
    """That is a failure, as before; the clean-up of its handler is waited for."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with trio.open_nursery() as nursery:
            with (
                pytest.RaisesGroup(TaskCancelledError) if on_failure == "cancel" else nullcontext()
            ):
                async with dispatcher.open_group(on_failure=on_failure) as group:  # type: ignore[arg-type]  # one of the two
                    future = await group.start("coder", SLOW)
                    await until(lambda: staff.running)
                    nursery.start_soon(cancel, swarm, future)
            assert (staff.running, staff.clean_ups) == (0, 1)
            assert future.state == TaskState.STOPPED
        assert future.result.cancelled_by == "rival"
        assert group.statistics().failed == 1


@within(20)
async def test_child_that_another_group_of_the_dispatcher_cancels(swarm: Swarm) -> None:
    """It was cancelled here: no failure."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group() as group:
            future = await group.start("coder", SLOW)
            async with dispatcher.open_group(grace=0) as other:
                assert await other.start("coder", SLOW) is future
                await until(lambda: staff.running)
                other.cancel_scope.cancel()
            assert staff.running == 1
        assert (staff.running, staff.clean_ups) == (0, 1)
        assert future.state == TaskState.STOPPED
        assert group.statistics().cancelled == 1


@within(20)
async def test_child_that_others_cancel_with_a_clean_up_that_outlasts_the_grace(
    swarm: Swarm,
) -> None:
    staff = Staff()
    long = msgspec.structs.replace(SLOW, inputs={"do": "wait", "clean_up": "4"})
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group(on_failure="collect", grace=0.5) as group:
            future = await group.start("coder", long)
            await until(lambda: staff.running)
            await by_attaching(swarm, future)
            began = trio.current_time()
        assert 0.3 < trio.current_time() - began < 3
        assert staff.running == 1
        assert future.state == TaskState.UNCONFIRMED


@CANCELLERS
@within(20)
async def test_task_of_a_map_that_is_cancelled_by_others(swarm: Swarm, cancel: Canceller) -> None:
    """The reader hears of it at once; it is the end of the block that waits."""
    staff = Staff()
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
        trio.open_nursery() as nursery,
    ):
        await worker.handle("coder", staff)
        async with dispatcher.map("coder", [SLOW]) as results:
            await until(lambda: staff.running)
            nursery.start_soon(cancel, swarm, dispatcher._core.futures.waiting["mine"])
            assert (await anext(results)).cancelled_by == "rival"
            assert staff.running == 1
        assert (staff.running, staff.clean_ups) == (0, 1)


async def starting(dispatcher: Dispatcher, future: Future) -> Future:
    return future


async def attaching(dispatcher: Dispatcher, future: Future) -> Future:
    return await dispatcher.attach(future.id)


@CANCELLERS
@pytest.mark.parametrize("hold", [starting, attaching])
@within(20)
async def test_future_of_a_task_that_is_cancelled_by_others(
    swarm: Swarm, cancel: Canceller, hold: Callable[[Dispatcher, Future], Awaitable[Future]]
) -> None:
    """No group waits for it: it is unconfirmed until its worker has said that it has ended."""
    staff = Staff()
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.dispatcher() as other,
        swarm.worker() as worker,
        trio.open_nursery() as nursery,
    ):
        await worker.handle("coder", staff)
        started = await dispatcher.start("coder", SLOW)
        future = await hold(other if hold is attaching else dispatcher, started)
        await until(lambda: staff.running)
        nursery.start_soon(cancel, swarm, future)
        assert (await future.wait()).cancelled_by == "rival"
        assert staff.running == 1
        assert future.state == TaskState.UNCONFIRMED
        await until(lambda: future.state == TaskState.STOPPED)
        assert (staff.running, staff.clean_ups) == (0, 1)


@within(20)
async def test_canceller_and_others_who_know_the_id_alone(swarm: Swarm) -> None:
    """Whoever cancels it finds out what it was sent to, so that the others can ask its worker."""
    staff = Staff()
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.dispatcher() as other,
        swarm.worker() as worker,
    ):
        await worker.handle("coder", staff)
        started = await dispatcher.start("coder", SLOW)
        again = await other.start("coder", SLOW)  # it is known, maybe in another capability
        await until(lambda: staff.running)
        await by_attaching(swarm, started)
        for future in (started, again):
            assert (await future.wait()).metadata[CAPABILITY] == "coder"
        assert staff.running == 1
        await until(lambda: started.state == again.state == TaskState.STOPPED)
        assert staff.clean_ups == 1
        late = await dispatcher.attach(started.id)
        assert late.state == TaskState.UNCONFIRMED
        await until(lambda: late.state == TaskState.STOPPED)


@within(20)
async def test_task_that_was_cancelled_before_it_ran(swarm: Swarm) -> None:
    """Whoever asks may find it in the queue, or not any more: nobody says that it has ended."""
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", SLOW)
        await by_attaching(swarm, future)
        await future.wait()
        assert future.state in (TaskState.STOPPED, TaskState.UNCONFIRMED)


@within(20)
async def test_task_that_its_worker_has_cancelled(swarm: Swarm) -> None:
    """It has stored the result itself, once the handler had ended, and still knows."""
    staff = Staff()
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.outbox() as outbox,
        swarm.worker(name="ada") as worker,
    ):
        await worker.handle("coder", staff)
        async with dispatcher.open_group(on_failure="collect") as group:
            future = await group.start("coder", SLOW)
            await until(lambda: staff.running)
            assert await outbox.withdraw("coder", future.id, 5, never_delayed=True)
        assert future.result.cancelled_by == "ada"
        assert future.state == TaskState.STOPPED


@within(20)
async def test_worker_is_asked_until_the_dispatcher_is_closed(swarm: Swarm) -> None:
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        future = await dispatcher.start("coder", SLOW)
        looked_at_late = await dispatcher.start("coder", Message(inputs=SLOW.inputs))
        await until(lambda: staff.running == 2)
        for each in (looked_at_late, future):
            await by_attaching(swarm, each)
            await until(partial(is_resolved, each))
        await future.wait()
        await dispatcher.aclose()
        for each in (looked_at_late, future):
            assert each.result.cancelled_by == "rival"
            assert each.state == TaskState.UNCONFIRMED


@within(20)
async def test_id_that_is_another_tasks_by_now_is_let_be(swarm: Swarm) -> None:
    """Its result had expired when somebody looked at the future of the one before."""
    staff = Staff()
    swarm.configure(result_ttl=1)
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", SLOW)
        await by_attaching(swarm, future)
        await until(partial(is_resolved, future))
        while await swarm.stored_result("mine") is not None:  # noqa: ASYNC110 - no event
            await trio.sleep(0.1)
        async with swarm.worker() as worker:
            await worker.handle("coder", staff)
            await swarm.store_again("coder", "mine", SLOW.encode())
            await until(lambda: staff.running)
            asking = dispatcher._core.futures.asking
            assert asking is not None
            assert future.result.cancelled_by == "rival"
            assert asking.child_tasks
            await until(lambda: not asking.child_tasks)
            assert future.state == TaskState.UNCONFIRMED
            assert staff.running == 1
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0.1)


@pytest.mark.parametrize("capability", [None, "coder", "nobody", "coder.>"])
@within(20)
async def test_capability_that_the_result_of_a_cancelled_task_names(
    swarm: Swarm, capability: str | None
) -> None:
    """It is what others say, and may be anything."""
    staff = Staff()
    metadata = {CANCELLED_BY: "rival"} | ({CAPABILITY: capability} if capability else {})
    cancelled = Result(id="mine", status=Status.FAILED, metadata=metadata)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        await dispatcher.start("coder", SLOW)
        await until(lambda: staff.running)
        async with swarm.dispatcher() as other:
            await swarm.store_result("mine", cancelled.encode())
            future = await other.attach("mine")
            assert (await future.wait()).cancelled_by == "rival"
            assert future.state == TaskState.UNCONFIRMED
            asking = other._core.futures.asking
            assert asking is not None
            await until(lambda: not asking.child_tasks)
            asked = capability != "nobody"
            assert future.state == TaskState.STOPPED or not asked
            assert staff.clean_ups == asked
        async with swarm.dispatcher() as other:
            await (await other.attach("mine")).cancel()
            await until(lambda: staff.running == 0)
