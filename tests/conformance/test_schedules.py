"""Tasks that the broker starts again and again, on both brokers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from trio_swarmtask import (
    InvalidCapabilityError,
    InvalidMessageError,
    Message,
    Schedule,
    Status,
)

pytestmark = pytest.mark.needs_schedules


class Recorder:
    """A handler that notes what it got."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> str:
        self.messages.append(message)
        return message.inputs.get("say", "")

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.messages) >= count)


@within(20)
async def test_each_firing_is_a_task_with_a_result(swarm: Swarm) -> None:
    handler = Recorder()
    message = Message(inputs={"say": "tick"}, tags=["a"], prior={"t-0": {"b": [1]}})
    async with swarm.dispatcher(name="boss") as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        before = datetime.now(UTC)
        await dispatcher.schedule("tick", "coder", message, every=1)
        await handler.wait(3)
        await dispatcher.unschedule("tick")
        assert len(set(handler.ids)) == len(handler.ids)
        times = []
        for got in handler.messages:
            assert re.fullmatch(r"tick-\d{13}", got.id)
            assert (got.inputs, got.tags, got.submitted_by) == ({"say": "tick"}, ["a"], "boss")
            assert got.prior_as("t-0", dict[str, list[int]]) == {"b": [1]}
            assert got.submitted_at is not None
            assert got.id == f"tick-{round(got.submitted_at.timestamp() * 1000)}"
            times.append(got.submitted_at)
            result = await (await dispatcher.attach(got.id)).wait()
            assert (result.status, result.outputs, result.id) == (Status.SUCCESS, "tick", got.id)
        assert timedelta(seconds=0.4) < times[0] - before < timedelta(seconds=3)
        assert timedelta(seconds=0.8) < times[1] - times[0] < timedelta(seconds=1.9)
        await swarm.wait_until_empty()


@within(20)
async def test_cron(swarm: Swarm) -> None:
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        await dispatcher.schedule("tick", "coder", Message(), cron="  */2 *  * * * * ")
        await handler.wait(2)
        (schedule,) = await dispatcher.schedules()
        assert (schedule.cron, schedule.every) == ("*/2 * * * * *", None)
    for message in handler.messages:
        assert message.submitted_at is not None
        assert message.submitted_at.second % 2 == 0


@within(20)
async def test_registering_the_same_again_does_not_restart_it(swarm: Swarm) -> None:
    handler = Recorder()
    async with swarm.worker() as worker, swarm.dispatcher() as one, swarm.dispatcher() as two:
        await worker.handle("coder", handler)
        while len(handler.messages) < 2:
            for dispatcher in (one, two):
                message = Message(inputs={"a": "1", "b": "2"})
                await dispatcher.schedule("tick", "coder", message, every=timedelta(seconds=1))
                message = Message(inputs={"b": "2", "a": "1"}, submitted_by="other")
                await dispatcher.schedule("tick", "coder", message, every=1.0)
            await trio.sleep(0.3)


@pytest.mark.parametrize("change", ["message", "interval", "cron"])
@within(20)
async def test_anything_else_replaces_it(swarm: Swarm, change: str) -> None:
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        old = Message(inputs={"say": "old"})
        new = Message(inputs={"say": "new"})
        if change == "message":
            await dispatcher.schedule("tick", "coder", old, every=1)
            await dispatcher.schedule("tick", "coder", new, every=1)
        elif change == "interval":
            await dispatcher.schedule("tick", "coder", new, every=1000)
            await dispatcher.schedule("tick", "coder", new, every=1)
        else:
            await dispatcher.schedule("tick", "coder", new, every=1000)
            await dispatcher.schedule("tick", "coder", new, cron="* * * * * *")
        await handler.wait(2)
        assert len(await dispatcher.schedules()) == 1
    assert {message.inputs["say"] for message in handler.messages} == {"new"}


@within(20)
async def test_name_is_one_schedule_whatever_the_capability(swarm: Swarm) -> None:
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("writer", handler)
        for capability in ("coder", "writer", "coder", "writer"):
            await dispatcher.schedule("tick", capability, Message(), every=1)
            (schedule,) = await dispatcher.schedules()
            assert schedule.capability == capability
        await handler.wait(1)


@pytest.mark.parametrize("capabilities", [("coder", "coder"), ("coder", "writer")])
@within(20)
async def test_two_who_register_at_once_make_one_schedule(
    swarm: Swarm, capabilities: tuple[str, str]
) -> None:
    async with swarm.dispatcher() as one, swarm.dispatcher() as two:
        for number in range(10):
            async with trio.open_nursery() as nursery:
                for dispatcher, capability in zip((one, two), capabilities, strict=True):
                    message = Message(inputs={"number": str(number), "of": capability})
                    register = partial(dispatcher.schedule, every=60)
                    nursery.start_soon(register, "tick", capability, message)
            (schedule,) = await one.schedules()
            assert schedule.message.inputs == {"number": str(number), "of": schedule.capability}


