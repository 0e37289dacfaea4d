"""What is done with a delivery whose lease was lost: nothing, on both brokers.

Neither broker knows whose a task is: a late NAK would hand out what runs at another worker.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Message, Result, Retry, Status
from trio_swarmtask._abc import Delivery, Intake, NewTask
from trio_swarmtask._jetstream._delivery import NATSDelivery
from trio_swarmtask._memory._queue import _MemoryDelivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask import Worker
    from trio_swarmtask._worker._job import Job

ACK_WAIT = 1.0


@asynccontextmanager
async def taking(swarm: Swarm) -> AsyncIterator[tuple[Intake, trio.MemoryReceiveChannel[Delivery]]]:
    """A worker's side without a worker: it renews nothing."""
    send, receive = trio.open_memory_channel[Delivery](10)
    async with (
        swarm.open() as broker,
        broker.open_intake("coder", each(send.send_nowait)) as intake,
    ):
        yield intake, receive


def job_of(worker: Worker) -> Job:
    (job,) = worker._services["coder"].jobs.values()  # type: ignore[union-attr]  # it is there
    return job


@pytest.mark.parametrize("late", ["give back", "retry", "bury"])
@within(20)
async def test_late_settling_changes_nothing(swarm: Swarm, late: str) -> None:
    """Another one has the task by then: it is not handed out once more, nor noted, nor ended."""
    swarm.configure(ack_wait=ACK_WAIT)
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(1)
        lost = await deliveries.receive()
        intake.ask(5)
        ours = await deliveries.receive()
        await trio.sleep_until(lost.lease_until)
        assert lost.is_lost()
        assert not ours.is_lost()
        if late == "give back":
            assert not await lost.give_back()
        elif late == "retry":
            assert not await lost.retry(0)
        else:
            assert not await lost.bury("late", b"{}")
        assert (await ours.count_given_back(), await ours.count_retries()) == (0, 0)
        assert await outbox.fetch("t1") is None
        assert await swarm.count_tasks() == 1
        assert await swarm.dead_letters() == {}
        with pytest.raises(trio.WouldBlock):
            deliveries.receive_nowait()
        assert await ours.give_back()
        assert (await deliveries.receive()).number == 3


@within(20)
async def test_result_of_a_lost_delivery_is_stored(swarm: Swarm) -> None:
    """The first one counts, whoever has the task by now."""
    swarm.configure(ack_wait=ACK_WAIT)
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(2)
        lost, ours = await deliveries.receive(), await deliveries.receive()
        result = Result(id="t1", status=Status.SUCCESS, outputs="late").encode()
        assert await lost.complete(result)
        assert not await ours.complete(b"{}")
        assert await outbox.fetch("t1") == result
        await swarm.wait_until_empty()


def wait_for_the_lapse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As in an outage: what a delivery does by ``name`` is not done before its lease has lapsed.

    For the first delivery that does it. Nor is its lease renewed.
    """
    waiting: list[Delivery] = []

    def slow_down(kind: type[Delivery]) -> None:
        act, renew = getattr(kind, name), kind.renew

        async def wait_first(delivery: Delivery, *arguments: object) -> object:
            if not waiting:
                waiting.append(delivery)
                await trio.sleep_until(delivery.lease_until + ACK_WAIT / 10)
            return await act(delivery, *arguments)

        def renew_others(delivery: Delivery) -> None:
            if delivery not in waiting:
                renew(delivery)

        monkeypatch.setattr(kind, name, wait_first)
        monkeypatch.setattr(kind, "renew", renew_others)

    slow_down(NATSDelivery)
    slow_down(_MemoryDelivery)


@pytest.mark.parametrize("name", ["retry", "count_given_back"])
@within(30)
async def test_lease_that_is_lost_before_a_retry_is_noted(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Its attempt is over, and the next one is being made at another worker: that is let be."""
    swarm.configure(ack_wait=ACK_WAIT)
    begun: list[str] = []

    async def fail(message: Message) -> None:
        begun.append("a")
        wait_for_the_lapse(monkeypatch, name)
        raise OSError("while cut off")

    async def go_on(message: Message) -> str:
        begun.append("b")
        await trio.sleep(2 * ACK_WAIT)  # long enough for a third one to begin
        return "done"

    retry = Retry(on=OSError, first_delay=0.01)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as a, swarm.worker() as b:
        if name == "count_given_back":  # which is asked from the second delivery on
            async with taking(swarm) as (intake, deliveries):
                future = await dispatcher.start("coder", Message(max_attempts=5))
                intake.ask(1)
                await (await deliveries.receive()).give_back()
        else:
            future = await dispatcher.start("coder", Message(max_attempts=5))
        await a.handle("coder", fail, retry=retry, max_in_flight=1)
        await until(lambda: begun == ["a"])
        (service,) = a._standing()
        await service.intake.stop()  # or it would get the task itself
        await b.handle("coder", go_on, retry=retry)
        assert (await future.wait()).outputs == "done"
        await until(lambda: not a.statistics().in_flight)
        statistics = a.statistics()
        assert (statistics.leases_lost, statistics.retried) == (1, 0)
    assert begun == ["a", "b"]
    assert f"lost the lease of task {future.id} of coder, and left it to another" in caplog.text


