"""Cancelling a task from afar, as it goes over a real server."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.handlers import Waiting
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    BrokerError,
    Message,
    NATSConfig,
    Result,
    Status,
    TaskState,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._envelope import CAPABILITY
from trio_swarmtask._jetstream import _api as _stored, _cancel, _outbox
from trio_swarmtask._jetstream._api import APIError, call
from trio_swarmtask._jetstream._cancel import Delivered, Progress
from trio_swarmtask._worker import _capability as _service

if TYPE_CHECKING:
    from trio_swarmtask._abc import Delivery
    from trio_swarmtask._nats._protocol import Incoming
    from trio_swarmtask._nats._requests import Requests
    from trio_swarmtask.server import Server


@within(20)
async def test_nobody_who_listens_is_not_waited_for(nats_swarm: NATSSwarm) -> None:
    """A worker of another kind has the task: what it stores later is not the result."""
    arrived: list[Delivery] = []
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.open() as broker:
        async with broker.open_intake("coder", each(arrived.append)) as intake:
            intake.ask(1)
            future = await dispatcher.start("coder", Message())
            await until(lambda: arrived)
            assert not await dispatcher._core.futures.cancel(future, math.inf)
            late = Result(id=future.id, status=Status.SUCCESS, agent="late")
            assert not await arrived[0].complete(late.encode())
        assert (await future.wait()).cancelled_by


@within(20)
async def test_silent_worker_is_not_waited_for(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that had the task has died; others listen, and know nothing of it."""
    monkeypatch.setattr(_cancel, "ANSWER_SECONDS", 0.2)
    arrived: list[Delivery] = []
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.open() as broker:
        async with broker.open_intake("coder", each(arrived.append)) as intake:
            intake.ask(1)
            future = await dispatcher.start("coder", Message())
            await until(lambda: arrived)
        async with nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert not await dispatcher._core.futures.cancel(future, math.inf)


@within(20)
async def test_slow_clean_up_is_waited_for_by_whom_it_was_told(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cancel, "ANSWER_SECONDS", 0.5)
    started = trio.Event()

    async def clean_up(message: Message) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2, shield=True):
                await trio.sleep(1)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", clean_up)
        future = await dispatcher.start("coder", Message())
        await started.wait()
        assert await dispatcher._core.futures.cancel(future, 10)


@within(20)
async def test_only_inboxes_are_answered(nats_swarm: NATSSwarm) -> None:
    """An answer on another subject could mean something there."""
    handler = Waiting()
    answers: list[tuple[str, bytes]] = []

    def hear(message: Incoming) -> None:
        answers.append((message.subject, message.data))

    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        raw.connection.subscribe("elsewhere", hear)
        raw.connection.subscribe("_INBOX.mine.1", hear)
        await raw.requests.echo()
        for reply in ("elsewhere", "", "_INBOX.mine.1"):
            raw.connection.publish(f"cancel.coder.{future.id}", b"", reply)
        await until(lambda: len(answers) == 2)
        assert answers == [("_INBOX.mine.1", b"running"), ("_INBOX.mine.1", b"ended")]
        # Nobody has stored a result, so the worker did.
        assert (await future.wait()).cancelled_by == worker.name


@within(20)
async def test_more_wait_than_are_told(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_service, "_NOTICES", 2)
    handler = Waiting()
    answers: list[bytes] = []
    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        raw.connection.subscribe("_INBOX.mine", lambda message: answers.append(message.data))
        await raw.requests.echo()
        for _ in range(3):
            raw.connection.publish(f"cancel.coder.{future.id}", b"", "_INBOX.mine")
        await until(lambda: len(answers) == 5)
        assert sorted(answers) == [b"ended"] * 2 + [b"running"] * 3


@within(20)
async def test_nobody_is_asked_about_what_nobody_has_cancelled(nats_swarm: NATSSwarm) -> None:
    """Whoever looks at the future of a task; about one that others have cancelled, once."""
    asked: list[str] = []

    async def handle(message: Message) -> None:
        if message.inputs:
            raise ValueError("no luck")

    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.dispatcher() as other,
        nats_swarm.raw() as raw,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", handle)
        raw.connection.subscribe("cancel.>", lambda message: asked.append(message.subject))
        await raw.requests.echo()
        for message in (Message(), Message(inputs={"do": "fail"})):
            future = await dispatcher.start("coder", message)
            for each in (future, await other.attach(future.id)):
                await each.wait()
                assert each.state == TaskState.ENDED
            async with dispatcher.open_group(on_failure="collect") as group:
                await group.start("coder", message)
        handler = Waiting()
        await worker.handle("waiting", handler)
        future = await dispatcher.start("waiting", Message())
        await handler.started.wait()
        await (await other.attach(future.id)).cancel()
        await future.wait()
        await until(lambda: future.state == TaskState.STOPPED)
        await future.wait()
        await raw.requests.echo()
    assert asked == [f"cancel.waiting.{future.id}"] * 2


