"""Tasks that are not due, as a real server keeps them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.nats_servers import kill, restarted
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    BrokerError,
    InvalidMessageError,
    Message,
    Result,
    Status,
    open_dispatcher,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import _api as _stored, _tasks as _later, _tasks as _task_store
from trio_swarmtask._jetstream._api import APIError, call
from trio_swarmtask._jetstream._refusals import NO_STREAM, SCHEDULES_DISABLED
from trio_swarmtask._jetstream._streams import Streams

if TYPE_CHECKING:
    from tests._helpers.brokers import Raw
    from trio_swarmtask._jetstream._api import PubAck
    from trio_swarmtask._nats._requests import Requests
    from trio_swarmtask.server import Server


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def task_due(task_id: str, due: datetime) -> NewTask:
    return NewTask("coder", task_id, Message(id=task_id).encode(), not_before=due)


async def make_stream(raw: Raw, **settings: Any) -> None:
    """A queue that takes schedules and forgets IDs at once, unless said otherwise."""
    wanted: dict[str, Any] = {
        "name": "TASKS",
        "subjects": ["work.>"],
        "retention": "workqueue",
        "allow_msg_schedules": True,
        "duplicate_window": 100_000_000,
    }
    wanted |= settings
    await raw.api(f"STREAM.CREATE.{wanted['name']}", **wanted)


async def queued(raw: Raw, count: int) -> None:
    """Wait until so many tasks are due. That has no event for one who is no worker."""
    while len(await raw.subjects("TASKS", "work.*.*")) < count:  # noqa: ASYNC110 - no event
        await trio.sleep(0.01)


@within(20)
async def test_never_early_and_soon_after(nats_swarm: NATSSwarm) -> None:
    times: dict[str, datetime] = {}

    async def handle(message: Message) -> None:
        times[message.id] = datetime.now(UTC)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", handle)
        due = {f"t{number}": in_seconds(0.5 + number / 100) for number in range(50)}
        for name, time in due.items():
            await dispatcher.start("coder", Message(id=name), not_before=time)
        await until(lambda: len(times) == 50)
    late = [times[name] - time for name, time in due.items()]
    assert min(late) > timedelta(0)
    assert max(late) < timedelta(seconds=1)


@within(30)
async def test_server_that_is_killed_before_a_task_is_due(server: Server) -> None:
    """In the outage it comes due, and is run once the server is back."""
    async with open_dispatcher(server.url) as dispatcher:
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(0.5))
        far = await dispatcher.start("coder", Message(), not_before=in_seconds(3600))
        kill(server)
        await trio.sleep(0.6)  # the outage
        async with restarted(server) as again, NATSSwarm(again.url).worker() as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS
            async with NATSSwarm(again.url).raw() as raw:
                assert await raw.subjects("TASKS", ">") == [f"work.coder.{far.id}.later"]


@within(20)
async def test_lost_answer_makes_no_second_task(server: Server) -> None:
    calls = 0

    async def handle(message: Message) -> None:
        nonlocal calls
        calls += 1

    swarm = NATSSwarm(server.url)
    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        await dispatcher.start("coder", Message(id="far"), not_before=in_seconds(3600))
        proxy.cut_at_answer(b'"seq"')
        future = await dispatcher.start("coder", Message(id="mine"), not_before=in_seconds(0.5))
        assert proxy.cuts == 1
        async with swarm.worker() as worker:
            await worker.handle("coder", handle)
            await future.wait()
        assert await swarm.count_tasks() == 1
    assert calls == 1


@within(20)
async def test_repeat_is_the_same_task_wherever_it_is_by_then(nats_swarm: NATSSwarm) -> None:
    """Not due, in the queue, or done, with the ID forgotten each time."""
    async with nats_swarm.raw() as raw, nats_swarm.outbox() as outbox:
        await make_stream(raw)
        task = task_due("mine", in_seconds(0.5))
        assert await outbox.store(task)
        await trio.sleep(0.2)  # until the server has forgotten the ID
        assert not await outbox.store(task)
        assert not await outbox.store(task, tried=True)
        assert await raw.subjects("TASKS", ">") == ["work.coder.mine.later"]
        await queued(raw, 1)
        assert not await outbox.store(task, tried=True)
        assert await raw.subjects("TASKS", ">") == ["work.coder.mine"]
        result = Result(id="mine", status=Status.SUCCESS)
        assert await outbox.store_result("mine", result.encode()) == result.encode()
        await raw.api("STREAM.MSG.DELETE.TASKS", seq=2)
        assert not await outbox.store(task, tried=True)
        assert await raw.subjects("TASKS", ">") == []
        assert await outbox.store(task_due("new", in_seconds(3600)), tried=True)


@pytest.mark.needs_schedules
@within(20)
async def test_refusals_say_what_to_do(nats_swarm: NATSSwarm) -> None:
    both = {"max_msgs": 10, "discard": "new", "allow_msg_schedules": False}
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{"allow_msg_schedules": False}], r"TASKS does not: set allow_msg_schedules in its conf"),
        ([both], r"does not go with stream TASKS: it discards new messages where it is full"),
        ([{"subjects": ["work.*.*"]}], r"holds work\.coder\.\*\.later beside .* to stream TASKS"),
        (
            [{"subjects": ["work.*.*"]}, {"name": "LATER", "subjects": ["work.*.*.later"]}],
            r"holds both work\.coder\.\* and work\.coder\.\*\.later, and LATER holds only",
        ),
    ]
    async with nats_swarm.raw() as raw:
        for streams, refusal in cases:
            for settings in streams:
                await make_stream(raw, **settings)
            async with nats_swarm.dispatcher() as dispatcher:
                with pytest.raises(BrokerError, match=f"^not_before .*{refusal}"):
                    await dispatcher.start("coder", Message(), not_before=in_seconds(60))
                with pytest.raises(BrokerError, match=f"^a schedule .*{refusal}"):
                    await dispatcher.schedule("tick", "coder", Message(), every=1)
                assert dispatcher.statistics().outstanding == 0
            for settings in streams:
                await raw.api(f"STREAM.DELETE.{settings.get('name', 'TASKS')}")


@pytest.mark.needs_schedules
@within(20)
async def test_server_that_is_too_old(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = (2, 13)
    monkeypatch.setattr(Streams, "server_has", lambda _, since: version >= since)
    async with nats_swarm.dispatcher() as dispatcher:
        with pytest.raises(BrokerError, match=r"2\.15, and a schedule needs 2\.14 or newer"):
            await dispatcher.schedule("tick", "coder", Message(), every=1)
        version = (2, 11)
        with pytest.raises(BrokerError, match=r"2\.15, and not_before needs 2\.12 or newer"):
            await dispatcher.start("coder", Message(), not_before=in_seconds(60))
        await dispatcher.start("coder", Message())
        async with nats_swarm.raw() as raw:
            config = (await raw.api("STREAM.INFO.TASKS"))["config"]
            assert not config.get("allow_msg_schedules")


@within(20)
async def test_stream_that_was_replaced_meanwhile(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await dispatcher.start("coder", Message(), not_before=in_seconds(60))
        await raw.api("STREAM.DELETE.TASKS")
        await dispatcher.start("coder", Message(), not_before=in_seconds(60))  # made anew
        await raw.api("STREAM.DELETE.TASKS")
        async with nats_swarm.outbox() as outbox:
            assert await outbox.store(task_due("one", in_seconds(60)))
            await raw.api("STREAM.DELETE.TASKS")
            assert await outbox.store(task_due("two", in_seconds(60)), tried=True)
        await raw.api("STREAM.DELETE.TASKS")
        await make_stream(raw, allow_msg_schedules=False)
        with pytest.raises(BrokerError, match="set allow_msg_schedules"):
            await dispatcher.start("coder", Message(), not_before=in_seconds(60))


@pytest.mark.needs_schedules
@within(20)
async def test_stream_that_takes_no_such_message(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await make_stream(raw, max_msg_size=1000)
        message = Message(inputs={"text": "x" * 1000})
        with pytest.raises(InvalidMessageError, match="larger than the stream of 'coder' takes"):
            await dispatcher.start("coder", message, not_before=in_seconds(60))
        with pytest.raises(InvalidMessageError, match="larger than the stream of 'coder' takes"):
            await dispatcher.schedule("tick", "coder", message, every=1)


@pytest.mark.parametrize("code", [1, SCHEDULES_DISABLED])
@within(20)
async def test_odd_refusal_is_an_error(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The second one is odd where the stream takes schedules, as far as it says."""

    async def refuse(*_: object) -> PubAck:
        raise APIError(400, code, "an odd request")

    async with nats_swarm.dispatcher() as dispatcher:
        monkeypatch.setattr(_later, "publish", refuse)
        with pytest.raises(BrokerError, match="refuses to keep task mine until it is due: an odd"):
            await dispatcher.start("coder", Message(id="mine"), not_before=in_seconds(60))


