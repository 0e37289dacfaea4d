"""The order in which tasks of one capability are handed out, on both brokers.

What was delivered before comes before what was not; each of the two in the order of the times at
which it could be had again, or at all.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Message
from trio_swarmtask._abc import NewTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask._abc import Delivery, Outbox


async def store(outbox: Outbox, names: str, **settings: Any) -> None:
    for name in names:
        await outbox.store(NewTask("coder", name, Message(id=name).encode(), **settings))


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@asynccontextmanager
async def taken(swarm: Swarm, count: int) -> AsyncIterator[dict[str, Delivery]]:
    """So many tasks, in the order in which they came, at somebody who asks for no more."""
    came: list[Delivery] = []
    async with swarm.open() as broker, broker.open_intake("coder", each(came.append)) as intake:
        intake.ask(count)
        await until(lambda: len(came) == count)
        yield {delivery.task_id: delivery for delivery in came}


async def order(swarm: Swarm, count: int) -> str:
    """In which somebody else gets them, who asks for them all at once."""
    async with taken(swarm, count) as deliveries:
        return "".join(deliveries)


@within(20)
async def test_tasks_come_as_they_were_stored(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox:
        await store(outbox, "CAB")
    assert await order(swarm, 3) == "CAB"


@within(20)
async def test_task_that_is_due_goes_to_the_end(swarm: Swarm) -> None:
    """Whether or not somebody was there to see that it came due."""
    async with swarm.outbox() as outbox:
        await store(outbox, "L", not_before=in_seconds(0.4))
        await store(outbox, "A")
        async with taken(swarm, 1):
            await store(outbox, "B")
            await trio.sleep(0.6)  # the time is what is tested
            await store(outbox, "C")
            assert await order(swarm, 3) == "BLC"


@within(20)
async def test_task_that_came_due_while_nobody_was_there(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox:
        await store(outbox, "M", not_before=in_seconds(0.5))
        await store(outbox, "L", not_before=in_seconds(0.3))
        await store(outbox, "A")
        await trio.sleep(0.8)  # the time is what is tested
        await store(outbox, "B")
    assert await order(swarm, 4) == "ALMB"


@pytest.mark.needs_schedules
@within(20)
async def test_what_a_schedule_started_while_nobody_was_there(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.outbox() as outbox:
        await dispatcher.schedule("tick", "coder", Message(), every=2)
        await store(outbox, "A")
        await trio.sleep(3)  # the time is what is tested
        await store(outbox, "B")
        await dispatcher.unschedule("tick")
    async with taken(swarm, 3) as deliveries:
        first, fired, last = deliveries
    assert (first, fired.partition("-")[0], last) == ("A", "tick", "B")


@within(20)
async def test_what_is_given_back_comes_first(swarm: Swarm) -> None:
    """In the order in which it was given back."""
    async with swarm.outbox() as outbox:
        await store(outbox, "ABC")
        async with taken(swarm, 3) as deliveries:
            await store(outbox, "D")
            for name in "CAB":
                await deliveries[name].give_back()
    assert await order(swarm, 4) == "CABD"


@within(20)
async def test_what_is_given_back_twice(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox:
        await store(outbox, "ABC")
    async with taken(swarm, 2) as deliveries:
        await deliveries["B"].give_back()
        async with taken(swarm, 1) as again:
            await deliveries["A"].give_back()
            await again["B"].give_back()
    assert await order(swarm, 3) == "ABC"


@pytest.mark.parametrize("how", ["retry", "give_back"])
@within(20)
async def test_what_is_put_off_comes_first_once_it_is_due(swarm: Swarm, how: str) -> None:
    """Each when its delay is over, and nothing waits for it before."""
    async with swarm.outbox() as outbox:
        await store(outbox, "ABC")
        async with taken(swarm, 3) as deliveries:
            for name, delay in (("A", 0.7), ("B", 0.3), ("C", 0.5)):
                await getattr(deliveries[name], how)(delay)
            await store(outbox, "DE")
            assert await order(swarm, 1) == "D"
            await trio.sleep(0.9)  # the delays are what is tested
    assert await order(swarm, 4) == "BCAE"


@within(20)
async def test_what_is_tried_again_at_once_comes_first(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox:
        await store(outbox, "ABC")
        async with taken(swarm, 3) as deliveries:
            await store(outbox, "D")
            for name in "BCA":
                await deliveries[name].retry(0)
    assert await order(swarm, 4) == "BCAD"


@within(20)
async def test_leases_that_lapse_together(swarm: Swarm) -> None:
    """What is older comes first, after what was given back before."""
    swarm.configure(ack_wait=1)
    async with swarm.outbox() as outbox:
        await store(outbox, "ABC")
        async with taken(swarm, 3) as deliveries:
            await store(outbox, "D")
            await deliveries["B"].give_back()
    await trio.sleep(1.5)  # the lease is what is tested
    assert await order(swarm, 4) == "BACD"
