"""The asyncio loop under a connection, and its batches."""

from __future__ import annotations

import asyncio

import pytest
import trio
import trio_asyncio
from sniffio import current_async_library

from tests._helpers.brokers import NATSSwarm, echo, within
from trio_swarmtask import Message, Status
from trio_swarmtask._nats import _versions
from trio_swarmtask._nats._loop import drain_in_batches

known = pytest.mark.skipif(
    not _versions.is_known("trio-asyncio"), reason="a trio-asyncio that is not known runs as it is"
)


@pytest.mark.parametrize("in_batches", [False, pytest.param(True, marks=known)])
@within(10)
async def test_everything_queued_is_run_in_order(in_batches: bool) -> None:
    """Callbacks, timers and Trio tasks, whatever stands beside them; cancelled ones are not."""
    ran: list[str] = []
    libraries: list[str] = []
    done = trio.Event()

    def run(name: str) -> None:
        ran.append(name)
        libraries.append(current_async_library())

    async def trio_task() -> str:
        await trio.lowlevel.checkpoint()
        libraries.append(current_async_library())
        return "from Trio"

    async with trio_asyncio.open_loop() as loop:
        if in_batches:
            assert drain_in_batches(loop)
        for number in range(200):
            loop.call_soon(run, str(number))
        loop.call_soon(run, "never").cancel()
        loop.call_later(0.01, done.set)
        future = loop.trio_as_future(trio_task)
        loop.call_soon(run, "last")
        await done.wait()
        assert await loop.run_aio_future(future) == "from Trio"
        assert current_async_library() == "trio"
    assert ran == [*map(str, range(200)), "last"]
    assert libraries.count("trio") == 1
    assert libraries.count("asyncio") == 201


@known
@within(10)
async def test_callback_that_raises_leaves_trio_as_the_library() -> None:
    async with trio_asyncio.open_loop() as loop:
        assert drain_in_batches(loop)
        heard: list[object] = []
        loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))
        ended = trio.Event()
        error = ValueError("in a callback")

        async def fail() -> None:
            raise error

        loop.call_soon(ended.set)
        task = asyncio.ensure_future(fail(), loop=loop)
        await ended.wait()
        with pytest.raises(ValueError, match="in a callback"):
            await loop.run_aio_future(task)
        assert current_async_library() == "trio"


@within(20)
async def test_unknown_version_runs_as_it_is(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio_asyncio, "__version__", "0.99.0")
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    async with trio_asyncio.open_loop() as loop:
        assert not drain_in_batches(loop)
