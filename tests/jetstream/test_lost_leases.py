"""A worker that comes back from an outage longer than its leases: what was its own is another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.proxy import open_proxy
from trio_swarmtask import Message, NATSConfig, Retry, Status, open_dispatcher, open_worker
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream._delivery import NATSDelivery
from trio_swarmtask._jetstream._results import ResultStore

if TYPE_CHECKING:
    import pytest

    from trio_swarmtask._abc import Delivery
    from trio_swarmtask._nats._protocol import Incoming
    from trio_swarmtask.server import Server

ACK_WAIT = 1.0


@within(30)
async def test_failure_in_an_outage_that_outlasts_the_lease(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The task runs at another worker by then. To put it back would hand it out a third time."""
    answers: list[bytes] = []
    begun: list[str] = []
    go_on = trio.Event()

    def note(ack: Incoming) -> None:
        answers.append(ack.data)

    async def fail(message: Message) -> None:
        begun.append("a")
        proxy.cut(for_good=True)
        raise OSError("while cut off")

    async def wait(message: Message) -> str:
        begun.append("b")
        await go_on.wait()
        return "done"

    retry = Retry(on=OSError, first_delay=0.01)
    async with (
        open_proxy(server.port) as proxy,
        NATSSwarm(server.url).raw() as raw,
        open_dispatcher(server.url) as dispatcher,
        open_worker(NATSConfig(proxy.url, ack_wait=ACK_WAIT)) as a,
        open_worker(NATSConfig(server.url, ack_wait=ACK_WAIT)) as b,
    ):
        raw.connection.subscribe("$JS.ACK.>", note)
        await a.handle("coder", fail, retry=retry)
        await a.handle("other", echo)
        future = await dispatcher.start("coder", Message(max_attempts=3))
        await until(lambda: begun == ["a"])
        await b.handle("coder", wait, retry=retry)
        await until(lambda: begun == ["a", "b"])
        proxy.mend()
        # What it would have sent, it sent before this.
        assert (await dispatcher.run("other", Message())).agent == a.name
        await until(lambda: a.statistics().in_flight == 0)
        go_on.set()
        assert (await future.wait()).attempt == 2
        await NATSSwarm(server.url).wait_until_empty()
        assert not [answer for answer in answers if answer.startswith(b"-NAK")]
        assert (a.statistics().leases_lost, a.statistics().retried) == (1, 0)
        assert await raw.subjects("TASK_DEAD", "back.>") == []
    assert begun == ["a", "b"]


@within(30)
async def test_dead_letter_in_an_outage_that_outlasts_the_lease(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has kept it by then."""
    bury = NATSDelivery.bury
    cut = trio.Event()

    async def cut_first(delivery: NATSDelivery, reason: str, result: bytes | None) -> bool:
        if not cut.is_set():
            cut.set()
            proxy.cut(for_good=True)
        return await bury(delivery, reason, result)

    monkeypatch.setattr(NATSDelivery, "bury", cut_first)
    swarm = NATSSwarm(server.url)
    async with (
        open_proxy(server.port) as proxy,
        swarm.outbox() as outbox,
        swarm.raw() as raw,
        open_dispatcher(server.url) as dispatcher,
        open_worker(NATSConfig(proxy.url, ack_wait=ACK_WAIT)) as a,
        open_worker(NATSConfig(server.url, ack_wait=ACK_WAIT)) as b,
    ):
        await a.handle("coder", echo)
        await a.handle("other", echo)
        await outbox.store(NewTask("coder", "t1", b"no JSON"))
        await cut.wait()
        await b.handle("coder", echo)
        assert (await dispatcher.run("coder", Message(id="t1"))).status == Status.FAILED
        await swarm.wait_until_empty()
        assert (b.statistics().dead_letters, a.statistics().leases_lost) == (1, 1)
        proxy.mend()
        assert (await dispatcher.run("other", Message())).agent == a.name
        await until(lambda: a.statistics().in_flight == 0)
        assert a.statistics().dead_letters == 0
        assert (await raw.api("STREAM.INFO.TASK_DEAD"))["state"]["messages"] == 1


@within(20)
async def test_lease_that_lapses_while_a_dead_letter_is_answered(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result counts, if it is the first; the task is another's to end."""
    arrived: list[Delivery] = []
    answers: list[bytes] = []
    put = ResultStore.put

    async def lapse(results: ResultStore, task_id: str, result: bytes) -> bool:
        arrived[0].lease_until = trio.current_time()
        return await put(results, task_id, result)

    monkeypatch.setattr(ResultStore, "put", lapse)
    async with nats_swarm.outbox() as outbox, nats_swarm.raw() as raw, nats_swarm.open() as broker:
        raw.connection.subscribe("$JS.ACK.>", lambda ack: answers.append(ack.data))
        await raw.requests.echo()
        await outbox.store(NewTask("coder", "t1", b"no JSON"))
        async with broker.open_intake("coder", each(arrived.append)) as intake:
            intake.ask(1)
            await until(lambda: arrived)
            assert await arrived[0].bury("no JSON", b"{}")
            await intake.stop()  # what it had sent has been served
            await raw.requests.echo()
    assert answers == []
