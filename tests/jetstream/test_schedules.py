"""Schedules, as a real server keeps them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.nats_servers import kill, restarted
from trio_swarmtask import BrokerError, Message, Status, TaskState, open_dispatcher
from trio_swarmtask._cron import parse_cron
from trio_swarmtask._jetstream import _schedules
from trio_swarmtask._jetstream._api import APIError, publish
from trio_swarmtask._schedule import Plan

if TYPE_CHECKING:
    from tests._helpers.api_client import Raw
    from trio_swarmtask._abc import Delivery
    from trio_swarmtask._jetstream._api import PubAck
    from trio_swarmtask._nats._requests import Requests
    from trio_swarmtask.server import Server

pytestmark = pytest.mark.needs_schedules

EXPRESSIONS = """
* * * * * *|0 0 0 * * *|*/10 * * * * *|0/10 * * * * *|0 0 0 ? * MON|0 0 0 ? * mon-fri|? * * * * *
0 0 0 1 JAN *|0 0 0 1 jan ?|0 0 0 * * 0|1,2,3-5/2 * * * * *|*/70 * * * * *|1-5/10 * * * * *
01 * * * * *|*,5 * * * * *|?/5 * * * * *|0 ? * * * *|0 0 0 1,15 * ?|0 0 0 29 2 *|0 0 0 30 2 1
5/10 * * * * *|0 0 9-17 * * *|0 0 0 */2 feb-apr sun,WED
* * * * *|0 0 0 * * 7|0 0 0 31 2 *|0 0 0 30 2 ?|0 0 0 L * *|0 0 0 * * 1#2|0 0 0 1W * *|60 * * * * *
0 60 * * * *|0 0 24 * * *|0 0 0 0 * *|0 0 0 32 * *|0 0 0 * 13 *|0 0 0 * 0 *|5-1 * * * * *
*/0 * * * * *|a * * * * *|0 0 0 * * * *|0 0 0 * January *|TZ=UTC 0 0 0 * * *|1--2 * * * * *
1-2-3 * * * * *|1/2/3 * * * * *|5/5-9 * * * * *|0 0 0 * * fri-mon|0 0 0 * * sunday|@reboot
"""


async def queue_of(raw: Raw) -> None:
    await raw.api(
        "STREAM.CREATE.TASKS",
        name="TASKS",
        subjects=["work.>"],
        retention="workqueue",
        allow_msg_schedules=True,
    )


async def put(raw: Raw, name: str, data: bytes, timing: str, marked: str | None = None) -> None:
    """A schedule, as another program may register one."""
    headers = {
        "Nats-Schedule": timing,
        "Nats-Schedule-Target": f"work.coder.{name}",
        "Swarm-Schedule": name if marked is None else marked,
    }
    await raw.store(f"work.coder.{name}.later", data, headers)


@within(20)
async def test_server_takes_what_is_accepted_here(nats_swarm: NATSSwarm) -> None:
    """And refuses what is refused here."""
    async with nats_swarm.raw() as raw:
        await queue_of(raw)
        for text in EXPRESSIONS.strip().replace("\n", "|").split("|"):
            try:
                fits = parse_cron(text).after(datetime.now(UTC)) is not None
            except ValueError:
                fits = False
            if fits:
                await put(raw, "tick", b"", text)
            else:
                with pytest.raises(APIError, match="pattern is invalid"):
                    await put(raw, "tick", b"", text)


@within(20)
async def test_wire(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.dispatcher(name="boss") as dispatcher, nats_swarm.raw() as raw:
        await dispatcher.schedule("tick", "coder", Message(inputs={"a": "b"}), every=90)
        answer = await raw.api("STREAM.MSG.GET.TASKS", last_by_subj="work.coder.tick.later")
        message = answer["message"]
        headers = msgspec.json.decode(f'"{message["hdrs"]}"', type=bytes).decode()
        assert "\r\nNats-Schedule: @every 90s\r\n" in headers
        assert "\r\nNats-Schedule-Target: work.coder.tick\r\n" in headers
        assert "\r\nSwarm-Schedule: tick\r\n" in headers
        envelope = Message.decode(msgspec.json.decode(f'"{message["data"]}"', type=bytes))
        assert (envelope.id, envelope.inputs) == ("tick", {"a": "b"})
        assert envelope.submitted_by == "boss"


@within(30)
async def test_schedule_outlives_a_killed_server(server: Server) -> None:
    ids: list[str] = []

    async def handle(message: Message) -> None:
        ids.append(message.id)

    async with open_dispatcher(server.url) as dispatcher:
        await dispatcher.schedule("tick", "coder", Message(), every=1)
        kill(server)
        async with restarted(server) as again, NATSSwarm(again.url).worker() as worker:
            await worker.handle("coder", handle)
            await until(lambda: len(ids) >= 2)
            await dispatcher.schedule("tick", "coder", Message(), every=1)
            assert len(await dispatcher.schedules()) == 1
    assert len(set(ids)) == len(ids)


@within(20)
async def test_firing_that_waits_is_not_started_once_it_is_cancelled(
    nats_swarm: NATSSwarm,
) -> None:
    """It can't be taken out of the queue; whoever gets it finds its result."""
    deliveries: list[Delivery] = []
    started: list[str] = []

    async def handle(message: Message) -> None:
        started.append(message.id)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.open() as broker:
        await dispatcher.schedule("tick", "coder", Message(), every=1)
        async with broker.open_intake("coder", each(deliveries.append)) as intake:
            intake.ask(1)
            await until(lambda: deliveries)
            await dispatcher.unschedule("tick")
            task_id = deliveries[0].task_id
            assert deliveries[0].maybe_redelivered
            await intake.stop()
            future = await dispatcher.attach(task_id)
            await future.cancel()
            assert future.state == TaskState.UNCONFIRMED
            assert (await future.wait()).cancelled_by
            await deliveries[0].give_back()
        async with nats_swarm.worker() as worker:
            await worker.handle("coder", handle)
            await nats_swarm.wait_until_empty()
        assert started == []


