"""The headers of ours that a task may have: whatever stands in them is that task's matter alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.handlers import Waiting
from tests._helpers.plain_nats import PlainClient, open_plain_client
from tests._helpers.proxy import open_proxy
from tests.nats.test_permissions import permitting
from trio_swarmtask import BrokerError, Message, Status, open_dispatcher, open_worker
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import _delivery
from trio_swarmtask._jetstream._api import APIError
from trio_swarmtask._jetstream._delivery import NATSDelivery
from trio_swarmtask._jetstream._group_leases import GroupLeases
from trio_swarmtask._jetstream._intake import NATSIntake

if TYPE_CHECKING:
    from pathlib import Path

    from trio_swarmtask._abc import Delivery
    from trio_swarmtask._nats._requests import Requests
    from trio_swarmtask.server import Server

NAMES: Final = (
    b"Swarm-Lease",
    b"Swarm-Seconds-Left",
    b"Swarm-Schedule",
    b"Swarm-Reason",
    b"Swarm-Deliveries",
    b"Swarm-Expires",
    b"Swarm-",
)
VALUES: Final = {
    "absent": [],
    "empty": [b""],
    "a name": [b"x"],
    "doubled": [b"x", b"y"],
    "doubled number": [b"5", b"0"],
    "a wildcard": [b"*"],
    "many tokens": [b"a.b.>"],
    "huge": [b"x" * 60_000],
    "a huge number": [b"9" * 5000],
    "not ASCII": ["naïve ☃".encode()],
    "not UTF-8": [b"\xff\xfe\xc3"],
    "digits of another script": ["٣".encode()],
    "NaN": [b"nan"],
    "infinity": [b"inf"],
    "less than nothing": [b"-inf"],
    "negative": [b"-1"],
    "nothing": [b"0"],
    "the least": [b"1e-320"],
    "more than a float": [b"1e400"],
    "the most": [b"1e308"],
    "a control character": [b"\0\x0b\x7f"],
}


async def send(client: PlainClient, task_id: str, headers: list[tuple[bytes, bytes]]) -> None:
    lines = [b"%b: %b\r\n" % header for header in headers]
    block = b"NATS/1.0\r\n" + b"".join(lines) + b"\r\n"
    await client.publish(f"work.coder.{task_id}", Message(id=task_id).encode(), block)


@pytest.mark.parametrize("streams", ["leases", "none"])
@pytest.mark.parametrize("kind", VALUES)
@within(30)
async def test_header_of_ours_that_is_hostile(
    server: Server, nats_swarm: NATSSwarm, streams: str, kind: str
) -> None:
    """No worker ends, a good task is served after it, and each of them has come to an end."""
    if streams == "leases":
        async with nats_swarm.outbox() as outbox:
            await outbox.renew_group_lease("y")
    async with nats_swarm.dispatcher(), nats_swarm.worker() as worker:
        await worker.handle("coder", echo)  # all that is needed, but a stream of leases
    nats_swarm.configure(manage_streams=False)
    async with (
        open_plain_client(server.port) as client,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", echo)
        values = VALUES[kind]
        for number, name in enumerate(NAMES):
            await send(client, f"t{number}", [(name, value) for value in values])
        await send(client, "all", [(name, value) for name in NAMES for value in values])
        # A firing of a schedule has the name of that as its ID.
        await send(
            client, "nightly", [(b"Swarm-Schedule", value) for value in (*values, b"nightly")]
        )
        await client.flush()
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        await nats_swarm.wait_until_empty()
        assert worker.statistics().dead_letters == 0
    assert await nats_swarm.dead_letters() == {}


@within(20)
async def test_lease_where_there_are_none(nats_swarm: NATSSwarm) -> None:
    """A lease that is in no stream has lapsed; the worker makes no stream for it."""
    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", echo)
        await raw.store("work.coder.t1", Message(id="t1").encode(), {"Swarm-Lease": "x"})
        result = await (await dispatcher.attach("t1")).wait()
        assert result.cancelled_by == worker.name
        assert result.duration < 1000
        assert (await raw.api("STREAM.NAMES", subject="lease.*"))["streams"] is None


@pytest.mark.parametrize("request_", ["STREAM.INFO", "STREAM.MSG.GET"])
@within(20)
async def test_lease_that_may_not_be_looked_up(
    tmp_path: Path, request_: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The task is answered as failed, so that its sender hears; others are done."""
    denied = f'publish: {{deny: ["$JS.API.{request_}.TASK_LEASES"]}}'
    async with (
        permitting(tmp_path, denied) as (config, url),
        open_dispatcher(url) as dispatcher,
        open_worker(config) as worker,
    ):
        await worker.handle("coder", echo)
        async with dispatcher.open_group(orphans="cancel", on_failure="collect") as group:
            result = await group.run("coder", Message())
        assert result.error == "its worker can't look up the lease of its group"
        assert result.duration < 1000
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert worker.statistics().failed == 1
    assert f"task {result.id} of coder has failed: its lease can't be looked up: " in caplog.text


