"""Streams and durables of others that would lose messages in silence: refused, or told once."""

from __future__ import annotations

from typing import Any

import pytest

from tests._helpers.attack import logged
from tests._helpers.brokers import NATSSwarm, echo, within
from tests._helpers.stream_setup import make, make_durable
from trio_swarmtask import BrokerError, Message, Status, open_dispatcher, open_idempotency
from trio_swarmtask.results import open_kv_publisher

DAY = 24 * 60 * 60 * 1_000_000_000
TRANSFORM = {"src": ">", "dest": "other.>"}

UNFIT: dict[str, tuple[dict[str, Any], str, str]] = {
    "interest": ({"retention": "interest"}, "interest retention", "Make it anew with "),
    "no_ack": ({"no_ack": True}, "no_ack", "Set no_ack to false"),
    "transform": ({"subject_transform": TRANSFORM}, "subject_transform", "Remove the transform"),
}


def check(error: BrokerError, stream: str, setting: str, remedy: str) -> None:
    assert f"the stream {stream}, which holds " in str(error)
    assert f" has {setting}" in str(error) or f" has a {setting}" in str(error)
    assert remedy in str(error)


@pytest.mark.parametrize("what", UNFIT)
@within(20)
async def test_stream_of_tasks(nats_swarm: NATSSwarm, what: str) -> None:
    settings, setting, remedy = UNFIT[what]
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await make(raw, "TASKS", "work.>", **settings)
        async with nats_swarm.worker() as worker:
            for use in (dispatcher.start("coder", Message()), worker.handle("coder", echo)):
                with pytest.raises(BrokerError) as caught:
                    await use
                check(caught.value, "TASKS", setting, remedy)


@pytest.mark.parametrize("what", UNFIT)
@within(20)
async def test_stream_of_results(nats_swarm: NATSSwarm, what: str) -> None:
    settings, setting, remedy = UNFIT[what]
    async with nats_swarm.raw() as raw:
        await make(raw, "TASK_RESULTS", "done.>", **settings)
        with pytest.raises(BrokerError) as caught:
            async with nats_swarm.dispatcher() as dispatcher:
                await dispatcher.run("coder", Message())
        check(caught.value, "TASK_RESULTS", setting, remedy)


@within(20)
async def test_stream_of_leases(nats_swarm: NATSSwarm) -> None:
    """Groups that are alive would count as orphans."""
    settings, setting, remedy = UNFIT["interest"]
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await make(raw, "TASK_LEASES", "lease.>", **settings)
        with pytest.raises(BrokerError) as caught:
            async with dispatcher.open_group(orphans="cancel"):
                pass
        check(caught.value, "TASK_LEASES", setting, remedy)


@within(20)
async def test_stream_of_dead_letters(nats_swarm: NATSSwarm) -> None:
    """Which are not kept then, and the worker says so."""
    with logged() as log:
        async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
            await make(raw, "TASK_DEAD", "dead.>", "back.>", retention="interest")
            async with nats_swarm.worker() as worker:
                await worker.handle("coder", echo)
                await raw.store("work.coder.bad", b"no message")
                result = await (await dispatcher.attach("bad")).wait()
                assert result.status is Status.FAILED
    [line] = [line for line in log.lines if "dead letters are not kept" in line]
    assert "TASK_DEAD" in line
    assert "interest retention" in line


@within(20)
async def test_stream_of_a_bucket(nats_swarm: NATSSwarm) -> None:
    settings, setting, remedy = UNFIT["interest"]
    async with nats_swarm.raw() as raw, nats_swarm.open() as broker:
        await make(raw, "KV_results", "$KV.results.>", **settings)
        await make(raw, "KV_keys", "$KV.keys.>", **settings)
        with pytest.raises(BrokerError) as caught:
            async with open_kv_publisher(broker):
                pass
        check(caught.value, "KV_results", setting, remedy)
        with pytest.raises(BrokerError) as caught:
            async with open_idempotency(broker, bucket="keys"):
                pass
        check(caught.value, "KV_keys", setting, remedy)


RISKS: dict[str, tuple[dict[str, Any], str]] = {
    "max_age": ({"max_age": DAY}, "its max_age is 86400 seconds: older tasks are dropped"),
    "max_msgs": ({"max_msgs": 100}, "it has max_msgs with discard old: once it is full"),
    "max_bytes": ({"max_bytes": 1 << 20}, "it has max_bytes with discard old"),
    "memory": ({"storage": "memory"}, "its storage is memory: all of it is lost when its server"),
    "async": ({"persist_mode": "async"}, "its persist_mode is async: what it has confirmed may"),
}


@pytest.mark.parametrize("what", RISKS)
@within(20)
async def test_risk_is_told_once(nats_swarm: NATSSwarm, what: str) -> None:
    settings, told = RISKS[what]
    retention = {} if what == "async" else {"retention": "workqueue"}
    with logged() as log:
        async with (
            nats_swarm.raw() as raw,
            nats_swarm.open() as broker,
            open_dispatcher(broker) as dispatcher,
        ):
            await make(raw, "TASKS", "work.>", **retention, **settings)
            for capability in ("coder", "tester"):
                await dispatcher.start(capability, Message())
    lines = [line for line in log.lines if "may lose what it holds" in line]
    assert len(lines) == 1
    assert told in lines[0]


@within(20)
async def test_limits_that_refuse_are_no_risk(nats_swarm: NATSSwarm) -> None:
    """Nor are those of the streams that the library makes."""
    with logged() as log:
        async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
            settings = {"retention": "workqueue", "discard": "new", "max_msgs": 100}
            await make(raw, "TASKS", "work.>", **settings)
            async with nats_swarm.worker() as worker:
                await worker.handle("coder", echo)
                await dispatcher.run("coder", Message())
    assert not [line for line in log.lines if "may lose" in line]


DURABLES: dict[str, tuple[dict[str, Any], str]] = {
    "headers_only": ({"headers_only": True}, "has headers_only: it would deliver tasks without"),
    "priority groups": (
        {"priority_groups": ["a"], "priority_policy": "overflow"},
        "has priority_groups ['a']: it delivers to nobody who names none of them",
    ),
    "new tasks": ({"deliver_policy": "new"}, "has deliver_policy 'new': it leaves out tasks"),
}


@pytest.mark.parametrize("what", DURABLES)
@within(20)
async def test_durable(nats_swarm: NATSSwarm, what: str) -> None:
    settings, told = DURABLES[what]
    async with nats_swarm.raw() as raw, nats_swarm.worker() as worker:
        retention = "limits" if what == "new tasks" else "workqueue"  # the server refuses it there
        await make(raw, "TASKS", "work.>", retention=retention)
        await make_durable(raw, "TASKS", "coder", **settings)
        with pytest.raises(BrokerError) as caught:
            await worker.handle("coder", echo)
    assert "the durable work-coder of stream TASKS" in str(caught.value)
    assert told in str(caught.value)
    assert "delete it to have it made anew" in str(caught.value)
