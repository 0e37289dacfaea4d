"""Hostile input: whatever is published, nobody crashes, hangs, spins, or fills memory."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.attack import IN_FLIGHT, MIB, open_broken, open_siege
from tests._helpers.brokers import within
from tests._helpers.hostile_bytes import (
    BROKEN_LINES,
    DEADLY_CHARACTERS,
    DEADLY_HEADERS,
    ENDLESS_LINES,
)
from tests._helpers.hostile_messages import Case, Hostile
from trio_swarmtask import Future, Message, UnsupportedVersionError

if TYPE_CHECKING:
    import random

    from tests._helpers.faults.table import Row
    from trio_swarmtask.server import Server

ROUND = 1000
OUTSTANDING = 20  # tasks a round that are answered by the attacker alone
MOST_NEWER = 20  # each is offered again every 15 s


def peak_memory() -> int:
    """Bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def wait_answer(future: Future) -> None:
    with suppress(UnsupportedVersionError):  # an answer too
        await future.wait()


@pytest.mark.fault("hostile input: fuzzed publishes of every kind", full=100_000, short=4_000)
@within(1800)
async def test_hostile_input(server: Server, row: Row, rng: random.Random, times: int) -> None:
    began, newer, stored, memory = trio.current_time(), 0, 0, 0
    async with open_siege(server.port, row) as siege:
        hostile = Hostile(rng, siege.targets)
        for number in range(times // ROUND):
            records = siege.log.count
            futures = [
                await siege.dispatcher.start("nobody", Message()) for _ in range(OUTSTANDING)
            ]
            siege.targets.outstanding = [future.id for future in futures]
            # Made one by one while they are sent, for their targets move.
            cases = (hostile.case() for _ in range(ROUND))
            last_words = [Case(b"done." + future.id.encode(), b"bad") for future in futures]
            if number % 5 == 0 and newer < MOST_NEWER:
                last_words.append(hostile.newer())
                newer += 1
            expected = await siege.attack(itertools.chain(cases, last_words))
            row.tasks += ROUND + OUTSTANDING
            stored += sum(expected.values()) + 2
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = trio.current_time() + 10
                for future in futures:
                    nursery.start_soon(wait_answer, future)
            assert not nursery.cancel_scope.cancelled_caught, "waiters without an answer"
            missing = await siege.wait_buried(expected, 20)
            row.lost += sum(missing.values())
            assert not missing, f"stored, and no dead letters: {missing.most_common(5)}"
            await siege.clear()
            assert await siege.wait_left(newer) == newer
            assert not await siege.serve()
            assert not siege.log.tracebacks, siege.log.tracebacks[0]
            assert siege.log.count - records <= 2 * ROUND, siege.log.lines
            if number == 0:
                memory = peak_memory()
        assert peak_memory() - memory < 64 * MIB
        # Whatever a pull was not told of, as it was ended by a forged status, comes once more.
        info = await siege.client.api("CONSUMER.INFO.TASKS.work-work")
        again = newer * ((trio.current_time() - began) / 15 + 1)
        most = stored + again + 2 * IN_FLIGHT * len(siege.targets.pulls)
        assert info["delivered"]["consumer_seq"] <= most
        used = time.process_time()
        assert not await siege.serve(seconds="1")
        assert time.process_time() - used < 0.5, "busy, with nothing to do"


@pytest.mark.fault("hostile input: headers and subjects that end the reading", full=19, short=19)
@within(900)
async def test_deadly_messages(server: Server, row: Row, times: int) -> None:
    """A task is a dead letter: one that only ended the connection would do so for ever."""
    failures: list[str] = []
    async with open_siege(server.port, row) as siege:
        key, pull = siege.targets.key.encode(), siege.targets.pulls[-1].encode()
        inboxes = [f"{prefix}0".encode() for prefix in siege.targets.requests]
        inboxes += [b"notify.%s.1" % key, pull]
        cases = {"a subject that is not UTF-8": [Case(b"work.work.\xff", b"bad")]}
        for name, block in DEADLY_HEADERS.items():
            cases[f"a task with headers {name}"] = [Case(b"work.work.h", b"", block)]
            cases[f"headers {name}, to inboxes"] = [Case(inbox, b"", block) for inbox in inboxes]
        for mark in DEADLY_CHARACTERS:
            subject, notice = b"work.work.a%sb" % mark, b"notify.%s.1%s2" % (key, mark)
            cases[f"a task with {mark!r} in its subject"] = [Case(subject, b"bad")]
            cases[f"a long task with {mark!r} in its subject"] = [Case(subject, b"bad" * 3000)]
            cases[f"a notice with {mark!r} in its subject"] = [Case(notice, b"bad" * 3000)]
        assert len(cases) == times
        for name, publishes in cases.items():
            if await siege.wait_buried(await siege.attack(publishes), 5):
                failures.append(f"{name}: no dead letter")
                await siege.client.api("STREAM.PURGE.TASKS")
            failures += await siege.find_harm(name, 5)
    assert not failures, "\n".join(failures)


@pytest.mark.fault("hostile input: a server that says what none does", full=12, short=12)
@within(300)
async def test_broken_server(server: Server, row: Row, times: int) -> None:
    assert len(BROKEN_LINES) == times
    failures: list[str] = []
    async with open_broken(server, row) as (proxy, siege):
        for name, line in BROKEN_LINES.items():
            await proxy.say(line)
            failures += await siege.find_harm(name, 5)
    assert not failures, "\n".join(failures)


@pytest.mark.fault("hostile input: a server that begins and does not end", full=2, short=2)
@within(100)
async def test_endless_server(server: Server, row: Row, times: int) -> None:
    """Only pings that stay unanswered tell."""
    assert len(ENDLESS_LINES) == times
    failures: list[str] = []
    # Who does not hear for longer than five leases makes a dead letter of a good task.
    async with open_broken(server, row, ack_wait=5) as (proxy, siege):
        for name, line in ENDLESS_LINES.items():
            await proxy.say(line)
            failures += await siege.find_harm(name, 20)
    assert not failures, "\n".join(failures)