async def hang(*_: object) -> NoReturn:
    await trio.sleep_forever()
    raise AssertionError


@within(20)
async def test_lease_that_can_not_be_looked_up_now(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their stream has no leader, say. The task is put off, and has no place of the worker's."""
    monkeypatch.setattr(_delivery, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr("trio_swarmtask._worker._runner.NEWER_WORKER_DELAY", 0.2)
    find = GroupLeases.find
    monkeypatch.setattr(GroupLeases, "find", hang)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker(max_deliveries=2) as worker:
        await worker.handle("coder", echo, max_in_flight=1)
        async with dispatcher.open_group(orphans="cancel") as group:
            future = await group.start("coder", Message())
            await until(lambda: worker.statistics().given_back == 3)
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
            monkeypatch.setattr(GroupLeases, "find", find)
            assert (await future.wait()).status == Status.SUCCESS
    assert f"put off task {future.id} of coder: its lease can't be looked up now" in caplog.text
    assert await nats_swarm.dead_letters() == {}


@within(20)
async def test_lease_that_is_looked_up_in_an_outage(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is waited for: nobody else could have the place."""
    monkeypatch.setattr(_delivery, "_LOOK_SECONDS", 0.2)
    looking, find = trio.Event(), GroupLeases.find

    async def cut_first(leases: GroupLeases, names: list[str]) -> set[str]:
        if not looking.is_set():
            looking.set()
            proxy.cut(for_good=True)
        return await find(leases, names)

    async with (
        open_proxy(server.port) as proxy,
        open_dispatcher(server.url) as dispatcher,
        open_worker(proxy.url) as worker,
    ):
        await worker.handle("coder", echo)
        monkeypatch.setattr(GroupLeases, "find", cut_first)
        async with dispatcher.open_group(orphans="cancel") as group:
            future = await group.start("coder", Message())
            await looking.wait()
            with trio.move_on_after(0.5) as longer_than_a_look:
                await future.wait()
            assert longer_than_a_look.cancelled_caught
            proxy.mend()
            assert (await future.wait()).attempt == 1


@pytest.mark.parametrize("trouble", ["hangs", "is refused"])
@within(20)
async def test_leases_in_trouble_hide_no_cancellation(
    nats_swarm: NATSSwarm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    """What runs without one is looked for as ever; what has one runs on."""
    looks = 0

    async def look(intake: NATSIntake, names: set[str]) -> NoReturn:
        nonlocal looks
        looks += 1
        if trouble == "is refused":
            raise BrokerError("no leases today")
        await hang()

    monkeypatch.setattr(NATSIntake, "find_group_leases", look)
    nats_swarm.configure(ack_wait=1)
    handler = Waiting()
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", handler)
        async with dispatcher.open_group(orphans="cancel") as group:
            await group.start("coder", Message())
            await handler.started.wait()
            future = await dispatcher.start("coder", Message())
            await until(lambda: handler.running == 2)
            await until(lambda: looks > (2 if trouble == "is refused" else 0))
            await nats_swarm.store_result(future.id, b'{"version":1,"status":"success"}')
            await until(lambda: handler.running == 1)
            group.cancel_scope.cancel()
    assert caplog.text.count("no leases today") == (trouble == "is refused")


@within(20)
async def test_deadline_that_can_not_be_measured(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the clocks as they were it has passed: so the task is not started."""

    async def refuse(delivery: NATSDelivery) -> NoReturn:
        raise BrokerError("no time today")

    monkeypatch.setattr(NATSDelivery, "measure_deadline", refuse)
    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", echo)
        await raw.store("work.coder.t1", Message(id="t1").encode(), {"Swarm-Seconds-Left": "0"})
        assert (await (await dispatcher.attach("t1")).wait()).past_deadline
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert "can't measure the deadline of task t1 of coder: no time today" in caplog.text


@pytest.mark.parametrize("lost", [False, True])
@within(20)
async def test_notes_that_may_not_be_counted(
    nats_swarm: NATSSwarm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lost: bool,
) -> None:
    """Each delivery counts as a failure then; the worker lives on, unless the server is lost."""

    async def refuse(requests: Requests, request: str, /, **body: object) -> NoReturn:
        raise APIError(400, 10999, "no counts today")

    arrived: list[Delivery] = []
    async with nats_swarm.outbox() as outbox, nats_swarm.open() as broker:
        await outbox.store(NewTask("coder", "t1", b"data"))
        async with broker.open_intake("coder", each(arrived.append)) as intake:
            intake.ask(1)
            await until(lambda: arrived)
            monkeypatch.setattr(_delivery, "call", refuse)
            if lost:
                monkeypatch.setattr(broker.connection, "lost", BrokerError("for good"))  # type: ignore[attr-defined]  # it has one
                with pytest.raises(BrokerError, match="no counts today"):
                    await arrived[0].count_retries()
                monkeypatch.undo()
            else:
                assert await arrived[0].count_given_back() == 0
                assert "so each delivery counts as a failure: nats://" in caplog.text
