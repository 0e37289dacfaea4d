"""The stream of a bucket: made as pinned, or used as it is, whoever made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, within
from tests._helpers.bucket_setup import DAY, SECOND, config_of, make_bucket, streams_of
from tests._helpers.publishers import FAILED, Reader, outputs, pending, success
from trio_swarmtask import BrokerError, MemoryBroker, NATSConfig, open_broker
from trio_swarmtask.results import (
    InvalidResultError,
    Result,
    ResultExistsError,
    ResultNotFoundError,
    ResultStatus,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from trio_swarmtask.results import ResultPublisher
    from trio_swarmtask.server import Server


async def use(publisher: ResultPublisher, other: ResultPublisher) -> None:
    """Everything that a publisher does, and in another process too."""
    assert await publisher.list() == []
    async with trio.open_nursery() as nursery:
        readers = [await nursery.start(Reader(one, "t1").run) for one in (publisher, other)]
        for number in range(3):
            await (publisher, other)[number % 2].publish("t1", pending(number))
            for reader in readers:
                await reader.got(number + 1)
        created = (await other.get("t1")).created_at
        await other.publish("t1", success(3))
        for reader in readers:
            await reader.ended.wait()
    for reader in readers:
        assert [update.output for update in reader.read] == [b"0", b"1", b"2", b"3"]
        assert {update.created_at for update in reader.read} == {created}
    with pytest.raises(ResultExistsError, match="'t1' has ended with success"):
        await publisher.publish("t1", pending(4))
    async with publisher.subscribe("t1") as updates:
        assert await outputs(updates) == [b"3"]
    await publisher.publish("t2", pending(5))
    await publisher.publish("t3", FAILED)
    listed = [result.task_id for result in await other.list()]
    assert listed == ["t1", "t2", "t3"]
    async with trio.open_nursery() as nursery:
        reader = await nursery.start(Reader(other, "t2").run)
        await reader.got(1)
        await publisher.delete("t2")
        await reader.ended.wait()
    with pytest.raises(ResultNotFoundError, match="'t2'"):
        await other.get("t2")
    assert [result.task_id for result in await publisher.list()] == ["t1", "t3"]
    await other.publish("t2", pending(6))
    assert (await publisher.get("t2")).output == b"6"


REPUBLISH = {"src": "$KV.results.>", "dest": "copies.of.>"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"allow_direct": True},
        {"max_msgs_per_subject": 5},
        {"max_msgs_per_subject": 5, "allow_direct": True},
        {"max_msgs_per_subject": -1},
        {"republish": REPUBLISH},
        {"republish": REPUBLISH, "allow_direct": True, "allow_msg_ttl": True},
        {"republish": {**REPUBLISH, "headers_only": True}},
        {"republish": {"src": "$KV.results.t1", "dest": "copies.of.t1"}},
        {"republish": {"src": "$KV.results.some.>", "dest": "copies.of.>"}},
        {"allow_msg_ttl": True},
        {"subjects": ["$KV.*.*"], "storage": "memory"},
        {"subjects": ["other", "$KV.results.*"], "allow_rollup_hdrs": True, "deny_delete": True},
    ],
    ids=str,
)
@within(30)
async def test_bucket_of_somebody_else_is_used_as_it_is(
    server: Server, nats_swarm: NATSSwarm, settings: dict[str, Any]
) -> None:
    """Without republish, direct gets, TTLs, with a history: and never changed."""
    async with nats_swarm.raw() as raw:
        before = await make_bucket(raw, **settings)
        async with (
            open_kv_publisher(server.url) as publisher,
            open_kv_publisher(server.url) as other,
        ):
            await use(publisher, other)
        assert await config_of(raw) == before
        assert await streams_of(raw) == ["KV_results"]


@within(30)
async def test_bucket_that_is_made(server: Server, nats_swarm: NATSSwarm) -> None:
    """With what the results need; and of the streams of tasks there is none."""
    async with (
        open_kv_publisher(server.url) as publisher,
        open_kv_publisher(server.url) as other,
        nats_swarm.raw() as raw,
    ):
        await use(publisher, other)
        config = await config_of(raw)
        assert await streams_of(raw) == ["KV_results"]
    expected = {
        "name": "KV_results",
        "subjects": ["$KV.results.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "max_age": DAY,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "subject_delete_marker_ttl": SECOND,
    }
    assert {name: config[name] for name in expected} == expected
    assert config["republish"]["src"] == "$KV.results.>"
    assert not config["republish"].get("headers_only")


@within(20)
async def test_buckets_are_apart(server: Server) -> None:
    async with (
        open_broker(server.url) as broker,
        open_kv_publisher(broker, bucket="a") as a,
        open_kv_publisher(broker, bucket="b") as b,
    ):
        async with a.subscribe("t1") as updates:
            await b.publish("t1", success(1))
            await a.publish("t1", success(2))
            assert await outputs(updates) == [b"2"]
        assert [result.output for result in await b.list()] == [b"1"]


@within(20)
async def test_subjects_of_the_bucket_in_a_stream_of_another_name(
    server: Server, nats_swarm: NATSSwarm
) -> None:
    """It is found by its subjects; also without the permission to make one."""
    async with nats_swarm.raw() as raw:
        before = await make_bucket(raw, "ANSWERS", subjects=["$KV.results.>", "$KV.more.>"])
        config = NATSConfig(server.url, manage_streams=False)
        async with open_kv_publisher(config) as publisher, open_kv_publisher(config) as other:
            await use(publisher, other)
        assert await config_of(raw, "ANSWERS") == before
        assert await streams_of(raw) == ["ANSWERS"]


@within(20)
async def test_no_bucket_and_none_may_be_made(server: Server, nats_swarm: NATSSwarm) -> None:
    config = NATSConfig(server.url, manage_streams=False)
    with pytest.raises(BrokerError, match=r"no stream that holds \$KV\.results\.\*, and manage_"):
        async with open_kv_publisher(config):
            pytest.fail("it was opened")
    async with nats_swarm.raw() as raw:
        assert await streams_of(raw) == []


@within(20)
async def test_name_of_the_stream_is_taken(server: Server, nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        await make_bucket(raw, subjects=["something.else"])
        with pytest.raises(BrokerError, match=r"KV_results can't be made: .* of that name without"):
            async with open_kv_publisher(server.url):
                pytest.fail("it was opened")


@within(20)
async def test_more_replicas_than_servers(server: Server) -> None:
    """A server that is alone says so at once."""
    with pytest.raises(BrokerError, match=r"replicas > 1 not supported in non-clustered mode"):
        async with open_kv_publisher(NATSConfig(server.url, replicas=3, connect_timeout=60)):
            pytest.fail("it was opened")


@pytest.mark.parametrize("bucket", ["", "a.b", "a b", "*", ">", "ü", "x" * 129, "a\n", None, 5])
@within(20)
async def test_bad_name(bucket: Any) -> None:  # noqa: ANN401 - that is the point
    with pytest.raises(ValueError, match=r"^bucket .* must be a string of 1 to 128 letters"):
        async with open_kv_publisher(MemoryBroker(), bucket=bucket):
            pytest.fail("it was opened")


@within(20)
async def test_bad_buffer_and_broker() -> None:
    with pytest.raises(ValueError, match="buffer_size must be from 1 up, not 0"):
        async with open_kv_publisher(MemoryBroker(), buffer_size=0):
            pytest.fail("it was opened")
    bad: Any = 5
    with pytest.raises(TypeError, match="a int can't be a broker"):
        async with open_kv_publisher(bad):
            pytest.fail("it was opened")


@within(20)
async def test_limit_of_the_stream_counts(server: Server, nats_swarm: NATSSwarm) -> None:
    """One message may be smaller there than the server would take."""
    async with nats_swarm.raw() as raw:
        await make_bucket(raw, max_msg_size=2000)
        async with open_kv_publisher(server.url) as publisher:
            with pytest.raises(InvalidResultError, match=r"'t1' has \d+ bytes, more than the 1\d+"):
                await publisher.publish("t1", Result(status=ResultStatus.SUCCESS, error="x" * 1900))
            await publisher.publish("t1", Result(status=ResultStatus.SUCCESS, error="x" * 1500))
