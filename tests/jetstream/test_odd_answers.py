"""Answers that a server gives rarely, or only in the middle of something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nats.errors
import pytest
import trio

from tests._helpers.brokers import Deaf, NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests.nats.test_connect import refusal
from trio_swarmtask import BrokerError, Message, NATSConfig, Status, open_broker
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import (
    _api,
    _delivery,
    _streams,
    _streams as _durables,
)
from trio_swarmtask._jetstream._api import APIError, call
from trio_swarmtask._jetstream._refusals import NO_STREAM
from trio_swarmtask._nats._client import Client
from trio_swarmtask._nats._connection import Connection, NotConnected, open_connection
from trio_swarmtask._nats._error_lines import Refusal
from trio_swarmtask._nats._requests import RefusedError

if TYPE_CHECKING:
    from types import ModuleType

    from trio_swarmtask._abc import Delivery
    from trio_swarmtask._jetstream._broker import NATSBroker
    from trio_swarmtask._nats._requests import Requests
    from trio_swarmtask.server import Server


def answer(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, request: str, error: APIError
) -> None:
    """Let the next API request that begins so be refused with this error."""
    errors = [error]

    async def answered(requests: Requests, name: str, /, **body: Any) -> dict[str, Any]:
        if name.startswith(request) and errors:
            raise errors.pop()
        return await call(requests, name, **body)

    monkeypatch.setattr(module, "call", answered)


ODD = APIError(400, 1, "an odd request")


@within(10)
async def test_odd_refusal_of_jetstream_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, _streams, "INFO", ODD)
    error = await refusal(NATSConfig(server.url), RefusedError)
    assert "refuses to say what JetStream may use: an odd request (code 1)" in str(error)


@within(10)
async def test_stream_that_goes_while_it_is_looked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = NATSSwarm(server.url)
    async with swarm.dispatcher():
        pass
    answer(monkeypatch, _streams, "STREAM.INFO", APIError(404, NO_STREAM, "stream not found"))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(10)
async def test_odd_refusal_of_a_streams_info_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = NATSSwarm(server.url)
    async with swarm.dispatcher():
        pass
    answer(monkeypatch, _streams, "STREAM.INFO", ODD)
    with pytest.raises(BrokerError, match=r"refuses to give a stream that holds done\.\*: an odd"):
        async with swarm.dispatcher():
            pass


@within(10)
async def test_durable_that_another_worker_makes_at_the_same_moment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = NATSSwarm(server.url)
    answer(monkeypatch, _durables, "CONSUMER.CREATE", APIError(400, 10148, "consumer exists"))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(10)
async def test_odd_refusal_of_a_look_up_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = NATSSwarm(server.url)
    async with swarm.raw() as raw:
        await raw.api("STREAM.CREATE.R", name="R", subjects=["done.>"], storage="memory")
    async with swarm.dispatcher() as dispatcher:
        answer(monkeypatch, _api, "STREAM.MSG.GET", ODD)
        with pytest.raises(BrokerError, match="refuses to look up task mine: an odd request"):
            await dispatcher.start("coder", Message(id="mine"))


@within(10)
async def test_odd_refusal_to_count_counts_for_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To stop for it would stop every worker in turn."""
    swarm = NATSSwarm(server.url)
    send, receive = trio.open_memory_channel[Any](1)
    async with (
        swarm.outbox() as outbox,
        swarm.open() as broker,
        broker.open_intake("coder", each(send.send_nowait)) as intake,
    ):
        await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(1)
        delivery = await receive.receive()
        answer(monkeypatch, _delivery, "STREAM.INFO", ODD)
        assert await delivery.count_given_back() == 0
    assert "refuses to look up the notes of task t1" in caplog.text


@within(10)
async def test_stream_of_dead_letters_of_a_lost_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no reason to go without one: it is the end."""

    async def lost(*_: object) -> None:
        raise BrokerError("lost for good")

    broker: NATSBroker
    async with open_broker(server.url) as broker:  # type: ignore[assignment]  # it is the NATS one
        monkeypatch.setattr(broker._streams, "find_or_make", lost)
        monkeypatch.setattr(broker.connection, "lost", BrokerError("lost for good"))
        with pytest.raises(BrokerError, match="lost for good"):
            await broker._streams.dead()
        monkeypatch.undo()


@within(10)
async def test_what_the_client_raises_at_once_is_the_reason(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise nats.errors.Error("an odd option")

    monkeypatch.setattr(Client, "connect", fail)
    error = await refusal(NATSConfig(server.url))
    assert str(error) == f"{server.url}: an odd option"


@within(10)
async def test_flush_that_fails_ends_the_wait_for_room(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(coroutine: Any) -> None:  # noqa: ANN401 - any
        coroutine.close()
        raise BrokerError("no answer")

    async with open_connection(NATSConfig(server.url)) as connection:
        monkeypatch.setattr(Connection, "is_congested", True)
        monkeypatch.setattr(connection, "call", fail)
        await connection.wait_room()
        monkeypatch.undo()


@within(10)
async def test_place_that_is_freed_while_the_connection_goes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull stands again, and asks for it."""

    def gone(*_: object) -> None:
        raise NotConnected

    swarm = NATSSwarm(server.url)
    send, receive = trio.open_memory_channel[Any](1)
    async with (
        swarm.outbox() as outbox,
        swarm.open() as broker,
        broker.open_intake("coder", each(send.send_nowait)) as intake,
    ):
        await until(lambda: intake._subscription is not None)  # type: ignore[attr-defined]  # it is the NATS one's
        with monkeypatch.context() as patch:
            patch.setattr(intake._connection, "publish", gone)  # type: ignore[attr-defined]  # it is the NATS one's
            intake.ask(1)
        await outbox.store(NewTask("coder", "t1", b"data"))
        assert (await receive.receive()).task_id == "t1"


@within(10)
async def test_hint_after_the_end_is_no_reason_to_look(server: Server) -> None:
    async with (
        open_broker(server.url) as broker,
        broker.open_outbox("key", lambda _: Deaf()) as outbox,
    ):
        outbox.close()
        outbox._on_hint("mine", None)  # type: ignore[attr-defined]  # it does not look at it


@within(10)
async def test_refusal_of_another_subject_is_nobodys(server: Server) -> None:
    deliveries: list[Delivery] = []
    async with (
        open_broker(server.url) as broker,
        broker.open_outbox("key", lambda _: Deaf()) as outbox,
    ):
        outbox.expect("mine")
        async with broker.open_intake("coder", each(deliveries.append)) as intake:
            for listener in broker.connection._listeners:  # type: ignore[attr-defined]  # it is the NATS one's
                listener.on_refused(Refusal("subscription", "notify.theirs"))
                listener.on_refused(Refusal("publish", "their.subject"))
            assert await outbox.store(NewTask("coder", "mine", b"data"))
            intake.ask(1)
            await until(lambda: deliveries)


@within(10)
async def test_stream_without_a_leader_is_what_it_was(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say what it is until there is one."""

    async def silent(requests: Requests, name: str, /, **body: Any) -> dict[str, Any]:
        if name.startswith("STREAM.INFO"):
            await trio.sleep_forever()
        return await call(requests, name, **body)

    broker: NATSBroker
    async with open_broker(server.url) as broker:  # type: ignore[assignment]  # it is the NATS one
        known = await broker._streams.results()
        monkeypatch.setattr(_streams, "call", silent)
        broker._streams.forget()
        assert await broker._streams.results() == known
