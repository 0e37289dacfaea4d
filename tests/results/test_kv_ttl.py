"""How long a bucket keeps results: as it was made, or as each publisher has it."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, within
from tests._helpers.bucket_setup import SECOND, config_of, make_bucket
from tests._helpers.publishers import Reader, outputs, pending, rest, success
from trio_swarmtask import MemoryBroker
from trio_swarmtask.results import open_kv_publisher

if TYPE_CHECKING:
    from trio_swarmtask.server import Server


@pytest.mark.parametrize(
    ("ttl", "max_age", "window"),
    [
        (1, SECOND, SECOND),
        (1.5, 3 * SECOND // 2, 3 * SECOND // 2),
        (3600, 3600 * SECOND, 120 * SECOND),
        (9.2e9, 9_200_000_000 * SECOND, 120 * SECOND),
        (math.inf, 0, 120 * SECOND),
    ],
)
@within(20)
async def test_name_and_ttl(
    server: Server, nats_swarm: NATSSwarm, ttl: float, max_age: int, window: int
) -> None:
    name = "A-z_0" * 10
    async with nats_swarm.raw() as raw, open_kv_publisher(server.url, bucket=name, ttl=ttl) as kv:
        await kv.publish("t1", success(1))
        config = await config_of(raw, f"KV_{name}")
        assert (config["max_age"], config["duplicate_window"]) == (max_age, window)
        assert config["subjects"] == [f"$KV.{name}.>"]


@within(20)
async def test_bad_ttl() -> None:
    bad: Any
    for bad in (0, 0.999, -1, -math.inf, math.nan, 9.3e9, 10**400):
        with pytest.raises(ValueError, match=r"ttl must be from 1 to 9\.2e\+09 seconds, or math"):
            async with open_kv_publisher(MemoryBroker(), ttl=bad):
                pytest.fail("it was opened")
    for bad in (None, "1", True, [1]):
        with pytest.raises(TypeError, match="ttl must be a number of seconds, not"):
            async with open_kv_publisher(MemoryBroker(), ttl=bad):
                pytest.fail("it was opened")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@within(20)
async def test_shorter_ttl_than_the_bucket_s(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Is kept by a TTL of each message; the other publisher's own stay for longer."""
    async with (
        open_kv_publisher(server.url, ttl=math.inf) as long,
        open_kv_publisher(server.url, ttl=1) as short,
        trio.open_nursery() as nursery,
    ):
        await long.publish("t1", pending(1))
        await short.publish("t2", pending(2))
        reader = await nursery.start(Reader(long, "t2").run)
        await reader.ended.wait()
        assert [result.task_id for result in await short.list()] == ["t1"]
        await short.publish("t1", pending(3))
        async with long.subscribe("t1") as updates:
            assert await outputs(updates) == [b"3"]
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("ttl", "told"), [(7200, "7200 seconds"), (math.inf, "for ever")], ids=["longer", "for ever"]
)
@within(20)
async def test_longer_ttl_than_the_bucket_s_is_warned_of(
    server: Server, caplog: pytest.LogCaptureFixture, ttl: float, told: str
) -> None:
    async with open_kv_publisher(server.url, ttl=3600):
        pass
    async with open_kv_publisher(server.url, ttl=ttl) as publisher:
        await publisher.publish("t1", success(1))
        assert (await publisher.get("t1")).output == b"1"
    assert warnings(caplog) == [
        f"the bucket results is there already and keeps results 3600 seconds, not {told}"
    ]


@within(20)
async def test_ttl_that_a_bucket_can_t_keep_is_warned_of(
    server: Server, nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_swarm.raw() as raw:
        await make_bucket(raw)
    async with (
        open_kv_publisher(server.url, ttl=60) as publisher,
        publisher.subscribe("t1") as updates,
    ):
        await publisher.publish("t1", success(1))
        assert len(await rest(updates)) == 1
    assert warnings(caplog) == [
        "the bucket results is there already and keeps results for ever, not 60 seconds"
    ]
