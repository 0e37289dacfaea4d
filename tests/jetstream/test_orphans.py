"""Leases of groups on a real server, and a program that is killed."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, within
from trio_swarmtask import BrokerError, Message, Status

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys
import trio
from trio_swarmtask import Message, open_dispatcher

async def main(url, orphans):
    async with open_dispatcher(url) as dispatcher:
        async with dispatcher.open_group(orphans=orphans) as group:
            for name in ("running", "queued"):
                await group.start(name, Message(id=f"{name}-1"))
            print("started", flush=True)

trio.run(main, *sys.argv[1:])
"""


@pytest.mark.parametrize("orphans", ["finish", "cancel"])
@within(30)
async def test_program_is_killed_in_the_middle_of_a_group(
    nats_swarm: NATSSwarm, tmp_path: Path, orphans: str
) -> None:
    nats_swarm.configure(ack_wait=1)
    await nats_swarm.shorten_leases(2)
    program = tmp_path / "orchestrator.py"
    program.write_text(textwrap.dedent(PROGRAM))
    killed = trio.Event()
    calls = []

    async def work(message: Message) -> str:
        calls.append(message.id)
        if orphans == "cancel":
            await trio.sleep_forever()
        await killed.wait()
        return "done"

    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("running", work)
        async with trio.open_nursery() as nursery:
            process = await nursery.start(start_program, program, nats_swarm.url, orphans)
            process.kill()
            await process.wait()
        killed.set()
        running = await (await dispatcher.attach("running-1")).wait()
        await worker.handle("queued", work)
        queued = await (await dispatcher.attach("queued-1")).wait()
        await nats_swarm.wait_until_empty()
    if orphans == "finish":
        assert (running.outputs, queued.outputs) == ("done", "done")
    else:
        assert running.cancelled_by == queued.cancelled_by == worker.name
        assert calls == ["running-1"]


async def start_program(*arguments: object, task_status: trio.TaskStatus[trio.Process]) -> None:
    """Until it has said that its tasks are started; then somebody is to kill it."""
    command = [sys.executable, *map(str, arguments)]
    process = await trio.lowlevel.open_process(command, stdout=-1)
    assert process.stdout is not None
    assert b"started" in await process.stdout.receive_some()
    task_status.started(process)


@within(20)
async def test_stream_that_keeps_leases_for_ever(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await raw.api("STREAM.CREATE.LASTING", name="LASTING", subjects=["lease.>"])
        with pytest.raises(BrokerError, match="stream LASTING keeps leases for ever: give it a"):
            async with dispatcher.open_group(orphans="cancel"):
                pass


@within(20)
async def test_stream_of_leases_is_made_and_made_again(nats_swarm: NATSSwarm) -> None:
    async def work(message: Message) -> str:
        return "done"

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
        dispatcher.open_group(orphans="cancel", on_failure="collect") as group,
    ):
        await worker.handle("coder", work)
        assert (await group.run("coder", Message())).status == Status.SUCCESS
        info = await raw.api("STREAM.INFO.TASK_LEASES")
        assert info["config"]["max_age"] == 30e9
        await raw.api("STREAM.DELETE.TASK_LEASES")
        # Without it nobody can know of a lease: as if it had lapsed.
        assert (await group.run("coder", Message())).cancelled_by == worker.name


@pytest.mark.parametrize("lease", ["", "a b", "*"])
@within(20)
async def test_lease_of_somebody_else(nats_swarm: NATSSwarm, lease: str) -> None:
    """What is no name of a lease is none."""

    async def work(message: Message) -> str:
        return "done"

    async with (
        nats_swarm.worker() as worker,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
    ):
        await worker.handle("coder", work)
        await raw.store("work.coder.t1", Message(id="t1").encode(), {"Swarm-Lease": lease})
        assert (await (await dispatcher.attach("t1")).wait()).outputs == "done"
