"""Tasks that are not to be run before a time, on both brokers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import (
    InvalidMessageError,
    Message,
    Result,
    Status,
    TaskFailedError,
    TaskState,
)
from trio_swarmtask._abc import NewTask


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


class Recorder:
    """A handler that notes what it got, and when."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.times: list[float] = []
        self.seconds_left = 0.0

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.times.append(trio.current_time())
        self.seconds_left = trio.current_effective_deadline() - trio.current_time()


@within(20)
async def test_lease_goes_with_a_task_that_is_not_due(swarm: Swarm) -> None:
    """So it is not started where the program that holds it is gone by then."""
    async with swarm.outbox() as outbox, swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        data = Message(id="t1").encode()
        task = NewTask("coder", "t1", data, group_lease="gone", not_before=in_seconds(1))
        await outbox.store(task)
        result = await (await dispatcher.attach("t1")).wait()
    assert result.cancelled_by == worker.name


@within(20)
async def test_not_before_then_soon_after(swarm: Swarm) -> None:
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        began = trio.current_time()
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(0.5))
        assert trio.current_time() - began < 0.4
        assert dispatcher.statistics().started == 1
        assert (await future.wait()).status == Status.SUCCESS
        assert 0.4 < handler.times[0] - began < 3
        assert handler.messages[0].id == future.id
        await swarm.wait_until_empty()


@within(20)
async def test_earlier_tasks_come_first(swarm: Swarm) -> None:
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        futures = []
        for name, seconds in (("last", 0.9), ("second", 0.6), ("first", 0.3)):
            message = Message(id=name)
            due = in_seconds(seconds)
            futures.append(await dispatcher.start("coder", message, not_before=due))
        for future in futures:
            await future.wait()
    assert [message.id for message in handler.messages] == ["first", "second", "last"]


