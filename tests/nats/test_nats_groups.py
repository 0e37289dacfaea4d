"""Groups where the server is away, or refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from proxy import open_proxy
from swarm import NATSSwarm, within

from trio_swarmtask import BrokerError, Message, TaskState, open_dispatcher

if TYPE_CHECKING:
    from trio_swarmtask.server import Server


@within(20)
async def test_outage_that_outlasts_the_grace(server: Server) -> None:
    """The block is left all the same; the task has no result, and goes on."""
    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        async with dispatcher.open_group(grace=0.3) as group:
            future = await group.start("coder", Message())
            proxy.cut(for_good=True)
            group.cancel_scope.cancel()
        assert future.state == TaskState.OUTSTANDING
        proxy.mend()
        await future.cancel()
        assert future.result.cancelled_by


@within(20)
async def test_queue_that_refuses_is_told(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_swarm.raw() as raw:
        settings = {"subjects": ["work.>"], "retention": "workqueue", "deny_delete": True}
        await raw.api("STREAM.CREATE.TASKS", name="TASKS", **settings)
    async with nats_swarm.dispatcher() as dispatcher:
        async with dispatcher.open_group() as group:
            alone = await group.start("coder", Message())
            with pytest.raises(BrokerError, match="deny_delete"):
                await alone.cancel()
            future = await group.start("coder", Message())
            group.cancel_scope.cancel()
        for each in (alone, future):
            assert each.result.cancelled_by
            assert each.state == TaskState.UNCONFIRMED
            assert f"task {each.id} of a group could not be cancelled" in caplog.text