@within(20)
async def test_worker_that_was_away_hears_of_it_when_it_is_back(server: Server) -> None:
    handler = Waiting()
    async with (
        open_proxy(server.port) as proxy,
        open_worker(proxy.url) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        proxy.cut(for_good=True)
        await future.cancel()
        assert not handler.cancelled.is_set()
        proxy.mend()
        await handler.cancelled.wait()
        await until(lambda: worker.statistics().in_flight == 0)
        assert worker.statistics().cancelled == 1


@within(30)
async def test_canceller_that_is_cut_off_goes_on_when_it_is_back(server: Server) -> None:
    handler = Waiting()
    async with (
        open_proxy(server.port) as proxy,
        open_worker(server.url) as worker,
        open_dispatcher(proxy.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        proxy.cut(for_good=True)
        nursery.start_soon(future.cancel)
        with trio.move_on_after(0.3):
            await handler.cancelled.wait()
        assert not handler.cancelled.is_set()
        proxy.mend()
        await handler.cancelled.wait()
        assert (await future.wait()).cancelled_by


@within(20)
async def test_task_that_is_not_due_is_taken_out_too(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        future = await dispatcher.start("coder", Message(id="t1"))  # perhaps stored by another one
        await raw.store("work.coder.t1.later", b"")
        await future.cancel()
        assert await raw.subjects("TASKS", ">") == []


@within(20)
async def test_cancelling_where_the_queue_is_gone(nats_swarm: NATSSwarm) -> None:
    """The stream was deleted: the task is lost, and its dispatcher hears of an end at least."""
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        futures = [await dispatcher.start("coder", Message()) for _ in range(2)]
        await raw.api("STREAM.DELETE.TASKS")
        await futures[0].cancel()
        assert (await futures[0].wait()).cancelled_by
        await raw.api("STREAM.DELETE.TASKS")
        async with nats_swarm.dispatcher() as other:
            future = await other.attach(futures[1].id)
            await future.cancel()
        assert (await futures[1].wait()).cancelled_by


@pytest.mark.parametrize(
    ("request_", "body"), [("STREAM.DELETE.TASKS", {}), ("STREAM.MSG.DELETE.TASKS", {"seq": 1})]
)
@within(20)
async def test_task_that_goes_just_before_it_is_taken_out(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, request_: str, body: dict[str, int]
) -> None:
    """Its worker has ended it; or the stream was deleted."""
    delivered = Delivered.find

    async def end_it(asked: Delivered, stream: str, capability: str) -> Progress | None:
        monkeypatch.undo()
        progress = await delivered(asked, stream, capability)
        await raw.api(request_, **body)
        return progress

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        future = await dispatcher.start("coder", Message())
        monkeypatch.setattr(Delivered, "find", end_it)
        await future.cancel()
        assert await raw.subjects("TASKS", ">") == []


@within(20)
async def test_server_that_fails_to_take_it_out_is_asked_again(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_once(requests: Requests, request: str, /, **body: object) -> dict[str, object]:
        if "DELETE" in request:
            monkeypatch.undo()
            raise APIError(500, 10057, "disk on fire")
        return await call(requests, request, **body)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.raw() as raw:
        future = await dispatcher.start("coder", Message())
        monkeypatch.setattr(_stored, "call", fail_once)
        await future.cancel()
        assert await raw.subjects("TASKS", ">") == []
    assert "trying again: disk on fire" in caplog.text


@within(20)
async def test_queue_that_refuses_is_an_error(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        settings = {"subjects": ["work.>"], "retention": "workqueue", "deny_delete": True}
        await raw.api("STREAM.CREATE.TASKS", name="TASKS", **settings)
    async with nats_swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        with pytest.raises(BrokerError, match=f"task {future.id} be taken out .* deny_delete"):
            await future.cancel()
        assert (await future.wait()).cancelled_by  # that is stored all the same


@within(20)
async def test_several_streams_of_tasks_are_searched(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        for name in ("coder", "tester"):
            settings = {"subjects": [f"work.{name}.>"], "retention": "workqueue"}
            await raw.api(f"STREAM.CREATE.{name}", name=name, **settings)
        async with nats_swarm.dispatcher() as one, nats_swarm.dispatcher() as two:
            future = await one.start("tester", Message())
            await (await two.attach(future.id)).cancel()
            assert (await future.wait()).cancelled_by
            assert await raw.subjects("tester", ">") == []


@within(20)
async def test_look_that_fails_is_told_once(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def refuse(*_: object) -> None:
        nonlocal looks
        looks += 1
        raise BrokerError("no look-ups today")

    handler = Waiting()
    async with (
        open_worker(NATSConfig(server.url, ack_wait=1)) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", handler)
        monkeypatch.setattr(worker._services["coder"].intake, "find_done", refuse)  # type: ignore[union-attr]  # it is there
        future = await dispatcher.start("coder", Message())
        await until(lambda: looks == 3)
        assert caplog.text.count("no look-ups today") == 1
        await future.cancel()
        await handler.cancelled.wait()
        await worker.handle("tester", echo)
        assert (await dispatcher.run("tester", Message())).status == Status.SUCCESS


@within(20)
async def test_result_of_a_task_that_has_ended_meanwhile(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked for while the task ran: nothing else is cancelled for it."""
    looked = trio.Event()

    async def find(_: object) -> dict[str, bytes]:
        looked.set()
        return {"another": b"{}"}

    async def wait(_: Message) -> None:
        await looked.wait()

    async with (
        open_worker(NATSConfig(server.url, ack_wait=1)) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", wait)
        monkeypatch.setattr(worker._services["coder"].intake, "find_done", find)  # type: ignore[union-attr]  # it is there
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@pytest.mark.parametrize("problem", ["silence", "refusal"])
@within(20)
async def test_capability_that_is_not_found_out(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    """The result does not say it then; the task is cancelled all the same."""
    handler = Waiting()

    async def find(requests: Requests, task_id: str) -> str | None:
        if problem == "silence":
            await trio.sleep_forever()
        raise APIError(400, 0, "no")

    monkeypatch.setattr(_outbox, "_FIND_SECONDS", 0.2)
    monkeypatch.setattr(_outbox, "find_task", find)
    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.dispatcher() as other,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        attached = await other.attach(future.id)
        await attached.cancel()
        await until(lambda: handler.clean_ups)
        assert CAPABILITY not in attached.result.metadata
