"""Refusals that prove nothing, as a cluster's leader gives them while it waits for its majority."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from trio_swarmtask import (
    Dispatcher,
    Idempotency,
    InvalidMessageError,
    Message,
    Retry,
    Status,
    TaskState,
    open_idempotency,
)
from trio_swarmtask._abc import Refused
from trio_swarmtask._idempotency import Claim
from trio_swarmtask._jetstream import (
    _api as _jetstream,
    _bucket,
    _delivery,
    _results as _result_store,
    _schedules,
    _tasks as _later,
    _tasks as _task_store,
)
from trio_swarmtask._jetstream._api import APIError, Publish
from trio_swarmtask._nats._requests import NoAnswer
from trio_swarmtask.results import Result, ResultStatus, open_kv_publisher

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask._abc import Bucket
    from trio_swarmtask._jetstream._api import PubAck
    from trio_swarmtask._nats._requests import Requests

MODULES: Final = (_bucket, _delivery, _later, _result_store, _schedules, _task_store)


def silence() -> Exception:
    return NoAnswer("no reply within 5 seconds")


def in_flight() -> Exception:
    """Another publish to the subject, or this one itself, is on its way to a majority."""
    return APIError(400, 10164, "wrong last sequence")


def stored_before() -> Exception:
    """By somebody; a moment later it has expired."""
    return APIError(400, 10071, "wrong last sequence: 7")


def same_id_in_flight() -> Exception:
    return APIError(409, 10158, "duplicate message id is in process")


class Stall:
    """For publishes to some subjects: these answers come first, and nothing is stored."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        prefix: str | tuple[str, ...],
        *answers: Callable[[], Exception],
    ) -> None:
        self.left = list(answers)
        self.headers: list[dict[str, str]] = []
        real, real_soon = _jetstream.publish, _jetstream.publish_soon

        async def publish(
            requests: Requests, subject: str, data: bytes, headers: dict[str, str] | None
        ) -> PubAck:
            if subject.startswith(prefix):
                self.headers.append(dict(headers or {}))
                if self.left:
                    raise self.left.pop(0)()
            return await real(requests, subject, data, headers)

        def publish_soon(requests: Requests, publish: Publish, subject: bytes, *rest: Any) -> bool:
            if subject.decode().startswith(prefix) and self.left:
                return False
            return real_soon(requests, publish, subject, *rest)

        for module in MODULES:
            monkeypatch.setattr(module, "publish", publish)
            if hasattr(module, "publish_soon"):
                monkeypatch.setattr(module, "publish_soon", publish_soon)


