"""What is on the wire: subjects, headers and the order, and clients that are none of ours."""

from __future__ import annotations

import logging
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Message, Result, Status
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream._api import APIError
from trio_swarmtask._jetstream._intake import NATSIntake
from trio_swarmtask._nats._protocol import Incoming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests._helpers.api_client import Raw
    from trio_swarmtask._abc import Delivery

VECTORS = Path(__file__).parents[1] / "wire"


class Ear:
    """What was heard on some subjects, in the order of its arrival."""

    def __init__(self, raw: Raw, *subjects: str) -> None:
        self.messages: list[Incoming] = []
        self._heard = trio.Event()
        for subject in subjects:
            raw.connection.subscribe(subject, self._hear)

    def _hear(self, message: Incoming) -> None:
        self.messages.append(message)
        self._heard.set()
        self._heard = trio.Event()

    async def wait_for(self, prefix: str, data: bytes = b"") -> Incoming:
        """The first message on a subject with this prefix, whose data begins like this."""
        while True:
            for message in self.messages:
                if message.subject.startswith(prefix) and message.data.startswith(data):
                    return message
            await self._heard.wait()


@asynccontextmanager
async def ear(swarm: NATSSwarm, *subjects: str) -> AsyncIterator[tuple[Raw, Ear]]:
    async with swarm.raw() as raw:
        heard = Ear(raw, *subjects)
        await raw.requests.echo()
        yield raw, heard


