"""Tasks of a group that are cancelled together, as it goes over a real server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.handlers import Staff, Waiting
from tests._helpers.nats_servers import listening
from tests._helpers.plain_nats import PlainClient, open_plain_client
from tests._helpers.proxy import HOST, OneWay, open_proxy
from tests._helpers.stream_setup import make
from tests.nats.test_permissions import permitting
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
from trio_swarmtask._dispatcher import _group
from trio_swarmtask._jetstream import _cancel_many
from trio_swarmtask._jetstream._cancel_many import _is_success
from trio_swarmtask._nats._protocol import Incoming
from trio_swarmtask._worker import _capability

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_swarmtask import Dispatcher, Future, TaskGroup
    from trio_swarmtask._abc import Delivery
    from trio_swarmtask.server import Server

COUNT = 10


async def start(group: TaskGroup, count: int = COUNT) -> list[Future]:
    return [await group.start("coder", Message()) for _ in range(count)]


def states(futures: list[Future]) -> set[TaskState]:
    return {future.state for future in futures}


@asynccontextmanager
async def open_busy(server: Server, places: int = 2) -> AsyncIterator[Dispatcher]:
    """A worker with so many places, and no task yet; its durable is there before any task."""
    async with open_worker(server.url) as worker, open_dispatcher(server.url) as dispatcher:
        await worker.handle("coder", Waiting(), max_in_flight=places)
        yield dispatcher


@within(20)
async def test_nothing_is_searched_for(server: Server) -> None:
    """However many children there are: one question how far the durable is, one for a time."""
    async with open_busy(server) as dispatcher, open_plain_client(server.port) as client:
        async with dispatcher.open_group() as group:
            futures = await start(group)
            looks = await client.subscribe("$JS.API.STREAM.MSG.GET.TASKS")
            questions = await client.subscribe("$JS.API.CONSUMER.INFO.TASKS.work-coder")
            results = await client.subscribe("done.>")
            await client.flush()
            group.cancel_scope.cancel()
        await client.flush()
        assert states(futures) == {TaskState.STOPPED}
        assert looks.statistics().current_buffer_used == 1
        assert questions.statistics().current_buffer_used == 1
        # The worker has looked, and has not sent another one, which would be refused.
        assert results.statistics().current_buffer_used == COUNT
        assert await client.messages("TASKS", "work.>") == []


@within(20)
async def test_newest_are_told_of_first(server: Server) -> None:
    """A worker knows what it is not to take before it has a place for another task."""
    async with open_busy(server) as dispatcher, open_plain_client(server.port) as client:
        async with dispatcher.open_group() as group:
            futures = await start(group)
            notices = await client.subscribe("cancel.coder.*")
            await client.flush()
            group.cancel_scope.cancel()
        told = [(await notices.receive()).subject.rpartition(".")[2] for _ in futures]
        assert told == [future.id for future in reversed(futures)]


@within(20)
async def test_server_looks_for_a_first_result_whatever_the_stream(server: Server) -> None:
    """An operator may have changed the stream: then it refuses no second result by itself."""
    async with open_busy(server) as dispatcher, open_plain_client(server.port) as client:
        async with dispatcher.open_group() as group:
            await start(group)
            results = await client.subscribe("done.>")
            await client.flush()
            group.cancel_scope.cancel()
        for _ in range(COUNT):
            headers = (await results.receive()).headers
            assert headers["Nats-Expected-Last-Subject-Sequence"] == "0"


@within(20)
async def test_in_portions(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cancel_many, "_AT_ONCE", 3)
    async with open_busy(server) as dispatcher, open_plain_client(server.port) as client:
        async with dispatcher.open_group() as group:
            futures = await start(group)
            group.cancel_scope.cancel()
        assert states(futures) == {TaskState.STOPPED}
        assert await client.messages("TASKS", "work.>") == []


@within(20)
async def test_task_that_comes_after_its_cancellation(server: Server) -> None:
    """Its worker says how it has ended to all who have told of it."""
    staff = Staff()
    async with (
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
        open_plain_client(server.port) as client,
    ):
        await worker.handle("coder", staff, max_in_flight=1)
        first = await dispatcher.start("coder", Message(inputs={"do": "wait"}))
        await until(lambda: staff.running)
        second = await dispatcher.start("coder", Message())
        result = Result(id=second.id, status=Status.FAILED, error="no more").encode()
        await client.publish(f"done.{second.id}", result)
        answers = await client.subscribe("_INBOX.me.*")
        for number in (1, 2):
            await client.publish(f"cancel.coder.{second.id}", b"", b"", f"_INBOX.me.{number}")
        await client.flush()
        await first.cancel()
        heard = [await answers.receive() for _ in range(4)]
        assert [(one.subject[-1], one.data) for one in heard] == [
            ("1", b"running"),
            ("2", b"running"),
            ("1", b"ended"),
            ("2", b"ended"),
        ]
        assert len(staff.messages) == 1
        # Who tells of it now hears the same.
        await client.publish(f"cancel.coder.{second.id}", b"", b"", "_INBOX.me.3")
        assert [(await answers.receive()).data for _ in range(2)] == [b"running", b"ended"]


@within(20)
async def test_tasks_that_are_older_than_the_durable(server: Server) -> None:
    """It can't say that they were never delivered; a worker that they reach can."""
    handler = Waiting()
    async with (
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
        open_plain_client(server.port) as client,
    ):
        async with dispatcher.open_group() as group:
            futures = await start(group)
            await worker.handle("coder", handler, max_in_flight=1)
            await handler.started.wait()
            begun = trio.current_time()
            group.cancel_scope.cancel()
        assert trio.current_time() - begun < 1.5
        assert states(futures) == {TaskState.STOPPED}
        assert handler.calls == 1
        assert await client.messages("TASKS", "work.>") == []


