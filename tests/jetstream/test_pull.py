"""The standing pull and the outbox: statuses, silence, and closing at odd moments."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests._helpers.brokers import Deaf, NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.nats_servers import kill, listening
from tests._helpers.plain_nats import open_plain_client
from tests._helpers.proxy import HOST, OneWay
from tests._helpers.stream_setup import make
from trio_swarmtask import (
    ClosedError,
    Message,
    NATSConfig,
    Status,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import _intake, _streams as _durables
from trio_swarmtask._jetstream._intake import NATSIntake
from trio_swarmtask._jetstream._outbox import NATSOutbox
from trio_swarmtask._nats import _requests
from trio_swarmtask._nats._connection import NotConnected
from trio_swarmtask._nats._error_lines import Refusal
from trio_swarmtask._nats._protocol import Incoming

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from trio_swarmtask._abc import Delivery
    from trio_swarmtask.server import Server


GONE = b"NATS/1.0 409 Gone\r\n\r\n"


async def serve(config: NATSConfig, *, task_status: trio.TaskStatus[None]) -> None:
    async with open_worker(config) as worker:
        await worker.handle("coder", echo)
        task_status.started()
        await trio.sleep_forever()


@within(30)
async def test_missed_heartbeats(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pull that the server has forgotten, with the connection up: it is begun anew."""
    monkeypatch.setattr(_intake, "_LOOK_SECONDS", 0.15)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        await until(lambda: "no heartbeat of the pull of coder" in caplog.text)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(30)
async def test_pull_that_expires_is_asked_anew(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """408 after `expires`."""
    monkeypatch.setattr(_durables, "_EXPIRES", 1)
    monkeypatch.setattr(_intake, "_HEARTBEAT", 0)
    statuses: list[str] = []
    on_status = NATSIntake._on_status

    def note(self: NATSIntake, message: Msg, status: str) -> None:
        statuses.append(status)
        on_status(self, message, status)

    monkeypatch.setattr(NATSIntake, "_on_status", note)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        await until(lambda: statuses.count("408") > 1)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@pytest.mark.parametrize("closes", [False, True])
@within(20)
async def test_task_that_is_under_way_as_the_pull_ends(server: Server, closes: bool) -> None:
    """It is run, and not leased to nobody for `ack_wait`. A worker that closes gives it back."""
    link = OneWay(server.port)
    async with listening(link.serve) as port:
        config = NATSConfig(f"nats://{HOST}:{port}", ack_wait=3600)
        async with (
            open_plain_client(server.port) as client,
            open_worker(config) as worker,
            open_dispatcher(server.url) as dispatcher,
            trio.open_nursery() as nursery,
        ):
            await worker.handle("coder", echo)
            intakes = [one for one in gc.get_objects() if isinstance(one, NATSIntake)]
            [intake] = [one for one in intakes if one._connection.is_up]
            link.free = trio.Event()
            future = await dispatcher.start("coder", Message())
            while not (await client.api("CONSUMER.INFO.TASKS.work-coder"))["num_ack_pending"]:
                pass  # it is on its way
            async with open_plain_client(server.port) as other:
                echoes = await other.subscribe("_INBOX.>")
                await other.flush()
                intake._on_message(Incoming(intake._inbox.encode(), None, GONE, b""))
                await echoes.receive()  # behind the end of the pull
            if closes:
                nursery.start_soon(worker.shutdown, 10)
                await trio.testing.wait_all_tasks_blocked()
            link.free.set()
            if closes:
                await nursery.start(serve, config)
            assert (await future.wait()).status == Status.SUCCESS
            nursery.cancel_scope.cancel()


@within(20)
async def test_intake_that_is_stopped_twice_or_while_away(server: Server) -> None:
    got: list[Delivery] = []
    swarm = NATSSwarm(server.url)
    async with swarm.open() as broker, broker.open_intake("coder", each(got.append)) as intake:
        intake.ask(1)
        await intake.stop()
        await intake.stop()
        intake.ask(1)  # nothing stands
    async with swarm.open() as broker, broker.open_intake("coder", each(got.append)) as intake:
        assert isinstance(intake, NATSIntake)
        kill(server)
        await until(lambda: not intake._connection.is_up)
        intake.ask(1)
        await intake.stop()
    assert got == []


@within(20)
async def test_connection_goes_while_a_pull_is_topped_up(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull begins anew, and asks for all of its free places."""
    arrived = trio.Event()

    def refuse(*_: object) -> None:
        raise NotConnected

    async with (
        nats_swarm.open() as broker,
        broker.open_intake("coder", each(lambda _: arrived.set())) as intake,
    ):
        assert isinstance(intake, NATSIntake)
        with monkeypatch.context() as patch:
            patch.setattr(intake._connection, "publish", refuse)
            intake.ask(1)
        async with nats_swarm.outbox() as outbox:
            await outbox.store(NewTask("coder", "t", b"{}"))
            await arrived.wait()


@within(20)
async def test_refusal_of_something_else_while_subscribing(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_echo = _requests.Requests.echo

    async def echo_after_a_refusal(self: _requests.Requests) -> None:
        for listener in list(self.connection._listeners):
            listener.on_refused(Refusal("publish", "elsewhere"))
        await real_echo(self)

    monkeypatch.setattr(_requests.Requests, "echo", echo_after_a_refusal)
    async with nats_swarm.dispatcher() as dispatcher:
        await dispatcher.start("coder", Message())


@within(20)
async def test_outbox_that_is_closed_twice(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "ANSWERS", "done.>")
        async with nats_swarm.open() as broker, broker.open_outbox("k", lambda _: Deaf()) as outbox:
            assert isinstance(outbox, NATSOutbox)
            outbox.expect("a-b")
            outbox.close()
            outbox.close()
            outbox.forget("gone")
            await raw.store("done.a-b", b"")
            await raw.requests.echo()
            with pytest.raises(ClosedError, match="closed meanwhile"):
                await outbox.fetch("a-b")