@within(30)
async def test_lease_that_lapsed_while_the_thread_was_blocked(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler is left to finish, and its task may be another's: it is not put back."""
    swarm.configure(ack_wait=ACK_WAIT)
    attempts = 0

    async def block(message: Message) -> str:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            return "done"
        job = job_of(worker)
        monkeypatch.setattr(type(job.delivery), "is_lost", lambda delivery: True)
        job.blocked = True  # as the watchdog has it
        await until(lambda: job.lapsed)
        monkeypatch.undo()
        assert not job.delivery.is_lost()  # it was renewed, whoever's it is
        raise OSError

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", block, retry=Retry(on=OSError, first_delay=0.01))
        result = await dispatcher.run("coder", Message(max_attempts=3))
        assert (result.outputs, result.attempt) == ("done", 2)
        statistics = worker.statistics()
        assert (statistics.leases_lost, statistics.retried) == (1, 0)


@pytest.mark.parametrize("data", [b"no JSON", b'{"version":2,"id":"t1"}'])
@within(30)
async def test_lease_that_is_lost_before_a_task_is_started(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """It is no dead letter of this worker's, nor given back: another one sees to that."""
    swarm.configure(ack_wait=ACK_WAIT)
    for kind in (NATSDelivery, _MemoryDelivery):
        # It has waited for the thread, say.
        monkeypatch.setattr(kind, "is_lost", lambda delivery: delivery.number == 1)
    async with swarm.outbox() as outbox, swarm.worker() as worker:
        await worker.handle("coder", echo)
        await outbox.store(NewTask("coder", "t1", data))
        await until(lambda: worker.statistics().leases_lost)
        assert (worker.statistics().dead_letters, worker.statistics().given_back) == (0, 0)
        await until(lambda: worker.statistics().dead_letters + worker.statistics().given_back)


@within(30)
async def test_lease_that_is_lost_as_a_dead_letter_is_kept(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result counts. What is ended is left to the one who has the task by then."""
    swarm.configure(ack_wait=ACK_WAIT)
    keep = NATSDelivery._keep_dead_letter

    async def keep_late(delivery: NATSDelivery, reason: str) -> None:
        await trio.sleep_until(delivery.lease_until)
        await keep(delivery, reason)

    monkeypatch.setattr(NATSDelivery, "_keep_dead_letter", keep_late)
    async with swarm.outbox() as outbox, taking(swarm) as (intake, deliveries):
        await outbox.store(NewTask("coder", "t1", b"data"))
        intake.ask(1)
        delivery = await deliveries.receive()
        assert await delivery.bury("bad", b"{}")
        assert await outbox.fetch("t1") == b"{}"


@pytest.mark.parametrize("name", ["retry", "give_back"])
@within(20)
async def test_task_that_turns_out_to_be_anothers_is_let_be(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The lease lapses in the very moment in which the task is put back."""

    async def too_late(*_: object, **__: object) -> bool:
        return False

    for kind in (NATSDelivery, _MemoryDelivery):
        monkeypatch.setattr(kind, name, too_late)
    began = trio.Event()

    async def handler(message: Message) -> None:
        began.set()
        if name == "retry":
            raise OSError("no luck")
        await trio.sleep_forever()

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler, retry=Retry(on=OSError, first_delay=0))
        await dispatcher.start("coder", Message(max_attempts=3))
        await began.wait()
        if name == "give_back":
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        await until(lambda: worker.statistics().leases_lost == 1)
        assert worker.statistics().in_flight == 0


@within(20)
async def test_bug_that_ends_the_handlers_gives_their_tasks_back(swarm: Swarm) -> None:
    """Whatever comes out of a task of the worker's own: others have its tasks at once."""

    async def fail() -> None:
        raise RuntimeError("a bug")

    async def stay(message: Message) -> None:
        await trio.sleep_forever()

    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        bug = pytest.RaisesExc(RuntimeError, match="a bug")
        with pytest.RaisesGroup(bug, flatten_subgroups=True):
            async with swarm.worker() as worker:
                await worker.handle("coder", stay)
                await until(lambda: worker.statistics().in_flight)
                worker._handlers.start_soon(fail)
                await trio.sleep_forever()
        async with swarm.worker() as other:
            await other.handle("coder", echo)
            with trio.fail_after(5):  # the lease is 30 seconds
                assert (await future.wait()).status == Status.SUCCESS