@within(20)
async def test_task_and_result(nats_swarm: NATSSwarm) -> None:
    async with (
        ear(nats_swarm, "work.>", "done.>", "notify.>", "$JS.ACK.>") as (_, heard),
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", echo)
        result = await dispatcher.run("coder", Message(inputs={"a": "b"}))
        for subject in ("work.", "done.", "notify.", "$JS.ACK."):
            await heard.wait_for(subject)
    key, rest = result.id.split("-")
    assert len(key) >= 12
    assert re.fullmatch("1[a-z0-9]{6,}", rest)
    # In what order a third party hears of them is the server's affair.
    by_subject = {message.subject: message for message in heard.messages}
    task = by_subject.pop(f"work.coder.{result.id}")
    done = by_subject.pop(f"done.{result.id}")
    notice = by_subject.pop(f"notify.{key}.{rest}")
    (ack,) = by_subject.values()
    assert task.headers == {"Nats-Msg-Id": result.id}
    assert Message.decode(task.data).inputs == {"a": "b"}
    assert done.headers == {}  # the stream itself refuses a second one
    assert notice.data == done.data
    assert Result.decode(done.data) == result
    assert ack.subject.startswith("$JS.ACK.TASKS.work-coder.1.")
    assert ack.data == b"+ACK"


@within(20)
async def test_result_for_a_stream_that_takes_a_second_one(nats_swarm: NATSSwarm) -> None:
    """The header lets the first one in alone."""
    async with ear(nats_swarm, "done.>") as (raw, heard):
        await raw.api("STREAM.CREATE.THEIRS", name="THEIRS", subjects=["done.>"])
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            await dispatcher.run("coder", Message())
            await heard.wait_for("done.")
    (done,) = heard.messages
    assert done.headers == {"Nats-Expected-Last-Subject-Sequence": "0"}


@within(20)
async def test_ack_comes_after_the_results_acknowledgement(nats_swarm: NATSSwarm) -> None:
    """While the stream of results refuses, nothing is acked."""
    async with ear(nats_swarm, "done.>", "$JS.ACK.>") as (raw, heard):
        await raw.api("STREAM.CREATE.FULL", name="FULL", subjects=["done.>"], max_bytes=1000)
        await raw.api(
            "STREAM.UPDATE.FULL", name="FULL", subjects=["done.>"], max_msgs=1, discard="new"
        )
        await raw.store("done.filler", b"x")
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            await dispatcher.start("coder", Message(id="mine"))
            while len([m for m in heard.messages if m.subject == "done.mine"]) < 3:
                await heard._heard.wait()
            assert not [m for m in heard.messages if m.subject.startswith("$JS.ACK.")]
            await raw.api(
                "STREAM.UPDATE.FULL", name="FULL", subjects=["done.>"], max_msgs=9, discard="new"
            )
            await heard.wait_for("$JS.ACK.", b"+ACK")
            assert await nats_swarm.stored_result("mine") is not None


@within(20)
async def test_dead_letter_on_the_wire(nats_swarm: NATSSwarm) -> None:
    async with (
        ear(nats_swarm, "dead.>", "done.>", "$JS.ACK.>") as (_, heard),
        nats_swarm.worker() as worker,
        nats_swarm.outbox() as outbox,
    ):
        await worker.handle("coder", echo)
        await outbox.store(NewTask("coder", "bad-1", b"\xff\x00 not JSON"))
        await heard.wait_for("$JS.ACK.")
    letter, result, term = heard.messages
    assert letter.subject == "dead.coder.bad-1"
    assert letter.data == b"\xff\x00 not JSON"
    assert letter.headers is not None
    assert letter.headers["Swarm-Deliveries"] == "1"
    assert letter.headers["Swarm-Reason"].startswith("not a message envelope")
    assert result.subject == "done.bad-1"
    assert Result.decode(result.data).error.startswith("dead letter: not a message envelope")
    assert term.data.startswith(b"+TERM not a message envelope")


@within(20)
async def test_give_back_on_the_wire(nats_swarm: NATSSwarm) -> None:
    running = trio.Event()

    async def stick(message: Message) -> None:
        running.set()
        await trio.sleep_forever()

    async with (
        ear(nats_swarm, "back.>", "$JS.ACK.>") as (_, heard),
        nats_swarm.dispatcher() as dispatcher,
    ):
        future = await dispatcher.start("coder", Message())
        async with nats_swarm.worker() as worker:
            await worker.handle("coder", stick)
            await running.wait()
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        await heard.wait_for("$JS.ACK.")
    note, nak = heard.messages
    assert (note.subject, note.data) == (f"back.coder.{future.id}", b"")
    assert nak.data == b"-NAK"


@within(20)
async def test_task_of_a_newer_version_is_given_back_with_a_delay(nats_swarm: NATSSwarm) -> None:
    async with (
        ear(nats_swarm, "$JS.ACK.>") as (_, heard),
        nats_swarm.worker() as worker,
        nats_swarm.outbox() as outbox,
    ):
        await worker.handle("coder", echo)
        await outbox.store(
            NewTask("coder", "new", (VECTORS / "message-future-version.json").read_bytes())
        )
        nak = await heard.wait_for("$JS.ACK.")
    assert nak.data == b'-NAK {"delay": 15000000000}'


@within(20)
async def test_forged_messages_in_the_pulls_inbox(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """They are dropped and logged; the worker lives on and answers nobody."""
    ran: list[str] = []

    async def note(message: Message) -> None:
        ran.append(message.id)

    caplog.set_level(logging.ERROR)
    subjects = "$JS.API.CONSUMER.MSG.NEXT.>", "victim", "$JS.ACK.TASKS.>"
    async with (
        ear(nats_swarm, *subjects) as (raw, heard),
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", note)
        inbox = (await heard.wait_for("$JS.API.CONSUMER.MSG.NEXT.")).reply
        envelope = Message(id="forged").encode()
        raw.connection.publish(inbox, envelope, "victim")
        raw.connection.publish(inbox, envelope)
        # The server itself refuses this one.
        raw.connection.publish(inbox, envelope, "$JS.ACK.TASKS.work-coder.1.1.1.1.0")
        raw.connection.publish(inbox, b"", "victim", {"Status": "100"})
        raw.connection.publish(inbox, b"\xff" * 1000, "x" * 3000)
        await raw.requests.echo()
        result = await dispatcher.run("coder", Message())
        await heard.wait_for("$JS.ACK.TASKS.work-coder.1.1.", b"+ACK")
    assert ran == [result.id]
    assert not [m for m in heard.messages if m.subject == "victim"]
    assert sum("no task: subject" in record.message for record in caplog.records) == 3


@within(20)
async def test_forged_task_with_a_reply_that_is_no_ack(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """No server of ours sends one; it would be answered with `+ACK` and the like."""
    got: list[Delivery] = []
    arrived = trio.Event()

    def take(delivery: Delivery) -> None:
        got.append(delivery)
        arrived.set()

    async with nats_swarm.open() as broker, broker.open_intake("coder", each(take)) as intake:
        assert isinstance(intake, NATSIntake)
        intake.ask(2)
        for reply in ("", "victim", "$JS.ACK.TASKS", "$JS.ACK.TASKS.work-coder.x.1.1.1.0"):
            intake._on_message(Incoming(b"work.coder.t", reply.encode(), b"", b"{}"))
        assert got == []
        assert sum("JetStream did not send" in record.message for record in caplog.records) == 4
        async with nats_swarm.outbox() as outbox:
            await outbox.store(NewTask("coder", "t", b"{}"))
        await arrived.wait()
    assert [delivery.task_id for delivery in got] == ["t"]


@within(20)
async def test_plain_clients_task_is_served(nats_swarm: NATSSwarm) -> None:
    """As the Go package sends it: its encoder's bytes, no header of ours."""
    async with nats_swarm.worker(name="w") as worker, nats_swarm.raw() as raw:
        await worker.handle("coder", echo)
        await raw.store("work.coder.t-2", (VECTORS / "message-usual.json").read_bytes())
        async with nats_swarm.dispatcher() as dispatcher:
            result = await dispatcher.run("coder", Message(id="t-2"))
        assert (result.id, result.agent) == ("t-2", "w")
        assert result.outputs == {"file": "main.go"}
        stored, _ = await raw.get("TASK_RESULTS", "done.t-2")
        assert Result.decode(stored) == result


@within(20)
async def test_plain_workers_result_is_heard_and_its_second_refused(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        future = await dispatcher.start("coder", Message())
        subject = f"done.{future.id}"
        envelope = msgspec.json.decode((VECTORS / "result-minimal.json").read_bytes())
        first = msgspec.json.encode({**envelope, "id": future.id, "agent": "go-1"})
        await raw.store(subject, first)
        assert (await future.wait()).agent == "go-1"
        with pytest.raises(APIError) as raised:
            await raw.store(subject, msgspec.json.encode({**envelope, "agent": "go-2"}))
        assert raised.value.err_code == 10077
        assert (await raw.get("TASK_RESULTS", subject))[0] == first
        async with nats_swarm.worker() as worker:  # the task is still there, and runs
            await worker.handle("coder", echo)
            await nats_swarm.wait_until_empty()
            assert worker.statistics().superseded == 1
        assert (await raw.get("TASK_RESULTS", subject))[0] == first


@pytest.mark.parametrize("task_id", [">", "*", "a.b", "ä", "a b"])
@within(20)
async def test_plain_clients_task_of_an_odd_id(nats_swarm: NATSSwarm, task_id: str) -> None:
    """It ends as a dead letter or is not a task; the worker lives on."""
    async with nats_swarm.worker() as worker, nats_swarm.raw() as raw:
        await worker.handle("coder", echo)
        data = Message(id="x").encode().replace(b'"x"', msgspec.json.encode(task_id))
        if " " not in task_id:
            await raw.store(f"work.coder.{task_id}", data)
        async with nats_swarm.dispatcher() as dispatcher:
            result = await dispatcher.run("coder", Message())
        assert result.status == Status.SUCCESS
        letters = await nats_swarm.dead_letters()
    assert len(letters) == (task_id in (">", "*", "ä"))
