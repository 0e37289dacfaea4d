"""A bucket itself, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests._helpers.brokers import Swarm, until, within

if TYPE_CHECKING:
    import pytest

    from trio_swarmtask._abc import Entry


@within(20)
async def test_watcher_that_raises(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    """Is logged: neither who stores nor another watcher notices, and the next entry comes."""
    failed: list[bytes | None] = []
    heard: list[bytes | None] = []

    def fail(entry: Entry) -> None:
        failed.append(entry.data)
        raise UnicodeError("mine")

    def hear(entry: Entry) -> None:
        heard.append(entry.data)

    async with (
        swarm.open() as broker,
        broker.open_bucket("b", 60) as bucket,
        bucket.watch("k", fail),
        bucket.watch("k", hear),
    ):
        await bucket.put("k", b"1", 0)
        await until(lambda: heard == failed == [b"1"])
        entry = await bucket.get("k")
        assert entry is not None
        await bucket.put("k", b"2", entry.revision)
        await until(lambda: heard == failed == [b"1", b"2"])
    assert caplog.text.count("an entry of 'k' could not be handled") == 2