@pytest.mark.needs_schedules
@within(20)
async def test_id_that_is_the_name_of_a_schedule(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.dispatcher() as dispatcher:
        await dispatcher.schedule("tick", "coder", Message(), every=3600)
        with pytest.raises(BrokerError, match="a schedule has that name; give the task another"):
            await dispatcher.start("coder", Message(id="tick"), not_before=in_seconds(60))
        await dispatcher.start("coder", Message(id="tock"), not_before=in_seconds(60))
        with pytest.raises(BrokerError, match="a task that is not due has that ID; choose another"):
            await dispatcher.schedule("tock", "coder", Message(), every=3600)
        assert not await dispatcher.unschedule("tock")
        assert [schedule.name for schedule in await dispatcher.schedules()] == ["tick"]


@within(20)
async def test_task_that_comes_due_while_it_is_cancelled(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken out of the queue."""

    async def fire_first(requests: Requests, request: str, /, **body: Any) -> dict[str, Any]:
        if "DELETE" in request:
            monkeypatch.undo()
            await queued(raw, 1)
        return await call(requests, request, **body)

    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(0.3))
        monkeypatch.setattr(_stored, "call", fire_first)
        await future.cancel()
        assert await raw.subjects("TASKS", ">") == []


@within(20)
async def test_message_that_can_not_be_deleted_now(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(requests: Requests, request: str, /, **body: Any) -> dict[str, Any]:
        if "DELETE" in request:
            raise APIError(400, 10057, "an odd request")
        return await call(requests, request, **body)

    async with nats_swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(), not_before=in_seconds(3600))
        monkeypatch.setattr(_stored, "call", refuse)
        with pytest.raises(BrokerError, match=f"refuses to cancel task {future.id}: an odd"):
            await future.cancel()


@within(30)
async def test_deadline_of_a_task_that_comes_late(server: Server) -> None:
    """The server is down when it is due. The deadline of the group is what it was."""
    ends: list[float] = []

    async def handler(message: Message) -> None:
        ends.append(trio.current_effective_deadline())

    async with open_dispatcher(server.url) as dispatcher:
        with trio.fail_after(10) as scope:
            async with dispatcher.open_group() as group:
                future = await group.start("coder", Message(), not_before=in_seconds(0.5))
                kill(server)
                await trio.sleep(2)  # the outage
                async with restarted(server) as again, NATSSwarm(again.url).worker() as worker:
                    await worker.handle("coder", handler)
                    await future.wait()
    assert ends == [pytest.approx(scope.deadline, abs=0.3)]


@pytest.mark.needs_schedules
@within(20)
async def test_id_that_is_the_name_of_a_schedule_may_be_started_at_once(
    nats_swarm: NATSSwarm,
) -> None:
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.schedule("tick", "coder", Message(), every=3600)
        for _ in range(2):
            result = await dispatcher.run("coder", Message(id="tick", inputs={"a": "b"}))
            assert result.outputs == {"a": "b"}


@within(20)
async def test_who_may_not_look_takes_what_is_later_for_the_task(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise BrokerError("not permitted")

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.start("coder", Message(id="mine"), not_before=in_seconds(0.5))
        monkeypatch.setattr(_task_store, "last_message", refuse)
        assert (await dispatcher.run("coder", Message(id="mine"))).status == Status.SUCCESS


@within(20)
async def test_stream_that_goes_while_its_time_is_asked_for(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made anew."""
    errors = [APIError(404, NO_STREAM, "stream not found")]

    async def once(requests: Requests, name: str, /, **body: Any) -> dict[str, Any]:
        if errors:
            raise errors.pop()
        return await call(requests, name, **body)

    async with nats_swarm.dispatcher() as dispatcher:
        monkeypatch.setattr(_later, "call", once)
        async with dispatcher.open_group() as group:
            with trio.fail_after(30):
                future = await group.start("coder", Message(), not_before=in_seconds(3600))
            await future.cancel()
    assert not errors
