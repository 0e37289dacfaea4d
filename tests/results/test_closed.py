"""Closing a publisher with calls under way: each of them is told that the publisher is closed."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, within
from tests._helpers.publishers import MemoryPublishers, Publishers, outputs, pending, success
from trio_swarmtask._nats._requests import Requests
from trio_swarmtask.results import (
    PublisherClosedError,
    ResultPublisher,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask._nats._protocol import Incoming

    Call = Callable[[ResultPublisher, str], Awaitable[None]]


async def publish(publisher: ResultPublisher, task_id: str) -> None:
    await publisher.publish(task_id, pending(1))


async def get(publisher: ResultPublisher, task_id: str) -> None:
    await publisher.get("there")


async def list_(publisher: ResultPublisher, task_id: str) -> None:
    assert len(await publisher.list()) > 0


async def delete(publisher: ResultPublisher, task_id: str) -> None:
    await publisher.publish(task_id, pending(1))
    await publisher.delete(task_id)


async def subscribe(publisher: ResultPublisher, task_id: str) -> None:
    async with publisher.subscribe(task_id):
        pass


CALLS = (publish, get, list_, delete, subscribe)


@pytest.mark.parametrize("call", CALLS)
@within(30)
async def test_closing_in_the_middle_of_calls(publishers: Publishers, call: Call) -> None:
    """At whatever moment: by `aclose`, or by leaving the block."""
    rng = random.Random(16)
    raised: Counter[str] = Counter()

    async def call_for_ever(publisher: ResultPublisher, task_id: str) -> None:
        try:
            while True:
                await call(publisher, task_id)
                await trio.lowlevel.checkpoint()
        except Exception as exc:  # noqa: BLE001 - which one, is the question
            raised[type(exc).__name__] += 1

    rounds = 1 if isinstance(publishers, MemoryPublishers) else 10  # the one can't be opened again
    for number in range(rounds):
        async with trio.open_nursery() as nursery, publishers.open() as publisher:
            await publisher.publish("there", pending(1))
            for caller in range(8):
                nursery.start_soon(call_for_ever, publisher, f"t{caller}")  # noqa: ASYNC111 - it is what is tested
            for _ in range(rng.randrange(100)):  # time stands still where nobody sleeps
                await trio.lowlevel.checkpoint()
            if number % 2:
                await publisher.aclose()
    assert raised == {"PublisherClosedError": 8 * rounds}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answers", range(1, 5))
@within(20)
async def test_closed_in_the_moment_of_an_answer(
    nats_swarm: NATSSwarm, call: Call, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call runs on, past its cancellation, to its next request."""
    hear = Requests._on_reply
    async with open_kv_publisher(nats_swarm.url) as publisher:
        await publisher.publish("there", pending(1))
        requests = publisher._bucket._requests  # type: ignore[attr-defined]  # the one of a server
        left = [answers]

        def hear_and_close(self: Requests, message: Incoming) -> None:
            hear(self, message)
            if self is requests:
                left[0] -= 1
                if left[0] == 0:
                    publisher._close()  # type: ignore[attr-defined]  # as leaving its block does
                    requests.close()

        monkeypatch.setattr(Requests, "_on_reply", hear_and_close)
        subscription = requests._subscription._future
        monkeypatch.setattr(subscription, "callback", requests._on_reply)
        with pytest.raises(PublisherClosedError, match="the publisher is closed; open another"):
            while True:
                await call(publisher, "t1")
        with pytest.raises(PublisherClosedError):
            await call(publisher, "t1")


@within(20)
async def test_updates_in_turn_are_told_once(
    publisher: ResultPublisher, other: ResultPublisher
) -> None:
    """Two publishers of one task, one after the other."""
    async with publisher.subscribe("t1") as one, other.subscribe("t1") as two:
        told: list[list[bytes]] = []
        for number in range(6):
            await (publisher, other)[number % 2].publish("t1", pending(number))
            told.append([(await anext(updates)).output for updates in (one, two)])
        await publisher.publish("t1", success(6))
        assert await outputs(one) == await outputs(two) == [b"6"]
    assert told == [[b"%d" % number] * 2 for number in range(6)]
