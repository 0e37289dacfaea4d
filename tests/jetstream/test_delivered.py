"""How far a durable has come, asked once for all whose tasks are cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
import trio.testing

from tests._helpers.brokers import NATSSwarm, echo, within
from tests._helpers.handlers import Waiting
from tests._helpers.proxy import open_proxy
from tests._helpers.stream_setup import make_durable
from trio_swarmtask import (
    Message,
    TaskState,
)
from trio_swarmtask._jetstream import _intake
from trio_swarmtask._jetstream._cancel import Delivered, Progress
from trio_swarmtask._nats._connection import NotConnected
from trio_swarmtask._nats._requests import NoAnswer

if TYPE_CHECKING:
    from trio_swarmtask.server import Server


@within(20)
async def test_stream_that_goes_while_it_is_asked(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered = Delivered.find

    async def delete_first(asked: Delivered, stream: str, capability: str) -> Progress | None:
        monkeypatch.undo()
        await raw.api("STREAM.DELETE.TASKS")
        return await delivered(asked, stream, capability)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        future = await dispatcher.start("coder", Message())
        monkeypatch.setattr(Delivered, "find", delete_first)
        assert not await dispatcher._core.futures.cancel(future, 0)


@within(20)
async def test_what_is_asked_where_many_are_cancelled(nats_swarm: NATSSwarm) -> None:
    """How far the durable has come is asked once for many, and nobody looks for what is not due."""
    asked: list[str] = []
    async with nats_swarm.worker() as gone:
        await gone.handle("coder", echo)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        raw.connection.subscribe("$JS.API.CONSUMER.INFO.>", lambda each: asked.append(each.subject))
        raw.connection.subscribe(
            "$JS.API.STREAM.MSG.GET.>", lambda each: asked.append(each.subject)
        )
        await raw.requests.echo()
        futures = [await dispatcher.start("coder", Message()) for _ in range(50)]
        async with trio.open_nursery() as nursery:
            for future in futures:
                nursery.start_soon(future.cancel)
        await raw.requests.echo()
        assert await raw.subjects("TASKS", ">") == []
    assert {future.state for future in futures} == {TaskState.STOPPED}
    assert 1 <= asked.count("$JS.API.CONSUMER.INFO.TASKS.work-coder") <= 10
    assert asked.count("$JS.API.STREAM.MSG.GET.TASKS") == 100  # before, and after


@within(20)
async def test_connection_that_is_lost_while_several_ask(server: Server) -> None:
    """What each had published before may be lost: all of them begin anew."""
    problems: list[Exception] = []

    async def ask() -> None:
        with pytest.raises((NoAnswer, NotConnected)) as raised:
            await delivered.find("TASKS", "coder")
        problems.append(raised.value)

    async with open_proxy(server.port) as proxy, NATSSwarm(proxy.url).raw() as raw:
        delivered = Delivered(raw.requests)
        proxy.freeze()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            proxy.cut()
    assert len(problems) == 3


@within(20)
async def test_one_who_asks_for_all_is_cancelled(server: Server) -> None:
    """Another one asks."""
    answers: list[Progress | None] = []

    async def ask() -> None:
        answers.append(await delivered.find("TASKS", "coder"))

    swarm = NATSSwarm(server.url)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
    async with open_proxy(server.port) as proxy, NATSSwarm(proxy.url).raw() as raw:
        delivered = Delivered(raw.requests)
        proxy.freeze()
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as first:
                first.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel_scope.cancel()
            assert answers == []
            proxy.thaw()
    assert [answer.sequence for answer in answers if answer] == [1]


# What a durable does not know


async def hang(*_: object) -> NoReturn:
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize("anew", [False, True])
@within(20)
async def test_durable_that_was_deleted(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    """Nothing that is known of the one in its place is true of what the first has delivered."""
    handler = Waiting(clean_up=0.5)
    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", handler)
        monkeypatch.setattr(_intake, "find_durable", hang)  # the worker does not make it anew
        async with dispatcher.open_group() as group:
            future = await group.start("coder", Message())
            await handler.started.wait()
            await raw.api("CONSUMER.DELETE.TASKS.work-coder")
            if anew:
                await make_durable(raw, "TASKS", "coder")
            group.cancel_scope.cancel()
        assert handler.clean_ups == 1
        assert future.state == TaskState.STOPPED


@within(20)
async def test_worker_says_more_than_the_server(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was killed has forgotten its last deliveries."""
    handler = Waiting(clean_up=0.5)

    async def forget(asked: Delivered, stream: str, capability: str) -> Progress:
        await handler.cancelled.wait()
        await raw.requests.echo()  # and the worker's answer is here
        return Progress("", 0)

    monkeypatch.setattr(Delivered, "find", forget)
    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        await future.cancel()  # which waits for nobody
        assert future.state == TaskState.UNCONFIRMED
        assert await dispatcher._core.futures.cancel(future, 10)
        assert future.state == TaskState.STOPPED
        assert handler.clean_ups == 1
