"""Whatever is opened is given up at a random moment: whoever opened it goes on at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import echo, within
from trio_swarmtask import (
    Broker,
    Message,
    open_broker,
    open_dispatcher,
    open_idempotency,
    open_worker,
)
from trio_swarmtask.bus import open_nats_bus
from trio_swarmtask.results import open_kv_publisher
from trio_swarmtask.server import open_server

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests._helpers.faults.table import Row

# By URL: with a connection of their own; by broker: on one that is there.
WAYS: dict[str, Callable[[str, Broker], AbstractAsyncContextManager[Any]]] = {
    "broker": lambda url, _: open_broker(url),
    "dispatcher": lambda url, _: open_dispatcher(url),
    "worker": lambda url, _: open_worker(url),
    "worker on a broker": lambda _, broker: open_worker(broker),
    "dispatcher on a broker": lambda _, broker: open_dispatcher(broker),
    "idempotency": lambda _, broker: open_idempotency(broker),
    "publisher": lambda _, broker: open_kv_publisher(broker),
    "bus": lambda url, _: open_nats_bus(url),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.fault("opening is cancelled at a random moment", full=500, short=20)
@within(300)
async def test_opening(times: int, rng: random.Random, row: Row, way: str) -> None:
    row.fault = f"opening is cancelled at a random moment: {way}"
    async with open_server() as server, open_broker(server.url) as broker:
        cancelled = 0
        for _ in range(times):
            with trio.fail_after(5), trio.move_on_after(rng.uniform(0, 0.004)) as scope:
                async with WAYS[way](server.url, broker):
                    await trio.sleep(rng.uniform(0, 0.003))
            cancelled += scope.cancelled_caught
        assert cancelled, "none was cancelled"
        async with WAYS[way](server.url, broker):
            pass


@pytest.mark.fault("`handle` and a group are cancelled at a random moment", full=500, short=20)
@within(300)
async def test_handle_and_group(times: int, rng: random.Random, row: Row) -> None:
    """A capability is handled, or can be handled by another call; a group is left."""
    async with (
        open_server() as server,
        open_broker(server.url) as broker,
        open_dispatcher(broker) as dispatcher,
    ):
        for number in range(times):
            capability = f"coder-{number}"
            async with open_worker(broker) as worker:
                with trio.move_on_after(rng.uniform(0, 0.01)) as scope:
                    await worker.handle(capability, echo)
                if scope.cancelled_caught:
                    await worker.handle(capability, echo)
                with trio.move_on_after(rng.uniform(0, 0.01)):
                    async with dispatcher.open_group(orphans="cancel") as group:
                        await group.start(capability, Message())
                with trio.fail_after(10):
                    await dispatcher.run(capability, Message())
            row.tasks += 1