@within(20)
async def test_task_is_acked_only_when_a_result_is_there(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
        stall = Stall(monkeypatch, "done.", silence, in_flight, in_flight, silence, in_flight)
        future = await dispatcher.start("coder", Message())
        await until(lambda: len(stall.left) < 2)
        assert await nats_swarm.count_tasks() == 1
        assert (await future.wait()).status == Status.SUCCESS
        assert not stall.left
        await nats_swarm.wait_until_empty()
        assert worker.statistics().succeeded == 2


async def by_start(dispatcher: Dispatcher) -> Status:
    return (await (await dispatcher.start("coder", Message(id="mine"))).wait()).status


async def by_run(dispatcher: Dispatcher) -> Status:
    return (await dispatcher.run("coder", Message())).status


async def by_group(dispatcher: Dispatcher) -> Status:
    async with dispatcher.open_group() as group:
        future = await group.start("coder", Message())
    return future.result.status


async def by_map(dispatcher: Dispatcher) -> Status:
    async with dispatcher.map("coder", [Message()]) as results:
        (status,) = [result.status async for result in results]
    return status


async def by_not_before(dispatcher: Dispatcher) -> Status:
    due = datetime.now(UTC) + timedelta(seconds=0.1)
    future = await dispatcher.start("coder", Message(id="mine"), not_before=due)
    return (await future.wait()).status


@pytest.mark.parametrize("start", [by_start, by_run, by_group, by_map, by_not_before])
@pytest.mark.parametrize(
    "answers",
    [(same_id_in_flight,), (silence, same_id_in_flight, same_id_in_flight), (in_flight, in_flight)],
    ids=["another-is-first", "own-is-in-flight", "subject-is-in-flight"],
)
@within(20)
async def test_start_waits_for_what_passes(
    nats_swarm: NATSSwarm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    start: Callable[[Dispatcher], Any],
    answers: tuple[Callable[[], Exception], ...],
) -> None:
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        stall = Stall(monkeypatch, "work.coder.", *answers)
        assert await start(dispatcher) == Status.SUCCESS
        assert not stall.left
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == answers.count(silence)  # what passes at once is not worth a warning


@within(20)
async def test_refusal_that_lasts_is_told(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_swarm.dispatcher() as dispatcher:
        stall = Stall(monkeypatch, "work.coder.", *([same_id_in_flight] * 6))
        await dispatcher.start("coder", Message(id="mine"))
        assert not stall.left
    assert "could not store task mine, trying again: duplicate message id" in caplog.text


@within(20)
async def test_cancel_returns_with_the_result(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = trio.Event()

    async def handler(message: Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await until(lambda: worker.statistics().in_flight)
        Stall(monkeypatch, "done.", silence, in_flight, in_flight)
        await future.cancel()
        assert future.result.cancelled_by
        await cancelled.wait()


@within(20)
async def test_two_that_cancel_at_once(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is refused while the first one's result is on its way."""
    async with nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
    async with nats_swarm.dispatcher() as first, nats_swarm.dispatcher() as second:
        future = await first.start("coder", Message())
        other = await second.attach(future.id)
        Stall(monkeypatch, "done.", in_flight, in_flight)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(future.cancel)
            nursery.start_soon(other.cancel)
        assert future.result == other.result
        # Whoever has taken it out of the queue knows that it never ran.
        assert TaskState.STOPPED in (future.state, other.state)


@within(20)
async def test_publisher_returns_when_its_result_is_stored(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_kv_publisher(nats_swarm.broker) as publisher:
        for status in (ResultStatus.PENDING, ResultStatus.SUCCESS):
            stall = Stall(monkeypatch, "$KV.", silence, in_flight, in_flight)
            await publisher.publish("t1", Result(status=status, output=status.encode()))
            assert not stall.left
            assert (await publisher.get("t1")).status == status


@within(20)
async def test_publisher_whose_answer_was_lost_knows_its_own(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first try stored is not stored a second time."""
    lose_answer(monkeypatch, _bucket)
    async with open_kv_publisher(nats_swarm.broker) as publisher:
        await publisher.publish("t1", Result(status=ResultStatus.SUCCESS))
        async with nats_swarm.raw() as raw:
            assert (await raw.api("STREAM.INFO.KV_results"))["state"]["last_seq"] == 1


def lose_answer(monkeypatch: pytest.MonkeyPatch, module: Any, seconds: float = 0) -> list[str]:  # noqa: ANN401 - a module
    """Let the answer to the next publish get lost, after an outage of so many seconds."""
    real = _jetstream.publish
    lost: list[str] = []

    async def publish(
        requests: Requests, subject: str, data: bytes, headers: dict[str, str] | None
    ) -> PubAck:
        ack = await real(requests, subject, data, headers)
        if not lost:
            lost.append(subject)
            await trio.sleep(seconds)  # the outage
            raise silence()
        return ack

    monkeypatch.setattr(module, "publish", publish)
    return lost


@within(20)
async def test_claim_waits_for_no_claim_of_its_own(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first try is lost, so the second is refused by the first."""
    async with open_idempotency(nats_swarm.broker, bucket="keys") as idempotent:
        lose_answer(monkeypatch, _bucket)
        with trio.fail_after(5):  # the lease is 30 seconds
            claim = await idempotent._claim("key", "t1")
        assert isinstance(claim, Claim)
        assert claim.deadline > trio.current_time() + 29


@within(20)
async def test_second_claim_asks_seldom_in_a_stall(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_idempotency(nats_swarm.broker, bucket="keys") as idempotent:
        stall = Stall(monkeypatch, "$KV.", *([in_flight] * 1000))
        with trio.move_on_after(1):
            await idempotent._claim("key", "t1")
        # One more is put by whoever withdraws what may be on its way.
        assert len(stall.headers) < 15


@within(20)
async def test_dead_letter_is_kept(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        stall = Stall(monkeypatch, "dead.", silence, same_id_in_flight, in_flight)
        async with nats_swarm.raw() as raw:
            await raw.store("work.coder.bad", b"{")
        result = await (await dispatcher.attach("bad")).wait()
        assert result.error.startswith("dead letter: ")
        assert not stall.left
        assert list(await nats_swarm.dead_letters()) == ["bad"]
    assert "is lost" not in caplog.text


@within(20)
async def test_note_of_a_retry_is_kept(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(message: Message) -> str:
        if stall.left or not stall.headers:
            raise OSError("not yet")
        return "done"

    stall = Stall(monkeypatch, "back.", silence, same_id_in_flight)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", handler, retry=Retry(on=OSError, first_delay=0.01))
        result = await dispatcher.run("coder", Message(max_attempts=3))
        assert result.outputs == "done"
        async with nats_swarm.raw() as raw:
            assert len(await raw.subjects("TASK_DEAD", "back.>")) == 1
    assert "is lost" not in caplog.text


def too_many() -> Exception:
    return APIError(429, 10167, "too many requests")


@within(20)
async def test_too_many_requests_are_waited_for_and_told_once(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
        stall = Stall(monkeypatch, ("work.", "done."), *([too_many] * 200))
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(dispatcher.run, "coder", Message())
        assert not stall.left
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in told if "store task" in line] == [told[0]]
    assert len(told) <= 3  # the worker's connection tells by itself


# An outage that is longer than the server remembers IDs


@pytest.mark.parametrize("own", [True, False], ids=["id-of-ours", "id-of-the-callers"])
@within(20)
async def test_task_is_stored_once_in_a_long_outage(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    async with nats_swarm.raw() as raw:
        config = {"name": "TASKS", "subjects": ["work.>"], "retention": "workqueue"}
        await raw.api("STREAM.CREATE.TASKS", **config, duplicate_window=100_000_000)
        async with nats_swarm.dispatcher() as dispatcher:
            lost = lose_answer(monkeypatch, _task_store, 0.5)
            future = await dispatcher.start("coder", Message(id="" if own else "mine"))
            assert lost
            assert (await raw.api("STREAM.INFO.TASKS"))["state"]["last_seq"] == 1
            async with nats_swarm.worker() as worker:
                await worker.handle("coder", echo)
                assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_task_that_ended_as_it_was_sent_again_is_not_run(nats_swarm: NATSSwarm) -> None:
    """Its ID is forgotten, and its result was not there yet when it was looked for."""
    calls = []

    async def handler(message: Message) -> None:
        calls.append(message.id)

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await dispatcher.attach("t1")  # has the streams made
        await nats_swarm.store_result("t1", b'{"version":1,"id":"t1","status":"success"}')
        async with nats_swarm.raw() as raw:
            headers = {"Swarm-Resent": "1"}
            await raw.api("STREAM.CREATE.TASKS", name="TASKS", subjects=["work.>"])
            await raw.store("work.coder.t1", Message(id="t1").encode(), headers)
        await worker.handle("coder", handler)
        await dispatcher.run("coder", Message(id="t2"))
        assert calls == ["t2"]


@within(20)
async def test_what_is_sent_again_says_so(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nats_swarm.dispatcher() as dispatcher:
        stall = Stall(monkeypatch, "work.coder.", silence)
        await dispatcher.start("coder", Message())
        first, second = stall.headers
        assert first.keys() == {"Nats-Msg-Id"}
        assert second == {
            **first,
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Swarm-Resent": "1",
        }
        stall = Stall(monkeypatch, "work.coder.", silence)
        due = datetime.now(UTC) + timedelta(hours=1)
        await dispatcher.start("coder", Message(), not_before=due)
        first, second = stall.headers
        assert second == {**first, "Swarm-Resent": "1"}


@within(20)
async def test_size_leaves_room_for_what_is_sent_again(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that fits once fits always."""
    async with nats_swarm.dispatcher() as dispatcher:

        def large(size: int) -> Message:
            return Message(id="mine", inputs={"x": "x" * size})

        with pytest.raises(InvalidMessageError, match=r"an envelope of \d+ bytes") as caught:
            await dispatcher.start("coder", large(1 << 20))
        size, limit = map(int, re.findall(r"\d{7,}", str(caught.value)))
        largest = large((1 << 20) - (size - limit))
        stall = Stall(monkeypatch, "work.coder.", silence)
        await dispatcher.start("coder", largest)
        assert len(stall.headers) == 2


@within(20)
async def test_result_that_is_said_to_be_there_and_is_not(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was asked for it may not know it yet: that is no reason to ack."""
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        stall = Stall(monkeypatch, "done.", stored_before, stored_before, stored_before)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        assert not stall.left
        await nats_swarm.wait_until_empty()


@within(20)
async def test_publisher_that_is_refused_and_finds_nothing_newer(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that was there before proves nothing, nor does none at all."""
    real, refusals = _bucket.NATSBucket.put, [1]

    async def put(bucket: Bucket, key: str, data: bytes, revision: int) -> None:
        if refusals:
            refusals.pop()
            raise Refused(unsure=True)
        await real(bucket, key, data, revision)

    monkeypatch.setattr(_bucket.NATSBucket, "put", put)
    async with open_kv_publisher(nats_swarm.broker) as publisher:
        for status in (ResultStatus.PENDING, ResultStatus.SUCCESS):
            refusals[:] = [1]
            await publisher.publish("t1", Result(status=status))
            assert (await publisher.get("t1")).status == status


@within(20)
async def test_claim_of_ours_that_is_lost_again(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, and it expired before it could be renewed: it is claimed once more."""
    real, renewals = Idempotency._renew, [False]

    async def renew(idempotent: Idempotency, claim: Claim) -> bool:
        if renewals:
            return renewals.pop()
        return await real(idempotent, claim)

    monkeypatch.setattr(Idempotency, "_renew", renew)
    async with open_idempotency(nats_swarm.broker, bucket="keys") as idempotent:
        lose_answer(monkeypatch, _bucket)
        assert isinstance(await idempotent._claim("key", "t1"), Claim)
    assert not renewals
