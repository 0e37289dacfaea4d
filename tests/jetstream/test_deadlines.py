"""Deadlines that travel, where they meet the clock of a server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, within
from trio_swarmtask import Message
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import _streams as _durables
from trio_swarmtask._jetstream._api import measure_clock
from trio_swarmtask._jetstream._headers import find_deadline
from trio_swarmtask._jetstream._tasks import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("seconds", ["", "soon", "-1", "nan", "inf", "1e999"])
@within(20)
async def test_header_of_somebody_else(nats_swarm: NATSSwarm, seconds: str) -> None:
    """What is no number of seconds is no deadline."""
    async with (
        nats_swarm.worker() as worker,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
    ):
        await worker.handle("coder", echo)
        headers = {"Swarm-Seconds-Left": seconds}
        await raw.store("work.coder.t1", Message(id="t1").encode(), headers)
        result = await (await dispatcher.attach("t1")).wait()
        assert result.status == "success"


@within(20)
async def test_clock_that_was_set_back(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's, while the worker is up: tasks seem to have waited for an hour."""

    def an_hour_ago(stamp: object, asked_at: float) -> float:
        return measure_clock(stamp, asked_at) + 3600

    monkeypatch.setattr(_durables, "measure_clock", an_hour_ago)
    async with nats_swarm.worker() as worker, nats_swarm.dispatcher() as dispatcher:
        await worker.handle("coder", echo)
        with trio.fail_after(10):
            async with dispatcher.open_group() as group:
                assert (await group.run("coder", Message())).status == "success"


async def test_clocks_that_differ() -> None:
    """The server's is five minutes ahead of everybody's."""
    now = trio.current_time()
    ahead = time.time() + 300
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ahead)) + f".{int(ahead % 1 * 1e9):09}Z"
    clock = measure_clock(stamp, now)
    stored = int((ahead - 2) * 1e9)  # two seconds ago
    deadline = find_deadline(f"$JS.ACK.TASKS.work-coder.1.17.17.{stored}.0", 5.0, clock)
    assert deadline == pytest.approx(now + 3, abs=0.05)


async def test_clock_that_was_measured_badly_gives_no_more_time() -> None:
    """By it the task is stored a second from now."""
    stored = int((time.time() + 1) * 1e9)
    clock = time.time() - trio.current_time()
    deadline = find_deadline(f"$JS.ACK.TASKS.work-coder.1.17.17.{stored}.0", 5.0, clock)
    assert deadline == pytest.approx(trio.current_time() + 5, abs=0.05)


async def test_server_that_does_not_tell_the_time() -> None:
    clock = measure_clock(None, trio.current_time())
    assert trio.current_time() + clock == pytest.approx(time.time(), abs=0.05)


@within(20)
async def test_size_of_the_header_counts(nats_swarm: NATSSwarm) -> None:
    """Else a task of just the largest size would end the connection."""
    async with nats_swarm.outbox() as outbox, nats_swarm.raw() as raw:
        largest: Callable[[], int] = lambda: raw.connection.client.max_payload  # noqa: E731 - read late
        data = b"x" * (largest() - HEADER_BYTES - 2 * len("t1"))
        assert await outbox.store(NewTask("coder", "t1", data, trio.current_time() + 2**31))
