"""More than can be done: a backlog, and handlers that keep the thread to themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import open_arena

if TYPE_CHECKING:
    import random

    from tests._helpers.faults.table import Row

MEGABYTE = 1 << 20
ACK_WAIT = 1.0


@pytest.mark.fault("overload: a backlog, and one worker", full=100_000, short=6_000)
@within(600)
async def test_backlog(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """Memory stays flat, and neither sending nor draining starves the renewal of leases."""
    async with open_arena(tmp_path, row, rng, ack_wait=ACK_WAIT) as arena:
        worker = await arena.add_worker(max_in_flight=100)
        idle, before = peak(worker.pid), resident()
        async with trio.open_nursery() as results:

            async def send(count: int) -> None:
                for _ in range(count):
                    results.start_soon(arena.wait, await arena.start())

            long = [await arena.start(5 * ACK_WAIT) for _ in range(20)]
            async with trio.open_nursery() as senders:
                for _ in range(100):
                    senders.start_soon(send, times // 100)
            sent = resident()
            for future in long:
                results.start_soon(arena.wait, future)
        await arena.check()
        assert peak(worker.pid) - idle < 100 * MEGABYTE
        assert sent - before < 50 * MEGABYTE + times * 5000  # a Trio task waits for each
        for future in long:
            assert len(arena.ledger.runs[future.id]) == 1
    assert row.doubled == 0


def peak(pid: int) -> int:
    """The most bytes that a process ever had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.fault("overload: handler blocks the thread for 3 x `ack_wait`", full=20, short=3)
@within(300)
async def test_handler_blocks(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """The log says which and for how long; one more run at most, and no storm."""
    hogs = []
    async with open_arena(tmp_path, row, rng, ack_wait=ACK_WAIT) as arena:
        await arena.add_workers(2)
        async with arena.load():
            for _ in range(times):
                before = trio.current_time()
                hogs.append((await arena.run(0.1, hog=f"{3 * ACK_WAIT}")).id)
                row.recoveries.append(trio.current_time() - before - 3 * ACK_WAIT)
        await arena.check(leases_may_lapse=True, held_up=True)
        for task in hogs:
            runs = arena.ledger.runs[task]
            assert len(runs) <= 2, (task, runs)
        logs = "".join(worker.log for worker in arena.workers)
    told = re.findall(r"the handler of work kept the Trio thread to itself for about (.*?) s", logs)
    assert len(told) >= times
    assert all(2.5 * ACK_WAIT < float(seconds) < 5 * ACK_WAIT for seconds in told), told
    assert "keeps the Trio thread to itself" in logs
    assert "time.sleep(" in logs  # where it is
