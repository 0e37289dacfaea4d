"""What a worker's tasks come to, published as results: `publish_results`, on both brokers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import (
    MemoryBroker,
    Message,
    Result as TaskResult,
    Status,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask.results import (
    InvalidResultError,
    MemoryPublisher,
    Result,
    ResultPublisher,
    ResultStatus,
    _bridge,
    as_result,
    open_kv_publisher,
    publish_results,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PENDING, SUCCESS, FAILED = ResultStatus


async def follow(
    publisher: ResultPublisher, swarm: Swarm, handler: Callable[[Message], Awaitable[object]]
) -> list[Result]:
    """All that is published of one task that ``handler`` gets."""
    async with (
        publisher.subscribe("t-1") as updates,
        swarm.worker(name="ada", max_deliveries=1) as worker,
        swarm.dispatcher() as dispatcher,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", handler)
        await dispatcher.run("coder", Message(id="t-1", inputs={"a": "b"}, timeout=1))
        return [update async for update in updates]


@within(10)
async def test_task_is_announced_from_its_start_to_its_end(swarm: Swarm) -> None:
    """Outputs as JSON, and the agent, attempt and duration beside them."""
    begun, ended = await follow(MemoryPublisher(), swarm, echo)
    assert begun.status is PENDING
    assert begun.metadata == {"agent": "ada", "attempt": "1"}
    assert ended.status is SUCCESS
    assert ended.output == b'{"a":"b"}'
    assert ended.metadata is not None
    assert ended.metadata.keys() == {"agent", "attempt", "duration"}
    assert (ended.metadata["agent"], ended.metadata["attempt"]) == ("ada", "1")
    assert 0 <= int(ended.metadata["duration"]) < 1000


@within(10)
async def test_failures_and_timeouts_are_announced_as_failed(swarm: Swarm) -> None:
    async def fail(message: Message) -> None:
        raise ValueError("disk full")

    _, ended = await follow(MemoryPublisher(), swarm, fail)
    assert (ended.status, ended.error, ended.output) == (FAILED, "disk full", b"")

    async def overrun(message: Message) -> None:
        await trio.sleep_forever()

    async with MemoryPublisher() as publisher:
        async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
            publish_results(worker, publisher)
            await worker.handle("slow", overrun)
            await dispatcher.run("slow", Message(id="t-2", timeout=1))
        ended = await publisher.get("t-2")
    assert ended.status is FAILED
    assert ended.error == "the handler did not end within 1 seconds"
    assert int((ended.metadata or {})["duration"]) >= 1000


@within(10)
async def test_dead_letter_is_announced_as_failed(swarm: Swarm) -> None:
    """It has no start."""
    async with (
        MemoryPublisher() as publisher,
        publisher.subscribe("bad") as updates,
        swarm.worker() as worker,
        swarm.outbox() as outbox,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        await outbox.store(NewTask("coder", "bad", b"not JSON"))
        [ended] = [update async for update in updates]
    assert ended.status is FAILED
    assert ended.error.startswith("dead letter: not a message envelope")


@within(10)
async def test_cancellation_is_announced_as_failed(swarm: Swarm) -> None:
    started = trio.Event()

    async def wait(message: Message) -> None:
        started.set()
        await trio.sleep_forever()

    async with (
        MemoryPublisher() as publisher,
        publisher.subscribe("t-1") as updates,
        swarm.worker() as worker,
        swarm.dispatcher() as dispatcher,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", wait)
        future = await dispatcher.start("coder", Message(id="t-1"))
        await started.wait()
        await future.cancel()
        _, ended = [update async for update in updates]
    assert (ended.status, ended.error) == (FAILED, "the task was cancelled")


@within(10)
async def test_result_that_ended_a_handler_is_announced(swarm: Swarm) -> None:
    """Another worker stored it, which may have died since."""
    started = trio.Event()
    swarm.configure(ack_wait=1)

    async def wait(message: Message) -> None:
        started.set()
        await trio.sleep_forever()

    async with (
        MemoryPublisher() as publisher,
        publisher.subscribe("t-1") as updates,
        swarm.worker() as worker,
        swarm.dispatcher() as dispatcher,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", wait)
        await dispatcher.start("coder", Message(id="t-1"))
        await started.wait()
        theirs = TaskResult(id="t-1", status=Status.SUCCESS, outputs="theirs")
        await swarm.store_result("t-1", theirs.encode())
        _, ended = [update async for update in updates]
    assert (ended.status, ended.output) == (SUCCESS, b'"theirs"')


@within(10)
async def test_result_of_another_worker_is_not_announced(swarm: Swarm) -> None:
    """Only the task's own result is: the first that was stored."""

    async def be_late(message: Message) -> str:
        first = TaskResult(id="t-1", status=Status.SUCCESS, outputs="first", agent="other")
        await swarm.store_result("t-1", first.encode())
        return "late"

    async with MemoryPublisher() as publisher:
        async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
            publish_results(worker, publisher)
            await worker.handle("coder", be_late)
            assert (await dispatcher.run("coder", Message(id="t-1"))).outputs == "first"
        assert (await publisher.get("t-1")).status is PENDING