@within(20)
async def test_no_worker_was_ever_there(server: Server) -> None:
    async with (
        open_dispatcher(server.url) as dispatcher,
        open_plain_client(server.port) as client,
    ):
        async with dispatcher.open_group() as group:
            futures = await start(group)
            begun = trio.current_time()
            group.cancel_scope.cancel()
        assert trio.current_time() - begun < 1
        assert states(futures) == {TaskState.UNCONFIRMED}  # a durable may have been deleted
        assert all(future.result.cancelled_by for future in futures)
        assert await client.messages("TASKS", "work.>") == []


@pytest.mark.parametrize(
    "answer", [b'"stream":"TASK_RESULTS"', b"consumer_info_response", b"msg_delete_response"]
)
@within(20)
async def test_connection_that_goes_half_way(server: Server, answer: bytes) -> None:
    """What has no answer is done one by one, when the server is back."""
    handler = Waiting()
    async with (
        open_worker(server.url) as worker,
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        open_plain_client(server.port) as client,
    ):
        await worker.handle("coder", handler, max_in_flight=2)
        async with dispatcher.open_group() as group:
            futures = await start(group)
            await until(lambda: handler.running == 2)
            proxy.cut_at_answer(answer)
            group.cancel_scope.cancel()
        assert handler.running == 0
        assert states(futures) == {TaskState.STOPPED}
        assert await client.messages("TASKS", "work.>") == []


@within(20)
async def test_outage_that_comes_before(server: Server) -> None:
    """Nothing can be sent together, so each task is cancelled when the server is back."""
    async with (
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        open_plain_client(server.port) as client,
    ):
        connection = dispatcher._core.outbox._connection  # type: ignore[attr-defined]  # the one of a server
        async with dispatcher.open_group() as group:
            futures = await start(group)
            proxy.cut(for_good=True)
            await until(lambda: not connection.is_up)
            group.cancel_scope.cancel()
            proxy.mend()
        assert all(future.result.cancelled_by for future in futures)
        assert await client.messages("TASKS", "work.>") == []


@within(20)
async def test_server_that_is_lost_for_good_meanwhile(server: Server) -> None:
    """The block does not wait for its grace."""
    handler = Waiting(clean_up=3)
    futures: list[Future] = []

    async def cut_soon() -> None:
        await handler.cancelled.wait()
        proxy.cut(for_good=True)

    async with (
        open_proxy(server.port) as proxy,
        open_worker(server.url) as worker,
        trio.open_nursery() as nursery,
    ):
        await worker.handle("coder", handler)
        nursery.start_soon(cut_soon)
        with pytest.raises(BrokerError, match="for good"):
            config = NATSConfig(proxy.url, reconnect_timeout=0.1)
            async with (
                open_dispatcher(config) as dispatcher,
                dispatcher.open_group(grace=60) as group,
            ):
                futures += await start(group, 2)
                await until(lambda: handler.running == 2)
                group.cancel_scope.cancel()
        assert states(futures) == {TaskState.UNCONFIRMED}


@within(20)
async def test_tasks_that_may_have_been_stored_twice(server: Server) -> None:
    """Where they are is not known for sure: each is searched for."""
    async with (
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        open_plain_client(server.port) as client,
    ):
        async with dispatcher.open_group() as group:
            await start(group, 1)
            proxy.cut_at_answer(b'"stream":"TASKS"')
            [future] = await start(group, 1)
            assert not future._receipt
            group.cancel_scope.cancel()
        assert future.result.cancelled_by
        assert await client.messages("TASKS", "work.>") == []


