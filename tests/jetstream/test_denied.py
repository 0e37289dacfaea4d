"""Permissions that are missing for what is only wanted at times: the rest goes on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.stream_setup import make, make_durable
from tests.nats.test_permissions import permitting
from trio_swarmtask import BrokerError, Message, Status, open_dispatcher, open_worker
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import _outbox
from trio_swarmtask._jetstream._delivery import NATSDelivery, Settlement
from trio_swarmtask._jetstream._streams import JetStream, Streams

if TYPE_CHECKING:
    from pathlib import Path

    from tests._helpers.brokers import Raw


def make_settlement(raw: Raw) -> Settlement:
    async def doubt() -> float:
        return 0.0

    jetstream = JetStream(raw.requests, Streams(raw.connection, raw.requests))
    return Settlement(jetstream, "coder", 30, 0.0, doubt)


@within(20)
async def test_worker_without_an_echo_stops_all_the_same(tmp_path: Path) -> None:
    started = trio.Event()

    async def slow(message: Message) -> str:
        started.set()
        await trio.sleep(0.3)
        return "finished"

    async with (
        permitting(tmp_path, 'publish: {deny: ["_INBOX.>"]}') as (config, url),
        open_dispatcher(url) as dispatcher,
    ):
        async with open_worker(config) as worker:
            await worker.handle("coder", slow)
            future = await dispatcher.start("coder", Message())
            await started.wait()
        assert (await future.wait()).outputs == "finished"


@within(20)
async def test_dead_letter_that_may_not_be_kept_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        permitting(tmp_path, 'publish: {deny: ["dead.>", "back.>"]}') as (config, url),
        open_dispatcher(url) as dispatcher,
        open_worker(config) as worker,
    ):
        await worker.handle("coder", echo)
        async with NATSSwarm(url).outbox() as outbox:
            await outbox.store(NewTask("coder", "t1", b"not JSON"))
        result = await dispatcher.run("coder", Message(id="t1"))
        assert result.status == Status.FAILED
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert "a dead letter is lost" in caplog.text


@within(20)
async def test_newer_version_waits_where_no_notes_are_kept(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would pass the limit of deliveries, and be a dead letter."""
    monkeypatch.setattr("trio_swarmtask._worker._runner.NEWER_WORKER_DELAY", 0.1)
    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", retention="workqueue")
        await make(raw, "TASK_RESULTS", "done.>", allow_direct=True)
        await make_durable(raw, "TASKS", "coder")
        async with nats_swarm.outbox() as outbox:
            await outbox.store(NewTask("coder", "t1", b'{"version":2}'))
        nats_swarm.configure(manage_streams=False)
        async with nats_swarm.worker(max_deliveries=2) as worker:
            await worker.handle("coder", echo)
            await until(lambda: worker.statistics().given_back == 5)
            assert worker.statistics().dead_letters == 0
        assert await nats_swarm.count_tasks() == 1


@within(20)
async def test_renewal_that_nobody_hears_is_none(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        settlement = make_settlement(raw)
        delivery = NATSDelivery(
            settlement,
            "t1",
            b"",
            b"$JS.ACK.GONE.work-coder.1.1.1.1.0",
            1,
            math.inf,
            "",
            maybe_redelivered=False,
        )
        lease_until = delivery.lease_until
        delivery.renew()
        await until(lambda: not raw.requests._waiting)
        assert delivery.lease_until == lease_until
        assert await delivery.doubt() == 0


@within(20)
async def test_sweep_that_is_not_permitted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 0.1)
    denied = 'publish: {deny: ["$JS.API.DIRECT.GET.TASK_RESULTS"]}'
    async with (
        permitting(tmp_path, denied) as (config, url),
        open_dispatcher(config) as dispatcher,
        open_worker(url) as worker,
    ):
        future = await dispatcher.start("coder", Message())
        await until(lambda: "results that were missed can't be looked up" in caplog.text)
        await worker.handle("coder", echo)
        assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_results_that_may_not_be_heard_one_by_one(tmp_path: Path) -> None:
    async with permitting(tmp_path, 'subscribe: {deny: ["done.>"]}') as (config, url):
        async with NATSSwarm(url).raw() as raw:
            await raw.api("STREAM.DELETE.TASK_RESULTS")
            await make(raw, "RESULTS", "done.>")
        with pytest.raises(BrokerError, match=r"not permit this user to subscribe to done\."):
            async with open_dispatcher(config):
                pass


@pytest.mark.parametrize("limits", [{"max_batch": 3}, {"max_expires": 2_000_000_000}])
@within(20)
async def test_durable_that_limits_pulls_is_asked_for_less(
    nats_swarm: NATSSwarm, limits: dict[str, Any]
) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", retention="workqueue")
        await make_durable(raw, "TASKS", "coder", **limits)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        futures = [await dispatcher.start("coder", Message()) for _ in range(20)]
        assert {(await future.wait()).attempt for future in futures} == {1}


@within(20)
async def test_durable_that_limits_deliveries_is_refused(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", retention="workqueue")
        await make_durable(raw, "TASKS", "coder", max_deliver=3)
    async with nats_swarm.worker() as worker:
        with pytest.raises(BrokerError, match="delivers a task 3 times at most"):
            await worker.handle("coder", echo)


# Lost for good in the middle of it: that is the end, and nothing to be told and passed over


LOST = BrokerError("lost for good")


async def lose(*_: object) -> NoReturn:
    raise LOST


@within(20)
async def test_dead_letter_when_the_connection_is_lost(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nats_swarm.raw() as raw:
        settlement = make_settlement(raw)
        reply = b"$JS.ACK.T.D.1.1.1.1.0"
        delivery = NATSDelivery(
            settlement, "t1", b"", reply, 1, math.inf, "", maybe_redelivered=False
        )
        monkeypatch.setattr(Streams, "persist", lose)
        monkeypatch.setattr(raw.connection, "lost", LOST)
        with pytest.raises(BrokerError, match="lost for good"):
            await delivery.bury("no reason", None)
        monkeypatch.undo()


@within(20)
async def test_sweep_when_the_connection_is_lost(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_in_the_middle(outbox: _outbox.NATSOutbox) -> NoReturn:
        monkeypatch.setattr(outbox._connection, "lost", LOST)
        raise LOST

    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(_outbox.NATSOutbox, "_sweep", lose_in_the_middle)
    with pytest.raises(BrokerError, match="lost for good"):
        async with nats_swarm.dispatcher():
            await trio.sleep_forever()


@within(20)
async def test_opening_that_ends_before_it_has_begun(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_outbox.NATSOutbox, "begin", lose)
    with pytest.raises(BrokerError, match="lost for good"):
        async with nats_swarm.dispatcher():
            pass
