"""Tasks that a handler starts: their IDs, and the dispatcher that it is given, on both brokers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from trio_swarmtask import (
    BrokerError,
    ClosedError,
    Dispatcher,
    InvalidCapabilityError,
    Message,
    Status,
    current_task,
)
from trio_swarmtask._util import open_flat_nursery
from trio_swarmtask._worker import _own_dispatcher as _children

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask import Broker


async def chain(message: Message) -> list[str]:
    """A handler that tells by which IDs its task was started."""
    return [message.parent, message.root, message.correlation_id]


@within(10)
async def test_chain_is_filled_in(swarm: Swarm) -> None:
    """By everything that starts tasks; what is there already stays."""
    found: dict[str, object] = {}

    async def handle(message: Message) -> None:
        dispatcher = await current_task().dispatcher()
        found["run"] = (await dispatcher.run("chain", Message())).outputs
        future = await dispatcher.start("chain", Message(parent="mine", correlation_id="ours"))
        found["start"] = (await future.wait()).outputs
        async with dispatcher.open_group() as group:
            found["group"] = (await group.run("chain", Message())).outputs
        async with dispatcher.open_group(parent=Message(id="other")) as group:
            found["other"] = (await group.run("chain", Message())).outputs
        with pytest.raises(InvalidCapabilityError):
            await dispatcher.start("", Message())

    async with swarm.worker(name="ada") as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        await worker.handle("chain", chain)
        (await dispatcher.run("coder", Message(id="t-1", root="top"))).raise_for_status()
    assert found == {
        "run": ["t-1", "top", "t-1"],
        "start": ["mine", "top", "ours"],
        "group": ["t-1", "top", "t-1"],
        "other": ["other", "other", "other"],
    }


@within(10)
async def test_chain_over_three_levels(swarm: Swarm) -> None:
    """Each task names the one above as its parent, and the one at the top as its root."""

    async def descend(message: Message) -> list[list[str]]:
        below: list[list[str]] = []
        if int(message.inputs["levels"]) > 0:
            dispatcher = await current_task().dispatcher()
            inputs = {"levels": str(int(message.inputs["levels"]) - 1)}
            result = await dispatcher.run("coder", Message(inputs=inputs))
            below = result.raise_for_status().outputs
        return [[message.id, message.parent, message.root, message.correlation_id], *below]

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", descend)
        top, middle, leaf = (
            await dispatcher.run("coder", Message(id="top", inputs={"levels": "2"}))
        ).outputs
    assert top == ["top", "", "", ""]
    assert middle[1:] == ["top", "top", "top"]
    assert leaf[1:] == [middle[0], "top", "top"]


@within(10)
async def test_handlers_share_the_workers_dispatcher(swarm: Swarm) -> None:
    """Opened once, by two that ask at once; its statistics are those of all, and it stays open."""
    given: list[Dispatcher] = []
    both = trio.Event()

    async def handle(message: Message) -> str:
        dispatcher = await current_task().dispatcher()
        await dispatcher.run("echo", Message())
        given.append(dispatcher)
        if len(given) == 2:
            both.set()
        await both.wait()
        for close in (dispatcher.aclose, lambda: dispatcher.shutdown(1)):
            with pytest.raises(RuntimeError, match="this dispatcher is the worker's"):
                await close()
        return repr(dispatcher)

    async with swarm.worker(name="ada") as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        await worker.handle("echo", echo)
        async with dispatcher.open_group() as group:
            futures = [await group.start("coder", Message()) for _ in range(2)]
        told = [future.result.outputs for future in futures]
        assert told == ["<Dispatcher 'ada', 0 outstanding>"] * 2
        one, other = given
        assert one is not other
        assert one._core is other._core
        assert one.statistics() == other.statistics()
        assert one.statistics().started == 2
    for dispatcher in given:
        with pytest.raises(ClosedError, match="the dispatcher is closed"):
            await dispatcher.start("echo", Message())


@within(10)
async def test_tasks_below_say_who_has_submitted_them(swarm: Swarm) -> None:
    submitted: list[str] = []

    async def note(message: Message) -> None:
        submitted.append(message.submitted_by)

    async def handle(message: Message) -> None:
        await (await current_task().dispatcher()).run("note", Message())

    async with swarm.worker(name="ada") as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        await worker.handle("note", note)
        await dispatcher.run("coder", Message())
    assert submitted == ["ada"]


@within(20)
async def test_handler_that_cleans_up_can_use_it(swarm: Swarm) -> None:
    """Also in a worker that is being closed."""
    began, cleaning, closing = trio.Event(), trio.Event(), trio.Event()
    cleaned: list[object] = []

    async def handle(message: Message) -> None:
        dispatcher = await current_task().dispatcher()
        try:
            began.set()
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(5, shield=True):
                cleaning.set()
                await closing.wait()
                cleaned.append((await dispatcher.run("echo", Message())).status)
                again = await current_task().dispatcher()
                cleaned.append((await again.run("echo", Message())).status)

    async with swarm.dispatcher() as dispatcher, swarm.worker() as other:
        await other.handle("echo", echo)
        async with swarm.worker() as worker, trio.open_nursery() as nursery:
            await worker.handle("coder", handle)
            future = await dispatcher.start("coder", Message())
            await began.wait()
            await future.cancel()
            await cleaning.wait()
            nursery.start_soon(worker.aclose)
            await until(worker._closing.pulls_ended.is_set)
            closing.set()
        assert cleaned == [Status.SUCCESS, Status.SUCCESS]


@within(10)
async def test_dispatcher_that_can_not_be_opened(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks hears of it, and the next one tries again."""
    host, tries = _children.host_dispatcher, []

    def host_at_last(*args: object) -> AsyncIterator[Dispatcher]:
        tries.append(args)
        if len(tries) == 1:
            raise BrokerError("not permitted")
        return host(*args)  # type: ignore[arg-type, return-value]  # as they came

    async def handle(message: Message) -> object:
        return (await (await current_task().dispatcher()).run("echo", Message())).outputs

    monkeypatch.setattr(_children, "host_dispatcher", host_at_last)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        await worker.handle("echo", echo)
        assert (await dispatcher.run("coder", Message())).error == "not permitted"
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert len(tries) == 2


