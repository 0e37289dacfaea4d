"""Roles that are closed in the moment in which an answer comes: a call is told the role's error."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from tests._helpers.brokers import NATSSwarm, within
from trio_swarmtask import ClosedError, Dispatcher, Message
from trio_swarmtask.bus import BusClosedError, MessageBus, NoRespondersError, open_nats_bus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask._nats._protocol import Incoming
    from trio_swarmtask._nats._requests import Requests

numbers = itertools.count()


def close_at_answer(
    monkeypatch: pytest.MonkeyPatch, requests: Requests, answers: int, close: Callable[[], None]
) -> None:
    """Close at the answer of that number: whoever waits for it runs on, and has not noticed."""
    hear = requests._on_reply
    left = [answers]

    def hear_and_close(message: Incoming) -> None:
        hear(message)
        left[0] -= 1
        if left[0] == 0:
            close()

    monkeypatch.setattr(requests._subscription._future, "callback", hear_and_close)


async def start(dispatcher: Dispatcher) -> None:
    await dispatcher.start("coder", Message(id=f"mine-{next(numbers)}"))


async def start_soon(dispatcher: Dispatcher) -> None:
    await dispatcher.start("coder", Message())


async def attach(dispatcher: Dispatcher) -> None:
    dispatcher.forget(await dispatcher.attach("nobodys"))


async def cancel(dispatcher: Dispatcher) -> None:
    future = await dispatcher.start("coder", Message())
    await future.cancel()


async def schedule(dispatcher: Dispatcher) -> None:
    await dispatcher.schedule("s", "coder", Message(), every=3600)
    await dispatcher.unschedule("s")


async def schedules(dispatcher: Dispatcher) -> None:
    await dispatcher.schedules()


@pytest.mark.needs_schedules
@pytest.mark.parametrize("call", [start, start_soon, attach, cancel, schedule, schedules])
@pytest.mark.parametrize("answers", range(1, 8))
@within(20)
async def test_dispatcher(
    nats_swarm: NATSSwarm,
    call: Callable[[Dispatcher], Awaitable[None]],
    answers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def close() -> None:
        dispatcher._core._end(ClosedError("the dispatcher was closed before the result came"))

    async with nats_swarm.dispatcher() as dispatcher:
        outbox: Any = dispatcher._core.outbox
        close_at_answer(monkeypatch, outbox._requests, answers, close)
        with pytest.raises(ClosedError, match=r"the dispatcher (is|was) closed") as caught:
            while True:
                await call(dispatcher)
        assert caught.type is ClosedError


@pytest.mark.parametrize("answers", range(1, 5))
@within(20)
async def test_bus(server: Any, answers: int, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401 - a Server
    async def use(bus: MessageBus) -> None:
        async with bus.subscribe("a"):
            await bus.publish("a", b"")
        with pytest.raises(NoRespondersError):
            await bus.request("nobody", b"")

    bus: Any
    async with open_nats_bus(server.url) as bus:
        close_at_answer(monkeypatch, bus._requests, answers, bus._close)
        with pytest.raises(BusClosedError):
            while True:
                await use(bus)
