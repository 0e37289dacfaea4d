"""Streams and durables: made as pinned, found by subject, and never changed."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, within
from tests._helpers.delivery_listener import each
from tests._helpers.stream_setup import REPUBLISH, config_of, make, make_durable, use
from trio_swarmtask import BrokerError, Message, NATSConfig, Status, open_worker
from trio_swarmtask._jetstream._streams import Streams

DAY = 24 * 60 * 60 * 1_000_000_000


@within(20)
async def test_made_as_pinned_and_used_unchanged(nats_swarm: NATSSwarm) -> None:
    nats_swarm.configure(result_ttl=3600, ack_wait=20)
    await use(nats_swarm)
    async with nats_swarm.raw() as raw:
        first = [await config_of(raw, s) for s in ("TASKS", "TASK_RESULTS", "TASK_DEAD")]
        durable = (await raw.api("CONSUMER.INFO.TASKS.work-coder"))["config"]
        nats_swarm.configure(result_ttl=60, ack_wait=5, manage_streams=True)
        await use(nats_swarm)
        assert first == [await config_of(raw, s) for s in ("TASKS", "TASK_RESULTS", "TASK_DEAD")]
        assert durable == (await raw.api("CONSUMER.INFO.TASKS.work-coder"))["config"]
    tasks, results, dead = first
    pinned = {"storage": "file", "num_replicas": 1, "max_msgs": -1, "max_bytes": -1}
    assert (
        tasks.items()
        >= {
            **pinned,
            "retention": "workqueue",
            "discard": "old",
            "max_age": 0,
            "allow_msg_schedules": True,
        }.items()
    )
    assert tasks["subjects"] == ["work.>"]
    assert (
        results.items()
        >= {
            **pinned,
            "retention": "limits",
            "max_age": DAY // 24,
            "allow_direct": True,
            "max_msgs_per_subject": 1,
            "discard": "new",
            "discard_new_per_subject": True,
        }.items()
    )
    assert results["subjects"] == ["done.>"]
    assert results["republish"] == REPUBLISH
    assert dead.items() >= {**pinned, "retention": "limits", "max_age": 30 * DAY}.items()
    assert dead["subjects"] == ["dead.>", "back.>"]
    assert (
        durable.items()
        >= {
            "durable_name": "work-coder",
            "filter_subject": "work.coder.*",
            "ack_policy": "explicit",
            "ack_wait": 20_000_000_000,
            "max_deliver": -1,
        }.items()
    )
    assert durable["max_ack_pending"] >= 100_000


@within(20)
async def test_stream_of_somebody_elses_does_all(nats_swarm: NATSSwarm) -> None:
    """Limits retention, no republish, tasks and results in one, and another name."""
    async with nats_swarm.raw() as raw:
        before = await make(raw, "EVENTS", "work.>", "done.>", "events.>")
        await use(nats_swarm)
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("slow", stick)
            slow = await dispatcher.run("slow", Message(timeout=1))
            assert slow.status == Status.TIMEOUT
        assert await config_of(raw, "EVENTS") == before
        names = (await raw.api("STREAM.NAMES"))["streams"]
    assert sorted(names) == ["EVENTS", "TASK_DEAD"]


@within(20)
async def test_results_of_runs_are_heard_where_nothing_is_republished(
    nats_swarm: NATSSwarm,
) -> None:
    """Also of those after the first, which wait for the result alone."""
    async with nats_swarm.raw() as raw:
        await make(raw, "EVENTS", "work.>", "done.>")
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            for _ in range(3):
                await dispatcher.run("coder", Message())
            async with dispatcher.map("coder", [Message()] * 3) as results:
                assert len([result async for result in results]) == 3


async def stick(message: Message) -> None:
    await trio.sleep_forever()


@within(20)
async def test_busy_capability_has_a_stream_of_its_own(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "BUSY", "work.busy.>", retention="workqueue", discard="new", max_msgs=5)
        await make(raw, "REST", "work.coder.>", "work.other.>", retention="workqueue")
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            for _ in range(3):
                await dispatcher.start("busy", Message())
            for _ in range(2):
                await dispatcher.start("coder", Message())
            counts = {
                name: (await raw.api(f"STREAM.INFO.{name}"))["state"]["messages"]
                for name in ("BUSY", "REST")
            }
            assert counts == {"BUSY": 3, "REST": 2}
            await worker.handle("busy", echo)
            await worker.handle("coder", echo)
            await dispatcher.run("busy", Message())
            await dispatcher.run("coder", Message())


@within(20)
async def test_tasks_stream_that_holds_something_else(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        before = await make(raw, "TASKS", "chores.>")
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            for act in (
                lambda: dispatcher.run("coder", Message()),
                lambda: worker.handle("coder", echo),
            ):
                with pytest.raises(BrokerError) as raised:
                    await act()
                assert r"a stream that holds work.coder.* is needed, and TASKS can't be made" in (
                    str(raised.value)
                )
                assert "add work.> to a stream of any name, or remove that one" in str(raised.value)
        assert await config_of(raw, "TASKS") == before


@within(20)
async def test_stream_with_a_part_of_the_tasks(nats_swarm: NATSSwarm) -> None:
    """Beside it TASKS can't be made: the server lets no subjects overlap."""
    async with nats_swarm.raw() as raw:
        await make(raw, "BUSY", "work.busy.>")
    async with nats_swarm.dispatcher() as dispatcher:
        await dispatcher.start("busy", Message())
        with pytest.raises(BrokerError, match=r"a stream that holds work\.coder\.\* is needed"):
            await dispatcher.start("coder", Message())


