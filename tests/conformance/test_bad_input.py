"""What other programs may send, and what a worker does with it, on both brokers."""

from __future__ import annotations

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Message, Result, Status
from trio_swarmtask._abc import Delivery, NewTask
from trio_swarmtask._worker._job import Cut
from trio_swarmtask._worker._runner import NEWER_WORKER_DELAY


@pytest.mark.parametrize(
    ("task_id", "data", "reason"),
    [
        ("t1", b"\xff", "not a message envelope"),
        ("t1", b"", "not a message envelope"),
        ("t1", b"[]", "not a message envelope"),
        ("t1", b'{"version":1,"id":7}', "not a message envelope"),
        ("t1", b'{"version":0,"id":"t1"}', "versions begin at 1"),
        ("t1", Message(id="t2").encode(), "names task 't2'"),
        ("t1", b"[" * 100_000, "not a message envelope"),
    ],
)
@within(20)
async def test_bad_envelope_is_a_dead_letter(
    swarm: Swarm, task_id: str, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.outbox() as outbox:
        await outbox.store(NewTask("coder", task_id, data))
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            await swarm.wait_until_empty()
            # The worker lives on, and whoever sent it gets an answer.
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
            assert worker.statistics().dead_letters == 1
        stored = await outbox.fetch(task_id)
    assert stored is not None
    result = Result.decode(stored)
    assert (result.id, result.status) == (task_id, Status.FAILED)
    assert result.error.startswith("dead letter: ")
    assert reason in result.error
    letters = await swarm.dead_letters()
    assert list(letters) == [task_id]
    assert reason in letters[task_id]
    assert [record.message for record in caplog.records if reason in record.message] != []


@within(20)
async def test_id_that_cannot_be_one_is_a_dead_letter(swarm: Swarm) -> None:
    async with swarm.outbox() as outbox, swarm.worker() as worker:
        await outbox.store(
            NewTask("coder", "a:b", Message(id="x").encode().replace(b'"x"', b'"a:b"'))
        )
        await worker.handle("coder", echo)
        await swarm.wait_until_empty()
        assert worker.statistics().dead_letters == 1


@within(20)
async def test_wildcard_for_an_id_is_a_dead_letter_also_when_it_comes_again(swarm: Swarm) -> None:
    """It must not be taken for a task whose result is there, because some result is."""
    send, receive = trio.open_memory_channel[Delivery](1)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("other", echo)
        await dispatcher.run("other", Message())
        async with swarm.outbox() as outbox, swarm.open() as broker:
            await outbox.store(NewTask("coder", "*", b"data"))
            async with broker.open_intake("coder", each(send.send_nowait)) as intake:
                intake.ask(1)
                delivery = await receive.receive()
                await intake.stop()
                await delivery.give_back()
        await worker.handle("coder", echo)
        await swarm.wait_until_empty()
        assert worker.statistics().dead_letters == 1
    assert len(await swarm.dead_letters()) == 1


@within(90)
async def test_newer_version_is_left_for_newer_workers(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert NEWER_WORKER_DELAY >= 5
    monkeypatch.setattr("trio_swarmtask._worker._runner.NEWER_WORKER_DELAY", 0.3)
    async with swarm.outbox() as outbox, swarm.dispatcher() as dispatcher:
        await outbox.store(NewTask("coder", "t1", b'{"version":2,"id":"t1","inputs":["?"]}'))
        async with swarm.worker(max_deliveries=2) as worker:
            await worker.handle("coder", echo)
            await until(lambda: worker.statistics().given_back == 7)
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert await swarm.count_tasks() == 1
        assert await outbox.fetch("t1") is None
    assert await swarm.dead_letters() == {}
    assert "left task t1 of coder for newer workers" in caplog.text


@within(60)
async def test_poison_is_set_aside_after_max_deliveries(swarm: Swarm) -> None:
    swarm.configure(ack_wait=0.3)
    runs = 0

    async def freeze(message: Message) -> None:
        # As a worker does that dies: neither a result nor a give-back.
        nonlocal runs
        runs += 1
        (job,) = worker._services["coder"].jobs.values()
        job.cut_short(Cut.LOST)
        await trio.sleep_forever()

    async with swarm.dispatcher() as dispatcher, swarm.worker(max_deliveries=2) as worker:
        await worker.handle("coder", freeze)
        result = await dispatcher.run("coder", Message())
        assert runs == 2
        assert result.status == Status.FAILED
        assert "delivered more than 2 times" in result.error
        await swarm.wait_until_empty()
    assert "delivered more than 2 times" in (await swarm.dead_letters())[result.id]


@within(30)
async def test_correlation_id_that_fits_no_result(swarm: Swarm) -> None:
    """What is copied into each result may be as large as all that the broker takes."""

    async def give(message: Message) -> str:
        return "x" * 400

    async with (
        swarm.outbox() as outbox,
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
    ):
        await worker.handle("coder", give)
        data = b'{"version":1,"id":"t1","correlation_id":"%b"}' % (b"x" * (1024 * 1024 - 260))
        await outbox.store(NewTask("coder", "t1", data))
        result = await (await dispatcher.attach("t1")).wait()
        assert (result.status, result.correlation_id) == (Status.FAILED, "")
        assert "larger than" in result.error
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert worker.statistics().failed == 1
