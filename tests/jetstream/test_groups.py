"""Groups where the server is away, or refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    BrokerError,
    Message,
    NATSConfig,
    Result,
    Status,
    TaskFailedError,
    TaskState,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._dispatcher import _group
from trio_swarmtask._jetstream import _outbox
from trio_swarmtask._jetstream._cancel import Notices

if TYPE_CHECKING:
    from trio_swarmtask import Future
    from trio_swarmtask._abc import Delivery
    from trio_swarmtask.server import Server


@within(20)
async def test_outage_that_outlasts_the_grace(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is left all the same; the task has no result, and goes on."""
    monkeypatch.setattr(_group, "_TELLING", 0.3)
    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        async with dispatcher.open_group(grace=0.3) as group:
            future = await group.start("coder", Message())
            proxy.cut(for_good=True)
            group.cancel_scope.cancel()
        assert future.state == TaskState.OUTSTANDING
        counts = group.statistics()
        assert (counts.started, counts.outstanding, counts.cancelled) == (1, 1, 0)
        proxy.mend()
        await future.cancel()
        assert future.result.cancelled_by


@within(20)
async def test_server_that_is_lost_for_good(server: Server) -> None:
    """A group that collects says so as well, in the end; its futures have no result."""
    futures: list[Future] = []
    async with open_proxy(server.port) as proxy:
        config = NATSConfig(proxy.url, reconnect_timeout=0.2)
        with pytest.RaisesGroup(BrokerError, BrokerError, flatten_subgroups=True):
            async with (  # the dispatcher's block says so, too
                open_dispatcher(config) as dispatcher,
                dispatcher.open_group(on_failure="collect") as group,
            ):
                futures += [await group.start("coder", Message()) for _ in range(3)]
                proxy.cut(for_good=True)
                await trio.sleep_forever()
    assert [future.state for future in futures] == [TaskState.OUTSTANDING] * 3
    assert group.statistics().failed == 3


@within(20)
async def test_start_that_is_cancelled_in_an_outage(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is left once the broker is back and has said that there is no such task to do."""
    monkeypatch.setattr(_group, "_TELLING", 0.2)
    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        left = trio.Event()

        async def start_one() -> None:
            async with dispatcher.open_group(grace=0.2) as group:
                for start in (group.start, group.run):
                    with trio.move_on_after(0.1):
                        await start("coder", Message())
            left.set()

        async with trio.open_nursery() as nursery:
            await (await dispatcher.start("coder", Message())).cancel()  # it knows the streams
            proxy.cut(for_good=True)
            nursery.start_soon(start_one)
            with trio.move_on_after(1.5):
                await left.wait()
            assert not left.is_set()
            proxy.mend()
        assert left.is_set()
        assert dispatcher.statistics().outstanding == 0
        async with NATSSwarm(server.url).raw() as raw:
            assert await raw.subjects("TASKS", ">") == []


@within(20)
async def test_cancel_that_is_interrupted_is_finished_by_the_group(server: Server) -> None:
    async with NATSSwarm(server.url).worker() as gone:
        await gone.handle("coder", echo)
    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        async with dispatcher.open_group(grace=10) as group:
            future = await group.start("coder", Message())
            proxy.cut(for_good=True)
            with trio.move_on_after(0.2):
                await future.cancel()
            group.cancel_scope.cancel()
            proxy.mend()
        assert future.state == TaskState.STOPPED


@within(20)
async def test_start_that_is_refused_as_it_is_cancelled(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no task then, so nothing to wait for."""

    async def refuse(*_: object, tried: bool) -> bool:
        if not tried:
            await trio.sleep_forever()
        raise BrokerError("no more tasks")

    async with nats_swarm.dispatcher() as dispatcher, dispatcher.open_group() as group:
        monkeypatch.setattr(_outbox.NATSOutbox, "store", refuse)
        with trio.move_on_after(0.1):
            await group.start("coder", Message())
        counts = group.statistics()
        assert (counts.started, counts.outstanding, counts.cancelled) == (1, 0, 1)
    assert "no more tasks" in caplog.text


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


@within(20)
async def test_outage_that_outlasts_the_grace_of_a_map(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may not be stored is let be, and nobody hears of it when the connection is closed."""
    monkeypatch.setattr(_group, "_TELLING", 0.2)
    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        await (await dispatcher.start("coder", Message())).cancel()  # it knows the streams
        proxy.freeze()
        async with dispatcher.map("coder", [Message()], grace=0.2):
            await until(lambda: dispatcher.statistics().outstanding)
        assert dispatcher.statistics().outstanding == 0
        proxy.mend()


@within(20)
async def test_tasks_of_a_map_that_are_cut_from_their_pubacks(server: Server) -> None:
    """They are stored after all, once."""
    async with (
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        open_worker(server.url) as worker,
    ):
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())  # it knows the streams
        proxy.cut_at_answer(b'"stream":"TASKS"')
        async with dispatcher.map("coder", [Message()] * 10) as results:
            assert len([result async for result in results]) == 10
        await until(lambda: worker.statistics().succeeded == 11)


@pytest.mark.parametrize("neighbour", [False, True])
@within(20)
async def test_worker_that_knows_nothing_of_cancellation(
    nats_swarm: NATSSwarm, neighbour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in Go, say. It is waited for where somebody else might have the task, for two seconds."""

    async def fail(message: Message) -> None:
        raise ValueError("no luck")

    async with (
        open_broker(nats_swarm.broker) as broker,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        arrived: list[Delivery] = []
        monkeypatch.setattr(Notices, "begin", lambda notices: None)
        async with broker.open_intake("coder", each(arrived.append)) as intake:
            monkeypatch.undo()
            intake.ask(1)
            begun = trio.current_time()
            with pytest.RaisesGroup(TaskFailedError):
                async with dispatcher.open_group() as group:
                    future = await group.start("coder", Message())
                    await until(lambda: arrived)
                    if neighbour:
                        await worker.handle("coder", echo)
                    await worker.handle("failing", fail)
                    begun = trio.current_time()
                    await group.start("failing", Message())
            left_after = trio.current_time() - begun
            late = Result(id=future.id, status=Status.SUCCESS, agent="go").encode()
            assert not await arrived[0].complete(late)
        assert left_after == pytest.approx(2.2 if neighbour else 0.2, abs=0.6)
        assert future.state == TaskState.UNCONFIRMED
        assert (await (await dispatcher.attach(future.id)).wait()).cancelled_by