@within(20)
async def test_stream_with_one_task_of_the_capability(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "ODD", "work.coder.one")
    async with nats_swarm.dispatcher() as dispatcher:
        with pytest.raises(BrokerError, match=r"a stream that holds work\.coder\.\* is needed"):
            await dispatcher.start("coder", Message())


@within(20)
async def test_nothing_is_made_where_that_is_not_wanted(nats_swarm: NATSSwarm) -> None:
    nats_swarm.configure(manage_streams=False)
    for role, subject in ((nats_swarm.dispatcher(), "done"), (nats_swarm.worker(), "done")):
        with pytest.raises(BrokerError, match=rf"no stream that holds {subject}\.\*, and manage_"):
            async with role as opened:
                await opened.handle("coder", echo)  # type: ignore[union-attr]  # it is there
    async with nats_swarm.raw() as raw:
        await make(raw, "RESULTS", "done.>", republish=REPUBLISH)
        async with nats_swarm.dispatcher() as dispatcher:
            with pytest.raises(BrokerError, match=r"no stream that holds work\.coder\.\*, and man"):
                await dispatcher.run("coder", Message())
        await make(raw, "WORK", "work.>")
        async with nats_swarm.worker() as worker:
            with pytest.raises(
                BrokerError, match=r"WORK has no durable work-coder, and manage_str"
            ):
                await worker.handle("coder", echo)
        await make_durable(raw, "WORK", "coder")
        assert sorted((await raw.api("STREAM.NAMES"))["streams"]) == ["RESULTS", "WORK"]
    await use(nats_swarm)


@within(20)
async def test_everything_is_there(nats_swarm: NATSSwarm) -> None:
    await use(nats_swarm)
    nats_swarm.configure(manage_streams=False)
    await use(nats_swarm)


@within(20)
async def test_durable_of_somebody_elses_is_used_as_it_is(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", retention="workqueue")
        before = await make_durable(raw, "TASKS", "coder", ack_wait=7_000_000_000)
        async with nats_swarm.open() as broker, broker.open_intake("coder", each(print)) as intake:
            assert intake.ack_wait == 7
        await use(nats_swarm)
        assert (await raw.api("CONSUMER.INFO.TASKS.work-coder"))["config"] == before


@pytest.mark.parametrize(
    "settings",
    [
        {"deliver_subject": "elsewhere"},
        {"filter_subject": "work.coder.urgent"},
        {"filter_subject": "work.>"},
        {"ack_policy": "none"},
        {"ack_policy": "all"},
    ],
)
@within(20)
async def test_durable_that_workers_cannot_share(
    nats_swarm: NATSSwarm, settings: dict[str, str]
) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "WORK", "work.>")
        before = await make_durable(raw, "WORK", "coder", **settings)
        async with nats_swarm.worker() as worker:
            with pytest.raises(BrokerError, match="not one that workers can share"):
                await worker.handle("coder", echo)
        assert (await raw.api("CONSUMER.INFO.WORK.work-coder"))["config"] == before


@pytest.mark.parametrize("alike", [True, False])
@within(30)
async def test_four_workers_start_at_the_same_moment(nats_swarm: NATSSwarm, alike: bool) -> None:
    """All of them find nothing, and all of them make it; one comes first."""
    ready: list[int] = []

    async def start(number: int) -> None:
        config = NATSConfig(nats_swarm.url)
        if not alike:
            config = NATSConfig(nats_swarm.url, ack_wait=20 + number, result_ttl=100 + number)
        async with open_worker(config) as worker:
            await worker.handle("coder", echo)
            ready.append(number)
            if len(ready) == 4:
                nursery.cancel_scope.cancel()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(start, number)
    assert sorted(ready) == [0, 1, 2, 3]
    await use(nats_swarm)


@within(20)
async def test_stream_that_another_process_is_quicker_to_make(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Streams.find
    looks = []

    async def look_too_early(self: Streams, subject: str) -> dict[str, Any] | None:
        looks.append(subject)
        return None if looks.count(subject) == 1 else await find(self, subject)

    async with nats_swarm.raw() as raw:
        await raw.api("STREAM.CREATE.QUICKER", name="QUICKER", subjects=["done.>"])
    monkeypatch.setattr(Streams, "find", look_too_early)
    async with nats_swarm.worker() as worker, nats_swarm.dispatcher() as dispatcher:
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert looks[:2] == ["done.*", "done.*"]
