"""A Trio thread that is held up, by a handler that blocks, and what has waited for it meanwhile."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.plain_nats import open_plain_client
from trio_swarmtask import Message, Result, Status
from trio_swarmtask._jetstream import _intake
from trio_swarmtask._jetstream._intake import NATSIntake

if TYPE_CHECKING:
    import pytest

    from trio_swarmtask.server import Server

ACK_WAIT = 0.5


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "watchdog"]


@within(30)
async def test_handler_that_blocks_is_told_and_left_to_finish(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """To cancel it would let it block the next worker, and the next, for ever."""
    nats_swarm.configure(ack_wait=ACK_WAIT)
    runs = 0

    async def block(message: Message) -> str:
        nonlocal runs
        runs += 1
        time.sleep(3 * ACK_WAIT)  # noqa: ASYNC251 - that is the fault
        await trio.sleep(ACK_WAIT / 10)
        return "done"

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", block)
        assert len(watchdogs()) == 1
        result = await dispatcher.run("coder", Message())
        await until(lambda: "kept the Trio thread" in caplog.text)
        await nats_swarm.wait_until_empty()
    assert (result.outputs, runs) == ("done", 1)
    told = [record.getMessage() for record in caplog.records if "Trio thread" in record.message]
    assert len(told) == 2
    begins = f"the handler of coder keeps the Trio thread to itself, with task {result.id}; "
    assert told[0].startswith(begins)
    assert "time.sleep(3 * ACK_WAIT)" in told[0]  # where it is
    assert told[1].startswith("the handler of coder kept the Trio thread to itself for about 1.")
    assert watchdogs() == []


@within(30)
async def test_handlers_that_do_not_block_are_not_suspected(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where something else holds the thread up."""
    nats_swarm.configure(ack_wait=ACK_WAIT)
    began = trio.Event()

    async def wait(message: Message) -> None:
        if not began.is_set():
            began.set()
            await trio.sleep(4 * ACK_WAIT)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", wait)
        await worker.handle("writer", echo)
        future = await dispatcher.start("coder", Message())
        await began.wait()
        time.sleep(2 * ACK_WAIT)  # noqa: ASYNC251 - that is the fault
        await future.wait()
    assert "Trio thread" not in caplog.text


@within(30)
async def test_task_that_waited_for_the_thread_is_looked_up(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """It was delivered for the first time, and another worker has done it meanwhile."""
    nats_swarm.configure(ack_wait=ACK_WAIT)
    ran: list[str] = []

    async def interfere() -> None:
        # As the server sees it: a delivery that nobody reads, and a result from elsewhere.
        async with open_plain_client(server.port) as client:
            done = {"version": 1, "id": "waited", "status": "success", "agent": "a", "attempt": 1}
            await client.request("work.coder.waited", {"version": 1, "id": "waited"})
            await client.request("done.waited", done)
            await trio.sleep(0.9 * ACK_WAIT)  # a round of renewal is overdue, the lease is not

    async def block(message: Message) -> None:
        ran.append(message.id)
        if message.id == "blocker":
            thread = threading.Thread(target=trio.run, args=(interfere,))
            thread.start()
            thread.join()

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", block)
        await dispatcher.run("coder", Message(id="blocker"))
        await nats_swarm.wait_until_empty()
        assert (await dispatcher.run("coder", Message(id="waited"))).agent == "a"
    assert ran == ["blocker"]


@within(30)
async def test_task_in_hand_is_not_taken_again(nats_swarm: NATSSwarm) -> None:
    """A durable that was deleted and made anew offers all that has not ended."""
    runs, done = 0, trio.Event()

    async def handler(message: Message) -> Result:
        nonlocal runs
        runs += 1
        await done.wait()
        return Result(status=Status.SUCCESS)

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", handler, max_in_flight=2)
        future = await dispatcher.start("coder", Message())
        await until(lambda: runs)
        job = worker._services["coder"].jobs[future.id]
        delivery = job.delivery
        await raw.api("CONSUMER.DELETE.TASKS.work-coder")
        await until(lambda: job.delivery is not delivery)  # it came again
        other = await dispatcher.start("coder", Message())  # the place is free
        await until(lambda: runs == 2)
        done.set()
        await future.wait()
        await other.wait()
        await nats_swarm.wait_until_empty()
    assert runs == 2


@within(30)
async def test_pull_that_ends_again_and_again_is_told_once(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_intake, "_LONGEST_PAUSE", 0.1)
    begin = NATSIntake._begin
    begun = 0

    def begin_in_vain(self: NATSIntake) -> None:
        nonlocal begun
        begun += 1
        begin(self)
        if begun < 8:
            self._end_for("the server says 409 Whatever")

    monkeypatch.setattr(NATSIntake, "_begin", begin_in_vain)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        await until(lambda: begun == 8)
        await dispatcher.run("coder", Message())
    told = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
    assert told == ["the pull of coder ends again and again: the server says 409 Whatever"]
    assert begun == 8
