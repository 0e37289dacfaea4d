"""Tasks of a group that are cancelled together, wherever each of them is, on both brokers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from tests._helpers.handlers import WAIT, Staff
from trio_swarmtask import Message, Retry, RetryTask, TaskFailedError, TaskState
from trio_swarmtask._dispatcher import _group

if TYPE_CHECKING:
    from trio_swarmtask import Future

FAIL = Message(inputs={"do": "fail"})


async def put_back(message: Message) -> None:
    raise RetryTask(delay=10)


@within(20)
async def test_children_in_every_state(swarm: Swarm) -> None:
    """Waiting, running, cleaning up, between two attempts, for later, of an ID of one's own."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff, max_in_flight=3)
        await worker.handle("other", put_back, retry=Retry())
        await dispatcher.run("coder", Message())
        async with dispatcher.open_group() as group:
            ended = await group.start("coder", Message())
            await ended.wait()
            futures = [
                await group.start("coder", WAIT),
                await group.start("coder", Message(inputs={"do": "wait", "clean_up": "0.3"})),
                await group.start("coder", Message(id="mine", inputs={"do": "wait"})),
                await group.start("other", Message(max_attempts=2)),
            ]
            await until(lambda: staff.running == 3)
            await until(lambda: worker.statistics().retried == 1)
            futures += [await group.start("coder", Message()) for _ in range(5)]
            futures.append(await group.start("coder", Message(id="my-next")))
            due = datetime.now(UTC) + timedelta(hours=1)
            futures.append(await group.start("coder", Message(), not_before=due))
            group.cancel_scope.cancel()
        assert staff.running == 0
        assert ended.state == TaskState.ENDED
        assert [future.state for future in futures] == [TaskState.STOPPED] * len(futures)
        assert all(future.result.cancelled_by for future in futures)
        counts = group.statistics()
        assert (counts.started, counts.succeeded, counts.cancelled) == (12, 1, 11)
        # None of those that waited for a place. The one of an ID of its own is cancelled by itself,
        # beside them: a place that is free by then may have it first.
        called = {message.id for message in staff.messages} - {"my-next"}
        assert len(called) == 5
        assert not called & {future.id for future in futures[4:9]}
        await swarm.wait_until_empty()


@within(20)
async def test_those_that_are_called_for(swarm: Swarm) -> None:
    """By `run`: they are cancelled with their callers."""
    staff = Staff()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        with pytest.RaisesGroup(pytest.RaisesExc(TaskFailedError), flatten_subgroups=True):
            async with dispatcher.open_group() as group, trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(group.run, "coder", WAIT)
                await until(lambda: staff.running == 5)
                await group.start("coder", FAIL)
        assert staff.running == 0
        counts = group.statistics()
        assert (counts.failed, counts.cancelled) == (1, 5)
        await swarm.wait_until_empty()


@within(20)
async def test_clean_up_that_takes_longer_than_others(swarm: Swarm) -> None:
    """Each is told its own end, and the block waits for the grace."""
    staff = Staff()
    futures: list[Future] = []
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff)
        async with dispatcher.open_group(grace=1) as group:
            for seconds in ("0", "0.1", "4"):
                message = Message(inputs={"do": "wait", "clean_up": seconds})
                futures.append(await group.start("coder", message))
            await until(lambda: staff.running == 3)
            group.cancel_scope.cancel()
        assert staff.clean_ups == 2
        states = [TaskState.STOPPED, TaskState.STOPPED, TaskState.UNCONFIRMED]
        assert [future.state for future in futures] == states
        await swarm.wait_until_empty()


@within(20)
async def test_no_room_for_their_results(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block waits for some, and in the end says that they have no result."""
    monkeypatch.setattr(_group, "_TELLING", 0.5)
    await swarm.limit_results(1)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("other", Staff())
        await dispatcher.run("other", Message())
        async with dispatcher.open_group(grace=0) as group:
            futures = [await group.start("coder", WAIT) for _ in range(3)]
            group.cancel_scope.cancel()
        assert [future.state for future in futures] == [TaskState.OUTSTANDING] * 3
        await swarm.make_room_for_results()
        for future in futures:
            await future.cancel()
            assert future.result.cancelled_by
        await swarm.wait_until_empty()


@within(20)
async def test_group_without_children(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        async with dispatcher.open_group() as group:
            group.cancel_scope.cancel()
        assert group.statistics().started == 0