@within(20)
async def test_what_others_have_put_there_is_passed_over(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await queue_of(raw)
        good = Message(id="good", inputs={"a": "b"}).encode()
        await put(raw, "good", good, "0 0 0 * * *")
        await put(raw, "hourly", good, "@hourly")
        await put(raw, "other", good, "@every 60s", marked="another")
        await put(raw, "broken", b"no JSON", "@every 60s")
        await put(raw, "new", b'{"version":2}', "@every 60s")
        await put(raw, "a:b", good, "@every 60s")
        (schedule,) = await dispatcher.schedules()
        assert (schedule.name, schedule.cron) == ("good", "0 0 0 * * *")
        assert schedule.message.inputs == {"a": "b"}
        for what in ("hourly.later", "other.later", "a:b.later", "schedule broken", "schedule new"):
            assert (
                f"passed over {'the schedule on work.coder.' if '.' in what else ''}" in caplog.text
            )
            assert what in caplog.text
        # They are replaced, and ended, by their names.
        for name in ("hourly", "broken"):
            await dispatcher.schedule(name, "coder", Message(), every=60)
        assert len(await dispatcher.schedules()) == 3
        assert await dispatcher.unschedule("new")


@within(20)
async def test_garbage_that_a_schedule_starts_is_a_dead_letter(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await queue_of(raw)
        for name, data in (("text", b"no JSON"), ("other", Message(id="it").encode())):
            await put(raw, name, data, "@every 1s")
        # Marked with a name that is not its own it is a task like any other.
        marked = {"Swarm-Schedule": "somebody"}
        await raw.store("work.coder.plain", Message(id="plain").encode(), marked)
        async with nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            plain = await dispatcher.attach("plain")
            assert (await plain.wait()).status == Status.SUCCESS
            await until(lambda: worker.statistics().dead_letters >= 2)
            for name in ("text", "other"):
                await dispatcher.unschedule(name)
            await nats_swarm.wait_until_empty()
        for task_id in await nats_swarm.dead_letters():
            future = await dispatcher.attach(task_id)
            assert task_id.startswith(("text-", "other-"))
            assert "dead letter" in (await future.wait()).error


@within(20)
async def test_server_that_refuses_a_schedule(nats_swarm: NATSSwarm) -> None:
    """One that was accepted here: versions may differ in what they read."""
    async with nats_swarm.outbox() as outbox:
        plan = Plan("tick", "coder", Message(id="tick").encode(), cron="0 0 0 31 2 *")
        with pytest.raises(BrokerError, match=r"does not take '0 0 0 31 2 \*' for schedule tick"):
            await outbox.timetable.put(plan)


@within(20)
async def test_queue_that_refuses_to_let_it_go(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        settings = {"subjects": ["work.>"], "retention": "workqueue", "deny_delete": True}
        await raw.api("STREAM.CREATE.TASKS", name="TASKS", allow_msg_schedules=True, **settings)
        await dispatcher.schedule("tick", "coder", Message(), every=60)
        with pytest.raises(BrokerError, match=r"schedule on work\.coder\.tick\.later be taken out"):
            await dispatcher.unschedule("tick")


@within(20)
async def test_one_who_is_ahead_is_seen(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody registers between the look and the publish; the later call counts."""

    async def be_late(
        requests: Requests, subject: str, data: bytes, headers: dict[str, str]
    ) -> PubAck:
        monkeypatch.undo()
        await other.schedule("tick", "coder", Message(inputs={"of": "other"}), every=60)
        return await publish(requests, subject, data, headers)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.dispatcher() as other:
        await dispatcher.schedule("tick", "coder", Message(), every=60)
        monkeypatch.setattr(_schedules, "publish", be_late)
        await dispatcher.schedule("tick", "coder", Message(inputs={"of": "mine"}), every=60)
        (schedule,) = await dispatcher.schedules()
        assert schedule.message.inputs == {"of": "mine"}


@within(20)
@pytest.mark.parametrize("capability", ["coder", "writer"])
async def test_of_two_that_stand_one_is_left(nats_swarm: NATSSwarm, capability: str) -> None:
    """Two who disagreed registered at once, and died."""
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        await dispatcher.schedule("tick", "writer", Message(), every=60)
        await put(raw, "tick", Message(id="tick").encode(), "@every 60s")
        assert len(await raw.subjects("TASKS", "work.*.tick.later")) == 2
        await dispatcher.schedule("tick", capability, Message(), every=60)
        assert await raw.subjects("TASKS", "work.*.tick.later") == [f"work.{capability}.tick.later"]


@within(20)
async def test_schedule_that_moves_never_stands_twice(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or both would fire in one second, and give two tasks one ID."""
    standing = []

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:

        async def look(
            requests: Requests, subject: str, data: bytes, headers: dict[str, str]
        ) -> PubAck:
            standing.append(await raw.subjects("TASKS", "work.*.tick.later"))
            return await publish(requests, subject, data, headers)

        await dispatcher.schedule("tick", "coder", Message(), cron="* * * * * *")
        monkeypatch.setattr(_schedules, "publish", look)
        await dispatcher.schedule("tick", "writer", Message(), cron="* * * * * *")
        assert await raw.subjects("TASKS", "work.*.tick.later") == ["work.writer.tick.later"]
    assert standing == [[]]


@within(20)
async def test_odd_refusal_is_an_error(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> PubAck:
        raise APIError(400, 1, "an odd request")

    async with nats_swarm.dispatcher() as dispatcher:
        monkeypatch.setattr(_schedules, "publish", refuse)
        with pytest.raises(BrokerError, match="refuses to register schedule tick: an odd request"):
            await dispatcher.schedule("tick", "coder", Message(), every=60)