@within(20)
async def test_what_was_started_stays_when_the_schedule_ends(swarm: Swarm) -> None:
    """And without a worker it goes on firing."""
    handler = Recorder()
    async with swarm.dispatcher() as dispatcher:
        await dispatcher.schedule("tick", "coder", Message(), every=1)
        await trio.sleep(3.2)  # nobody is there
        assert await dispatcher.unschedule("tick")
        assert not await dispatcher.unschedule("tick")
        assert await dispatcher.schedules() == []
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            await handler.wait(2)
            await swarm.wait_until_empty()
            assert 2 <= len(handler.ids) <= 4
            assert len(set(handler.ids)) == len(handler.ids)


@within(20)
async def test_schedules_are_listed_by_name(swarm: Swarm) -> None:
    nightly = Message(inputs={"goal": "report"}, timeout=60)
    async with swarm.dispatcher() as dispatcher:
        assert await dispatcher.schedules() == []
        await dispatcher.schedule("tick", "coder", Message(), every=timedelta(hours=1))
        await dispatcher.schedule("nightly", "writer", nightly, cron="0 30 6 * * mon-fri")
        due = datetime.now(UTC) + timedelta(hours=1)
        await dispatcher.start("coder", Message(), not_before=due)
    async with swarm.dispatcher() as dispatcher:
        first, second = await dispatcher.schedules()
        assert (first.name, first.capability) == ("nightly", "writer")
        assert (first.cron, first.every) == ("0 30 6 * * mon-fri", None)
        assert (first.message.inputs, first.message.timeout) == ({"goal": "report"}, 60)
        assert second == Schedule(
            name="tick", capability="coder", every=3600, message=second.message
        )
        # What is listed can be registered as it is.
        await dispatcher.schedule(first.name, first.capability, first.message, cron=first.cron)
        assert (await dispatcher.schedules())[0] == first


@within(20)
async def test_firing_that_runs_is_cancelled_by_its_id(swarm: Swarm) -> None:
    started: list[str] = []
    cancelled = trio.Event()

    async def handle(message: Message) -> None:
        started.append(message.id)
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handle)
        await dispatcher.schedule("tick", "coder", Message(), every=1)
        await until(lambda: started)
        await dispatcher.unschedule("tick")
        future = await dispatcher.attach(started[0])
        assert await dispatcher._core.futures.cancel(future, 5)
        assert (await future.wait()).cancelled_by
        assert cancelled.is_set()


@within(20)
async def test_firing_that_was_given_back_keeps_its_id(swarm: Swarm) -> None:
    started: list[Message] = []
    handler = Recorder()

    async def hang(message: Message) -> None:
        started.append(message)
        await trio.sleep_forever()

    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", hang)
            await dispatcher.schedule("tick", "coder", Message(), every=1)
            await until(lambda: started)
            await dispatcher.unschedule("tick")
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            await handler.wait(1)
            assert handler.messages[0] == started[0]


@within(20)
async def test_too_large_a_message_is_refused(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        message = Message(inputs={"text": "x" * 2**20})
        with pytest.raises(InvalidMessageError, match=r"is larger than the [0-9]+ that the"):
            await dispatcher.schedule("tick", "coder", message, every=1)
        assert await dispatcher.schedules() == []


@within(20)
async def test_bad_arguments_are_refused(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        schedule = partial(dispatcher.schedule, "tick", "coder", Message())
        for name in ("", "a.b", "x" * 65, "*", None):
            with pytest.raises(ValueError, match=r"must have a name of 1 to 64 letters"):
                await dispatcher.schedule(name, "coder", Message(), every=1)
            with pytest.raises(ValueError, match=r"must have a name of 1 to 64 letters"):
                await dispatcher.unschedule(name)
        with pytest.raises(InvalidCapabilityError):
            await dispatcher.schedule("tick", "a.b", Message(), every=1)
        with pytest.raises(InvalidMessageError, match="is not a Message"):
            await dispatcher.schedule("tick", "coder", {}, every=1)
        with pytest.raises(InvalidMessageError, match="has the ID 'mine': leave it empty"):
            await dispatcher.schedule("tick", "coder", Message(id="mine"), every=1)
        with pytest.raises(TypeError, match="either cron or every"):
            await schedule()
        with pytest.raises(TypeError, match="either cron or every"):
            await schedule(cron="* * * * * *", every=1)
        for every in (0, 0.5, -1, 1.5, float("inf"), float("nan"), 10**10, timedelta(0)):
            with pytest.raises(ValueError, match=r"every must be whole seconds, from 1 up"):
                await schedule(every=every)
        for every in ("1", True, datetime.now(UTC)):
            with pytest.raises(TypeError, match=r"every must be a number of seconds, or a timed"):
                await schedule(every=every)
        with pytest.raises(TypeError, match="cron must be a string, not 5"):
            await schedule(cron=5)
        with pytest.raises(ValueError, match="has 5 fields, and six are needed"):
            await schedule(cron="0 6 * * *")
        with pytest.raises(ValueError, match="names a date that never comes"):
            await schedule(cron="0 0 0 31 2 *")
        assert await dispatcher.schedules() == []


@within(20)
async def test_schedules_do_not_hold_up_other_tasks(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.schedule("tick", "coder", Message(), every=1)
        assert (await dispatcher.run("coder", Message(id="tick"))).status == Status.SUCCESS