@within(10)
async def test_redelivered_task_does_not_take_its_result_back(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    """Its start is refused without a word, and its end is announced over the other."""
    async with MemoryPublisher() as publisher:
        await publisher.publish("t-1", Result(status=FAILED, error="an earlier run"))
        [stored, ended] = await _follow_two(publisher, swarm)
    assert (stored.error, ended.status) == ("an earlier run", SUCCESS)
    assert not [text for text in caplog.messages if "announce" in text]


async def _follow_two(publisher: MemoryPublisher, swarm: Swarm) -> list[Result]:
    stored = await publisher.get("t-1")
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message(id="t-1"))
    return [stored, await publisher.get("t-1")]


@within(10)
async def test_task_that_is_given_back_stays_pending(swarm: Swarm) -> None:
    """Until another worker ends it."""
    began = trio.Event()

    async def stop(message: Message) -> None:
        began.set()
        await trio.sleep_forever()

    async with (
        MemoryPublisher() as publisher,
        publisher.subscribe("t-1") as updates,
        swarm.dispatcher() as dispatcher,
    ):
        async with swarm.worker(name="ada") as worker:
            publish_results(worker, publisher)
            await worker.handle("coder", stop)
            await dispatcher.start("coder", Message(id="t-1"))
            await began.wait()
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        assert (await publisher.get("t-1")).status is PENDING
        async with swarm.worker(name="bob") as worker:
            publish_results(worker, publisher)
            await worker.handle("coder", echo)
            told = [
                (
                    update.status,
                    (update.metadata or {})["agent"],
                    (update.metadata or {})["attempt"],
                )
                async for update in updates
            ]
    assert told == [(PENDING, "ada", "1"), (PENDING, "bob", "2"), (SUCCESS, "bob", "2")]


@within(10)
async def test_dispatcher_publishes_what_it_got(swarm: Swarm) -> None:
    """Where workers don't, say because they are written in Go."""
    async with swarm.worker(name="ada") as worker, open_dispatcher(swarm.broker) as dispatcher:
        await worker.handle("coder", echo)
        result = await dispatcher.run("coder", Message(id="t-1", inputs={"a": "b"}))
    published = as_result(result)
    assert (published.task_id, published.status) == ("t-1", SUCCESS)
    assert published.output == b'{"a":"b"}'
    assert as_result(TaskResult(id="t", status=Status.TIMEOUT, error="slow")).status is FAILED
    assert as_result(TaskResult(id="t", status=Status.SUCCESS)).output == b""


async def test_arguments_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match="is not a Worker; from a dispatcher use as_result"):
        publish_results(None, MemoryPublisher())  # type: ignore[arg-type]  # wrong on purpose
    async with open_worker(MemoryBroker()) as worker:
        with pytest.raises(TypeError, match="None is not a ResultPublisher"):
            publish_results(worker, None)  # type: ignore[arg-type]  # wrong on purpose


@within(10)
async def test_outputs_too_large_are_left_out(swarm: Swarm) -> None:
    """Base64 makes them larger than the task's own result was."""

    async def write(message: Message) -> str:
        return "x" * 900_000

    broker = MemoryBroker() if isinstance(swarm.broker, MemoryBroker) else swarm.broker
    async with open_kv_publisher(broker) as publisher:
        begun, ended = await follow(publisher, swarm, write)
    assert (begun.status, ended.status, ended.output) == (PENDING, SUCCESS, b"")
    assert "more than" in (ended.metadata or {})["omitted"]


# A publisher that fails, hangs or is slow is in nobody's way


@within(10)
async def test_publisher_that_fails_keeps_no_task_from_being_done(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = MemoryPublisher()
    await publisher.aclose()
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message(id="t-1"))).status == Status.SUCCESS
    logged = [text for text in caplog.messages if "announce" in text]
    assert logged == ["could not announce task t-1: the publisher is closed; open another one"] * 2


@within(10)
async def test_publisher_that_hangs_keeps_no_task_from_being_done(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(task_id: str, result: Result) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(_bridge, "_SECONDS", 0.1)
    publisher = MemoryPublisher()
    monkeypatch.setattr(publisher, "publish", hang)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    [told] = {text.partition(": ")[2] for text in caplog.messages if "announce" in text}
    assert told == "the worker was closed, or it took too long"


@within(10)
async def test_publisher_that_takes_no_result_at_all(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing to leave out."""

    async def refuse(task_id: str, result: Result) -> None:
        raise InvalidResultError("too large")

    publisher = MemoryPublisher()
    monkeypatch.setattr(publisher, "publish", refuse)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message(id="t-1", inputs={"a": "b"}))
    told = [text for text in caplog.messages if "announce" in text]
    assert told == ["could not announce task t-1: too large"] * 2


@within(10)
async def test_announcing_is_not_in_the_way(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks go on while nothing can be announced, and a shutdown is not late for it."""

    async def hang(task_id: str, result: Result) -> None:
        await trio.sleep_forever()

    publisher = MemoryPublisher()
    monkeypatch.setattr(publisher, "publish", hang)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo, max_in_flight=1)
        for number in range(5):
            await dispatcher.run("coder", Message(id=f"t-{number}"))
        await worker.shutdown(0.1)
    failed = [text.split()[4] for text in caplog.messages if "announce" in text]
    assert sorted(failed) == [f"t-{number}:" for number in range(5)]  # none without a word


@within(10)
async def test_publisher_that_exits_ends_no_worker(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave(task_id: str, result: Result) -> None:
        sys.exit(3)

    publisher = MemoryPublisher()
    monkeypatch.setattr(publisher, "publish", leave)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        for _ in range(2):
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert len([text for text in caplog.messages if "could not announce" in text]) == 4