@within(20)
async def test_any_number_of_notices(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task that is not there yet so many are kept."""
    monkeypatch.setattr(_capability, "_NOTICES", 3)
    staff = Staff()
    async with (
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
        open_plain_client(server.port) as client,
    ):
        await worker.handle("coder", staff)
        await dispatcher.run("coder", Message())  # it hears of cancellations by now
        answers = await client.subscribe("_INBOX.me.*")
        for number in range(5):
            await client.publish("cancel.coder.mine", b"", b"", f"_INBOX.me.{number}")
        await client.flush()
        assert (await dispatcher.run("coder", Message(id="mine"))).status == Status.SUCCESS
        heard = [await answers.receive() for _ in range(6)]
        assert [one.subject[-1] for one in heard] == ["0", "1", "2"] * 2


@within(20)
async def test_queue_that_does_not_let_tasks_be_taken_out(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs is stopped; what waits is told, one by one, and ended by its worker."""
    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", retention="workqueue", deny_delete=True)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        handler = Waiting()
        await worker.handle("coder", handler, max_in_flight=1)
        async with dispatcher.open_group() as group:
            futures = await start(group, 3)
            await handler.started.wait()
            group.cancel_scope.cancel()
        assert handler.running == 0
        assert futures[0].state == TaskState.STOPPED
        assert all(future.result.cancelled_by for future in futures)
        await nats_swarm.wait_until_empty()
        assert handler.calls == 1


@within(20)
async def test_workers_that_may_not_be_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        permitting(tmp_path, 'publish: {deny: ["cancel.>"]}') as (config, _),
        open_dispatcher(config) as dispatcher,
    ):
        async with dispatcher.open_group() as group:
            futures = await start(group, 2)
            group.cancel_scope.cancel()
        assert states(futures) == {TaskState.UNCONFIRMED}
    for future in futures:
        assert f"does not permit this user to publish to cancel.coder.{future.id}" in caplog.text


@within(20)
async def test_result_that_came_first(server: Server) -> None:
    """It counts, and is no cancellation."""
    link = OneWay(server.port)
    async with (
        listening(link.serve) as port,
        open_dispatcher(f"nats://{HOST}:{port}") as dispatcher,
        open_plain_client(server.port) as client,
    ):
        async with dispatcher.open_group() as group:
            first, second = await start(group, 2)
            link.free = trio.Event()
            result = Result(id=first.id, status=Status.SUCCESS, outputs="x" * 1_000_000)
            await client.publish(f"done.{first.id}", result.encode())
            await client.flush()
            group.cancel_scope.cancel()
            link.free.set()
        assert first.state == TaskState.ENDED
        assert first.result.status == Status.SUCCESS
        assert second.result.cancelled_by


@within(20)
async def test_answers_that_come_when_the_block_was_left(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_group, "_TELLING", 0.1)
    link = OneWay(server.port)
    async with (
        listening(link.serve) as port,
        open_dispatcher(f"nats://{HOST}:{port}") as dispatcher,
        open_plain_client(server.port) as client,
    ):
        async with dispatcher.open_group(grace=0) as group:
            first, second = await start(group, 2)
            link.free = trio.Event()
            result = Result(id=first.id, status=Status.SUCCESS, outputs=5)
            await client.publish(f"done.{first.id}", result.encode())
            await client.flush()
            group.cancel_scope.cancel()
        assert states([first, second]) == {TaskState.OUTSTANDING}
        link.free.set()
        again = [await dispatcher.attach(future.id) for future in (first, second)]
        assert (await again[0].wait()).outputs == 5
        assert (await again[1].wait()).cancelled_by
    assert not [record for record in caplog.records if record.exc_info]


async def answer(client: PlainClient, inbox: str, *words: bytes) -> None:
    for word in words:
        await client.publish(inbox, word)


@within(20)
async def test_several_workers_had_it(nats_swarm: NATSSwarm, server: Server) -> None:
    """Each says that it runs, and that it has ended: the last one is waited for."""
    arrived: list[Delivery] = []
    ended = False

    async def play(client: PlainClient) -> None:
        nonlocal ended
        pushes = await client.subscribe("cancel.coder.*")
        await client.flush()
        ready.set()
        one, two = [(await pushes.receive()).reply for _ in range(2)]
        await answer(client, one, b"running", b"ended", b"running")  # the second is another's
        await answer(client, two, b"running", b"nonsense", b"ended")
        await client.flush()
        ended = True
        await answer(client, one, b"ended")

    ready = trio.Event()
    async with (
        open_plain_client(server.port) as client,
        open_dispatcher(server.url) as dispatcher,
        nats_swarm.open() as broker,
        broker.open_intake("coder", each(arrived.append)) as intake,
        trio.open_nursery() as nursery,
    ):
        intake.ask(2)
        nursery.start_soon(play, client)
        await ready.wait()
        async with dispatcher.open_group() as group:
            futures = await start(group, 2)
            await until(lambda: len(arrived) == 2)
            group.cancel_scope.cancel()
        assert ended
        assert states(futures) == {TaskState.STOPPED}


def test_answers_to_a_deletion() -> None:
    for data, is_success in (
        (b'{"type":"io.nats.jetstream.api.v1.stream_msg_delete_response","success":true}', True),
        (b'{"success":false}', False),
        (b'{"error":{"code":500,"err_code":10057,"description":"not permitted"}}', False),
        (b'{"success":"yes"}', False),
        (b"", False),
    ):
        assert _is_success(Incoming(b"_INBOX.x", None, b"", data)) == is_success
