"""A server that is killed or stopped, and streams that are deleted or full."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import Arena, open_arena
from tests._helpers.plain_nats import open_plain_client

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row

# Seconds from the port being open to the next result.
RECOVERY = 5.0


@pytest.mark.fault("nats-server: SIGKILL and restart on the same store", full=50, short=4)
@within(900)
async def test_server_is_killed(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    async with open_arena(tmp_path, row, rng, ack_wait=2) as arena:
        await arena.add_workers(2)
        async with arena.load(in_flight=30), arena.load(in_flight=3, longest=5):
            for _ in range(times):
                await arena.ledger.wait_result()
                await trio.sleep(rng.uniform(0, 0.5))
                await arena.server.kill()
                await trio.sleep(rng.uniform(0, 0.5))
                await arena.server.start()
                await note_recovery(arena)
        await arena.check(leases_may_lapse=True)
    assert max(row.recoveries) < RECOVERY


@pytest.mark.fault("nats-server: SIGSTOP for 20 s, SIGCONT", full=5, short=1)
@within(300)
async def test_server_is_stopped(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    async with open_arena(tmp_path, row, rng, ack_wait=2) as arena:
        await arena.add_workers(2)
        async with arena.load(in_flight=30):
            for _ in range(times):
                await arena.ledger.wait_result()
                arena.server.pause()
                for _ in range(20):  # a caller's deadline holds all the while
                    with trio.move_on_after(1):
                        await arena.try_to_run()
                arena.server.resume()
                await note_recovery(arena)
        await arena.check(leases_may_lapse=True)
    assert max(row.recoveries) < RECOVERY


async def note_recovery(arena: Arena) -> None:
    """The server is there again: until two results have come, of which one was sent just now."""
    there = trio.current_time()
    with trio.fail_after(30):
        await arena.run()
    arena.row.recoveries.append(trio.current_time() - there)


@pytest.mark.parametrize("which", ["durable", "TASKS", "TASK_RESULTS", "TASK_DEAD"])
@pytest.mark.fault("durable or stream deleted while in use", full=10, short=2)
@within(200)
async def test_deleted(
    tmp_path: Path, row: Row, rng: random.Random, times: int, which: str
) -> None:
    """Made again. What a deleted stream held is gone, so nothing is in flight then."""
    row.fault = f"{which} deleted while in use"
    async with open_arena(tmp_path, row, rng, ack_wait=2) as arena:
        await arena.add_workers(2)
        async with open_plain_client(arena.server.port) as client:
            for _ in range(times):
                async with arena.load():
                    for _ in range(20):
                        await arena.ledger.wait_result()
                    if which == "durable":
                        await client.api("CONSUMER.DELETE.TASKS.work-work")
                        await note_recovery(arena)
                if which != "durable":
                    await arena.check()
                    arena.ledger.begin_anew(queue_deleted=which == "TASKS")
                    await client.api(f"STREAM.DELETE.{which}")
                    await note_recovery(arena)
                await arena.poison(client)
        await arena.check(leases_may_lapse=True)
        for worker in arena.workers:
            assert worker.log.count("\n") < 40 * times, f"it spins: {worker.log[-2000:]}"
    assert max(row.recoveries) < 2 * RECOVERY


LIMITS = {
    "max_msgs of the queue": {"max_msgs": 5},
    "max_bytes of the queue": {"max_bytes": 1600},
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.fault("stream full", full=200, short=50)
@within(60)
async def test_queue_is_full(
    tmp_path: Path,
    row: Row,
    rng: random.Random,
    times: int,
    limit: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`start` waits for room, and says so once."""
    row.fault = f"stream at {limit}"
    settings = {"subjects": ["work.>"], "retention": "workqueue", "discard": "new"}
    async with open_arena(tmp_path, row, rng, ack_wait=2) as arena:
        async with open_plain_client(arena.server.port) as client:
            await client.api("STREAM.CREATE.TASKS", name="TASKS", **settings, **LIMITS[limit])
        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(arena.run, 0.01)
            await arena.add_worker(max_in_flight=2)
        await arena.check()
    told = [record.message for record in caplog.records if "trying again" in record.message]
    assert 0 < len(told) <= times
    assert "could not store task" in told[0]
    assert "maximum" in told[0]


@pytest.mark.fault("stream of results at its max_msgs", full=20, short=5)
@within(60)
async def test_results_are_full(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """No task ends without its result; once there is room, all go on."""
    async with open_arena(tmp_path, row, rng, ack_wait=2) as arena:
        async with open_plain_client(arena.server.port) as client:
            await arena.limit_results(client, times // 2)
            worker = await arena.add_worker(max_in_flight=5)
            async with trio.open_nursery() as nursery:
                for _ in range(times):
                    nursery.start_soon(arena.run, 0.01)
                while "trying again" not in worker.log:  # noqa: ASYNC110 - a file has no event
                    await trio.sleep(0.05)
                assert (await client.api("STREAM.INFO.TASK_RESULTS"))["state"]["messages"] > 0
                await arena.limit_results(client, -1)
        await arena.check()
        assert worker.log.count("trying again") <= times


@pytest.mark.fault("disk limit of the account reached", full=1, short=1)
@within(60)
async def test_disk_is_full(
    tmp_path: Path, row: Row, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(
        "accounts { A { jetstream { max_file: 100000 }, users: [{user: a}] } }\n"
        "no_auth_user: a\njetstream: enabled\n"
    )
    async with open_arena(tmp_path, row, rng, arguments=["-c", str(config)], ack_wait=2) as arena:
        with trio.move_on_after(3) as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(partial(arena.start, filler="x" * 2000))
        assert scope.cancelled_caught
        told = [record.message for record in caplog.records if "trying again" in record.message]
        assert told
        assert "resource" in told[0]
        row.tasks = len(arena.ledger.sent)
