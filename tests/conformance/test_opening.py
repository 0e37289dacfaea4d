"""Whatever is opened can be given up at any moment, and whoever opened it goes on at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, Swarm, echo, within
from trio_swarmtask import Message, Status, open_broker, open_idempotency
from trio_swarmtask._sync import Starting
from trio_swarmtask._worker import _worker
from trio_swarmtask._worker._capability import Service
from trio_swarmtask.bus import open_nats_bus
from trio_swarmtask.results import open_kv_publisher

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

WAYS: dict[str, Callable[[Swarm], AbstractAsyncContextManager[Any]]] = {
    "worker": lambda swarm: swarm.worker(),
    "dispatcher": lambda swarm: swarm.dispatcher(),
    "idempotency": lambda swarm: open_idempotency(swarm.broker),
    "publisher": lambda swarm: open_kv_publisher(swarm.broker),
}


async def hold(opening: AbstractAsyncContextManager[Any]) -> None:
    async with opening:
        await trio.sleep_forever()


@pytest.mark.parametrize("way", WAYS)
@within(10)
async def test_in_a_scope_that_is_cancelled(swarm: Swarm, way: str) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await hold(WAYS[way](swarm))
    assert scope.cancelled_caught


@pytest.mark.parametrize("open_it", [open_nats_bus, open_broker])
@within(10)
async def test_connection_in_a_scope_that_is_cancelled(
    nats_swarm: NATSSwarm, open_it: Callable[[str], AbstractAsyncContextManager[Any]]
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await hold(open_it(nats_swarm.url))
    assert scope.cancelled_caught


@pytest.mark.parametrize("way", WAYS)
@within(10)
async def test_beside_a_sibling_that_fails_at_once(swarm: Swarm, way: str) -> None:
    async def fail() -> None:
        raise OSError("address already in use")

    with pytest.RaisesGroup(OSError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, WAYS[way](swarm))
            nursery.start_soon(fail)


@pytest.mark.parametrize("way", WAYS)
@within(20)
async def test_in_a_finally(swarm: Swarm, way: str) -> None:
    """Of what was cancelled: there it is cancelled again, at its first checkpoint."""
    with trio.CancelScope() as scope:
        try:
            scope.cancel()
            await trio.sleep_forever()
        finally:
            await hold(WAYS[way](swarm))  # noqa: ASYNC102 - that is the fault
    assert scope.cancelled_caught


@pytest.mark.parametrize("way", WAYS)
@within(20)
async def test_after_so_many_turns(swarm: Swarm, way: str) -> None:
    """Each turn of the Trio loop is another moment."""
    for turns in range(60):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, WAYS[way](swarm))
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert scope.cancelled_caught


@pytest.mark.parametrize("checkpoints", [0, 1, 2, 3, 5, 8, 13, 21])
@within(20)
async def test_handle_that_is_cut_off(swarm: Swarm, checkpoints: int) -> None:
    """The capability is handled, or it can be handled by another call."""

    async def handle(scope: trio.CancelScope) -> None:
        with scope:
            await worker.handle("coder", echo)

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message())
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle, scope)
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        if scope.cancelled_caught:
            await worker.handle("coder", echo)
        assert (await future.wait()).status == Status.SUCCESS
        assert worker.statistics().capabilities == 1


@within(20)
async def test_handle_that_ends_as_its_worker_stops(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for nothing then."""

    class Late(Starting[Any]):
        async def wait(self) -> object:
            value = await super().wait()
            if isinstance(value, Service):
                nursery.start_soon(worker.aclose)
                await worker._closing.stopping.wait()
            return value

    async with swarm.dispatcher() as dispatcher, trio.open_nursery() as nursery:
        future = await dispatcher.start("coder", Message())
        async with swarm.worker() as worker:
            monkeypatch.setattr(_worker, "Starting", Late)
            await worker.handle("coder", echo)
        monkeypatch.undo()
        assert worker.statistics().deliveries == 0
        assert future.state == "outstanding"
