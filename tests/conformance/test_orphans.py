"""Groups whose tasks end with the program that started them, on both brokers."""

from __future__ import annotations

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import Waiting
from trio_swarmtask import BrokerError, Message, TaskState
from trio_swarmtask._abc import NewTask
from trio_swarmtask._dispatcher._group import GroupLease


def orphan(task_id: str) -> NewTask:
    """A task of a group that nobody renews the lease of."""
    return NewTask("coder", task_id, Message(id=task_id).encode(), group_lease="group-1")


@within(20)
async def test_group_that_lives_longer_than_a_lease(swarm: Swarm) -> None:
    swarm.configure(ack_wait=1.5)
    await swarm.shorten_leases(1)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        handler = Waiting()
        await worker.handle("coder", handler)
        await worker.handle("clerk", echo)
        async with dispatcher.open_group(orphans="cancel") as group:
            future = await group.start("coder", Message())
            for _ in range(6):
                await trio.sleep(0.5)  # long enough for the lease to lapse, and be missed
                await group.run("clerk", Message())
            assert handler.running == 1
            group.cancel_scope.cancel()
    assert future.state == TaskState.STOPPED


@within(20)
async def test_running_orphan_is_cancelled(swarm: Swarm) -> None:
    swarm.configure(ack_wait=1)
    await swarm.shorten_leases(1)
    async with (
        swarm.outbox() as outbox,
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
    ):
        handler = Waiting()
        await worker.handle("coder", handler)
        assert await outbox.renew_group_lease("group-1") == 1
        await outbox.store(orphan("t1"))
        await until(lambda: handler.running)
        result = await (await dispatcher.attach("t1")).wait()
        assert result.cancelled_by == worker.name
        assert handler.running == 0
        await swarm.wait_until_empty()
        assert worker.statistics().cancelled == 1


@within(20)
async def test_orphan_in_the_queue_is_not_started(swarm: Swarm) -> None:
    async with (
        swarm.outbox() as outbox,
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
    ):
        handler = Waiting()
        await outbox.store(orphan("t1"))
        await worker.handle("coder", handler)
        result = await (await dispatcher.attach("t1")).wait()
        assert result.cancelled_by == worker.name
        await swarm.wait_until_empty()
    assert handler.calls == 0


@within(20)
async def test_lease_that_can_not_be_renewed_for_a_while(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    """The group goes on, and says so."""
    renewals = []
    async with swarm.outbox() as outbox:

        class Refusing:
            async def renew_group_lease(self, name: str) -> float:
                renewals.append(name)
                if len(renewals) == 2:
                    raise BrokerError("not now")
                await outbox.renew_group_lease(name)
                return 0.03

        lease = GroupLease(Refusing(), "group-1")  # type: ignore[arg-type]  # it has all that is needed
        await lease.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.keep)
            await until(lambda: len(renewals) == 3)
            lease.end()
    assert "the lease of a group can't be renewed: not now" in caplog.text


async def test_orphans_that_can_not_be(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(ValueError, match="orphans must be 'finish' or 'cancel', not 'kill'"):
            dispatcher.open_group(orphans="kill")  # type: ignore[arg-type]  # the point