@within(20)
async def test_time_that_has_passed_is_now(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        for seconds in (-3600, -0.001):
            future = await dispatcher.start("coder", Message(), not_before=in_seconds(seconds))
            assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_task_that_is_not_due_is_cancelled(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        handler = Recorder()
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(0.5))
        far = await dispatcher.start("coder", Message(), not_before=in_seconds(1e9))
        other = await dispatcher.start("coder", Message(), not_before=in_seconds(1))
        assert await swarm.count_tasks() == 3
        for cancelled in (future, far):
            await cancelled.cancel()
            assert (await cancelled.wait()).cancelled_by
            assert cancelled.state == TaskState.STOPPED
        assert await swarm.count_tasks() == 1
        await other.wait()
        assert [message.id for message in handler.messages] == [other.id]


@within(20)
async def test_task_of_others_that_is_not_due_is_cancelled(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.dispatcher(name="boss") as boss:
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(3600))
        attached = await boss.attach(future.id)
        await attached.cancel()
        assert (await future.wait()).cancelled_by == "boss"
        assert await swarm.count_tasks() == 0


@within(20)
async def test_same_id_is_one_task(swarm: Swarm) -> None:
    """Whatever its second time; also once it is in the queue, and once it is done."""
    handler = Recorder()
    message = Message(id="mine")
    async with swarm.dispatcher() as one, swarm.dispatcher() as two:
        first = await one.start("coder", message, not_before=in_seconds(0.3))
        second = await two.start("coder", message, not_before=in_seconds(3600))
        assert await swarm.count_tasks() == 1
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            assert await first.wait() == await second.wait()
            for due in (in_seconds(3600), in_seconds(-1)):
                third = await two.start("coder", message, not_before=due)
                assert await third.wait() == await first.wait()
        await swarm.wait_until_empty()
    assert len(handler.messages) == 1


@within(20)
async def test_group_waits_for_a_task_that_is_not_due(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.open_group() as group:
            future = await group.start("coder", Message(), not_before=in_seconds(0.3))
            assert group.statistics().outstanding == 1
        assert future.result.status == Status.SUCCESS


@within(20)
async def test_group_cancels_a_task_that_is_not_due(swarm: Swarm) -> None:
    async def fail(message: Message) -> None:
        raise ValueError("no luck")

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", fail)
        with pytest.RaisesGroup(TaskFailedError):
            async with dispatcher.open_group() as group:
                future = await group.start("coder", Message(), not_before=in_seconds(3600))
                await group.start("coder", Message())
        assert future.result.cancelled_by
        assert future.state == TaskState.STOPPED
        await swarm.wait_until_empty()


@within(20)
async def test_deadline_of_a_group_shrinks_while_a_task_is_not_due(swarm: Swarm) -> None:
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        with trio.fail_after(5):
            async with dispatcher.open_group() as group:
                await group.start("coder", Message(), not_before=in_seconds(1))
    assert 1 < handler.seconds_left < 4.2


@within(20)
async def test_workers_and_dispatcher_need_not_stay(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(0.5))
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", echo)
        attached = await dispatcher.attach(future.id)
        assert (await attached.wait()).status == Status.SUCCESS


@within(20)
async def test_task_that_has_come_due_waits_for_a_worker(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(0.1))
        await trio.sleep(0.3)  # nobody is there
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_too_large_a_task_is_refused(swarm: Swarm) -> None:
    message = Message(inputs={"text": "x" * 2**20})
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(InvalidMessageError, match=r"is larger than the [0-9]+ that the"):
            await dispatcher.start("coder", message, not_before=in_seconds(60))
        assert dispatcher.statistics().outstanding == 0


@pytest.mark.parametrize("time", ["2030-01-01T00:00:00Z", 60.0, timedelta(seconds=60)])
@within(20)
async def test_what_is_no_time_is_refused(swarm: Swarm, time: datetime) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(TypeError, match=r"not_before must be a datetime, not .*; for example"):
            await dispatcher.start("coder", Message(), not_before=time)
        async with dispatcher.open_group() as group:
            with pytest.raises(TypeError, match="not_before must be a datetime"):
                await group.start("coder", Message(), not_before=time)
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_time_without_a_zone_is_refused(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        time = datetime(2100, 1, 1)
        with pytest.raises(ValueError, match=r"not_before has no time zone: .*2100.*UTC"):
            await dispatcher.start("coder", Message(), not_before=time)
        with pytest.raises(ValueError, match="not_before must be before the year 2262"):
            await dispatcher.start("coder", Message(), not_before=time.replace(2262, tzinfo=UTC))


@pytest.mark.parametrize("capability", ["coder", "writer"])
@pytest.mark.parametrize("due", [None, 3600.0], ids=["now", "later"])
@within(20)
async def test_id_of_a_task_that_is_not_due_is_one_task(
    swarm: Swarm, capability: str, due: float | None
) -> None:
    """Though the broker has forgotten that it was started; in whatever capability, at once too."""
    handler = Recorder()
    message = Message(id="mine")
    await swarm.forget_ids_soon()
    async with swarm.dispatcher() as first, swarm.dispatcher() as second, swarm.worker() as worker:
        for name in ("coder", "writer"):
            await worker.handle(name, handler)
        await first.start("coder", message, not_before=in_seconds(1.5))
        await trio.sleep(0.3)  # the broker forgets it
        not_before = None if due is None else in_seconds(due)
        future = await second.start(capability, message, not_before=not_before)
        assert await swarm.count_tasks() == 1
        assert (await future.wait()).status == Status.SUCCESS
        assert len(handler.messages) == 1


@within(20)
async def test_task_that_came_due_with_a_result_is_not_run(swarm: Swarm) -> None:
    """It was started in another capability at the same moment, and has ended there."""
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(0.5))
        done = Result(id=future.id, status=Status.SUCCESS, agent="another", outputs="theirs")
        await swarm.store_result(future.id, done.encode())
        await swarm.wait_until_empty()
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert len(handler.messages) == 1
