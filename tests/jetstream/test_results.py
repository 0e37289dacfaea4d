"""Streams of results that we did not make, and dead letters that have no stream."""

from __future__ import annotations

import logging

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, within
from tests._helpers.stream_setup import REPUBLISH, config_of, make, make_durable, use
from trio_swarmtask import Message, Result, Status
from trio_swarmtask._abc import NewTask

ONE_EACH = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}


def result_bytes(task_id: str, outputs: str) -> bytes:
    return Result(id=task_id, status=Status.SUCCESS, outputs=outputs).encode()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"allow_direct": True},
        {"allow_direct": True, **ONE_EACH},
        ONE_EACH,
        {"republish": REPUBLISH},
        {"republish": {**REPUBLISH, "headers_only": True}},
        {"republish": {"src": "done.>", "dest": "copies.>"}, "allow_direct": True},
    ],
)
@within(30)
async def test_stream_of_results_is_used_as_it_is(
    nats_swarm: NATSSwarm, settings: dict[str, object]
) -> None:
    async with nats_swarm.raw() as raw:
        before = await make(raw, "ANSWERS", "done.*", **settings)
        await use(nats_swarm)
        async with nats_swarm.dispatcher() as dispatcher:
            future = await dispatcher.start("nobody", Message(id="theirs"))
            await raw.store("done.theirs", result_bytes("theirs", "by hand"))
            assert (await future.wait()).outputs == "by hand"
        async with nats_swarm.outbox() as outbox:
            assert await outbox.fetch("gone") is None
        assert await config_of(raw, "ANSWERS") == before


@pytest.mark.parametrize("direct", [True, False])
@within(20)
async def test_first_of_several_results_is_the_one(nats_swarm: NATSSwarm, direct: bool) -> None:
    """In a stream that keeps more than one a subject: look-up by ID, and after an outage too."""
    async with nats_swarm.raw() as raw:
        await make(raw, "ANSWERS", "done.>", allow_direct=direct)
        for outputs in ("first", "second", "third"):
            await raw.store("done.mine", result_bytes("mine", outputs))
        async with nats_swarm.dispatcher() as dispatcher:
            result = await dispatcher.run("coder", Message(id="mine"))
            assert result.outputs == "first"


@within(20)
async def test_hint_of_a_result_that_is_not_stored(nats_swarm: NATSSwarm) -> None:
    """Without republish the subject itself is heard, and with it what the stream refuses."""
    async with nats_swarm.raw() as raw:
        await make(raw, "ANSWERS", "done.>", max_msg_size=200)
        async with nats_swarm.dispatcher() as dispatcher:
            future = await dispatcher.start("coder", Message(id="mine"))
            raw.connection.publish("done.mine", result_bytes("mine", "x" * 300))
            async with nats_swarm.worker(name="w") as worker:
                await worker.handle("coder", echo)
                assert (await future.wait()).agent == "w"


@within(20)
async def test_what_stands_for_all_results_is_no_result(nats_swarm: NATSSwarm) -> None:
    """Without republish a dispatcher subscribes to one ID that is nobody's, to see if it may."""
    async with nats_swarm.raw() as raw:
        await make(raw, "ANSWERS", "done.>")
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker(name="w") as worker:
            future = await dispatcher.start("coder", Message(id="mine"))
            headers = {"Nats-Subject": "done.mine"}
            forged = result_bytes("mine", "forged")
            raw.connection.publish(f"done.{dispatcher._core.key}-0", forged, headers=headers)
            await raw.requests.echo()
            await worker.handle("coder", echo)
            assert (await future.wait()).agent == "w"


@within(20)
async def test_dead_letters_without_a_stream(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; the failed result is all, and giving back works too."""
    caplog.set_level(logging.WARNING)
    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", retention="workqueue")
        await make(raw, "ANSWERS", "done.>")
        for capability in ("coder", "other"):
            await make_durable(raw, "TASKS", capability)
        nats_swarm.configure(manage_streams=False)
        async with nats_swarm.outbox() as outbox:
            for number in range(3):
                await outbox.store(NewTask("coder", f"bad-{number}", b"not JSON"))
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            await worker.handle("other", echo)
            for number in range(3):
                result = await dispatcher.run("coder", Message(id=f"bad-{number}"))
                assert result.status == Status.FAILED
                assert "dead letter" in result.error
        assert (await raw.api("STREAM.NAMES"))["streams"] == ["ANSWERS", "TASKS"]
    warnings = [r.message for r in caplog.records if "dead letters are not kept" in r.message]
    assert len(warnings) == 1
    assert "no stream that holds dead.>" in warnings[0]


@within(30)
async def test_give_back_without_a_stream_for_notes(nats_swarm: NATSSwarm) -> None:
    """A task is given back at once; without the notes each counts as a delivery that failed."""
    stuck = trio.Event()

    async def stick(message: Message) -> None:
        stuck.set()
        await trio.sleep_forever()

    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", retention="workqueue")
        await make(raw, "ANSWERS", "done.>", republish=REPUBLISH)
        await make_durable(raw, "TASKS", "coder")
        nats_swarm.configure(manage_streams=False)
        async with nats_swarm.dispatcher() as dispatcher:
            future = await dispatcher.start("coder", Message())
            for _ in range(2):
                stuck = trio.Event()
                async with nats_swarm.worker() as worker:
                    await worker.handle("coder", stick)
                    await stuck.wait()
                    with pytest.raises(trio.TooSlowError):
                        await worker.shutdown(0)
            async with nats_swarm.worker(max_deliveries=2) as worker:
                await worker.handle("coder", echo)
                result = await future.wait()
            assert "delivered more than 2 times" in result.error


@within(20)
async def test_stream_of_dead_letters_that_refuses(nats_swarm: NATSSwarm) -> None:
    """The failed result is all, as it is where there is no such stream."""
    async with nats_swarm.raw() as raw:
        await make(raw, "LETTERS", "dead.>", "back.>", max_msg_size=50)
        async with nats_swarm.outbox() as outbox:
            await outbox.store(NewTask("coder", "bad", b"not JSON" * 50))
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            result = await dispatcher.run("coder", Message(id="bad"))
            assert result.status == Status.FAILED
