"""Ctrl-C at any moment: the program ends, soon and whole, and none of its tasks is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import echo, within
from tests._helpers.faults import interrupted_program
from trio_swarmtask import NATSConfig, open_broker, open_dispatcher, open_worker
from trio_swarmtask.server import open_server

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests._helpers.faults.table import Row

PROGRAM = Path(interrupted_program.__file__)
MISSED = ("not reached", "before its run")  # not every run calls every function


def play(url: str, **settings: Any) -> list[list[Any]]:
    """Play the programs in processes of their own; what each line says."""
    command = [sys.executable, "-W", "error", str(PROGRAM), json.dumps({"url": url, **settings})]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, (lines[-1:], ended.stderr[-5000:])
    return lines


async def interrupt(row: Row, url: str, kind: str, at: Sequence[object], **settings: Any) -> None:
    """Play one program for each of ``at``; then let another worker do what they left."""
    lines = await trio.to_thread.run_sync(partial(play, url, **{kind: at}, **settings))
    assert len(lines) == len(at)
    wrong = [line[:2] for line in lines if line[1] not in ("interrupted", *MISSED)]
    assert not wrong
    hit = [line for line in lines if line[1] == "interrupted"]
    assert len(hit) >= 0.9 * len(at), f"too few were interrupted: {len(hit)} of {len(at)}"
    row.times = len(hit)
    started = [task_id for line in lines for task_id in line[2]]
    row.tasks += len(started)
    async with (
        open_broker(NATSConfig(url, ack_wait=2)) as broker,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        await worker.handle("coder", echo, max_in_flight=100)
        for task_id in started:
            await (await dispatcher.attach(task_id)).wait()


def sample(rng: random.Random, entries: list[str], times: int) -> list[str]:
    return rng.sample(entries, min(times, len(entries)))


@pytest.mark.fault("Ctrl-C at a random moment", full=200, short=15)
@within(600)
async def test_random_moments(times: int, rng: random.Random, row: Row) -> None:
    async with open_server() as server:
        moments = [rng.uniform(0.001, 0.5) for _ in range(times)]
        await interrupt(row, server.url, "moments", moments)


@pytest.mark.fault("Ctrl-C at each function's entry", full=10_000, short=40)
@within(900)
async def test_every_entry(times: int, rng: random.Random, row: Row) -> None:
    async with open_server() as server:
        [[entries]] = await trio.to_thread.run_sync(partial(play, server.url))
        assert len(entries) > 500
        await interrupt(row, server.url, "entries", sample(rng, entries, times))


@pytest.mark.fault("a second Ctrl-C at each entry on the way out", full=10_000, short=25)
@within(900)
async def test_every_entry_on_the_way_out(times: int, rng: random.Random, row: Row) -> None:
    async with open_server() as server:
        [[entries]] = await trio.to_thread.run_sync(partial(play, server.url, again=True))
        assert len(entries) > 200
        await interrupt(row, server.url, "entries", sample(rng, entries, times), again=True)