@within(10)
async def test_whoever_asks_is_cancelled_while_it_is_opened(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, tries = _children.host_dispatcher, []

    def host_slowly(*args: object) -> AsyncIterator[Dispatcher]:
        tries.append(args)
        if len(tries) == 1:
            asking.cancel()
        return host(*args)  # type: ignore[arg-type, return-value]  # as they came

    asking = trio.CancelScope()

    async def handle(message: Message) -> object:
        with asking:
            await current_task().dispatcher()
        assert asking.cancelled_caught
        return (await (await current_task().dispatcher()).run("echo", Message())).outputs

    monkeypatch.setattr(_children, "host_dispatcher", host_slowly)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        await worker.handle("echo", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert len(tries) == 2


@within(10)
async def test_failure_of_the_dispatcher_itself_ends_the_worker(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of what takes its tasks does."""
    host, failing = _children.host_dispatcher, trio.Event()

    async def fail() -> None:
        await failing.wait()
        raise BrokerError("lost for good")

    @asynccontextmanager
    async def host_for_a_while(broker: Broker, name: str) -> AsyncIterator[Dispatcher]:
        async with open_flat_nursery() as nursery, host(broker, name) as dispatcher:
            nursery.start_soon(fail)
            yield dispatcher

    async def handle(message: Message) -> None:
        await current_task().dispatcher()
        failing.set()
        await trio.sleep_forever()

    monkeypatch.setattr(_children, "host_dispatcher", host_for_a_while)
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(BrokerError, match="lost for good"):
            async with swarm.worker() as worker:
                await worker.handle("coder", handle)
                await dispatcher.start("coder", Message())
                await trio.sleep_forever()
