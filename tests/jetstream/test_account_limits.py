"""An account that allows smaller messages than the server: each is its sender's error alone."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.attack import logged
from tests._helpers.brokers import until, within
from tests._helpers.nats_servers import configured, reload
from trio_swarmtask import (
    Dispatcher,
    InvalidMessageError,
    Message,
    NATSConfig,
    Status,
    Worker,
    current_task,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask.bus import open_nats_bus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIMIT = 4096
LARGE = "x" * 6000


def account(limit: int) -> str:
    user = "users: [{user: a, password: a}]"
    return f"accounts {{ A {{ jetstream: enabled, {user}, limits: {{max_payload: {limit}}} }} }}"


async def handle(message: Message) -> object:
    if message.inputs.get("report"):
        await current_task().report(0.5, LARGE)
    return LARGE if message.inputs.get("output") else "small"


@asynccontextmanager
async def opened(
    tmp_path: Path, limit: int = LIMIT
) -> AsyncIterator[tuple[NATSConfig, Worker, Dispatcher]]:
    async with configured(tmp_path, account(limit)) as server:
        config = NATSConfig(server.url, user="a", password="a")
        async with open_worker(config) as worker, open_dispatcher(config) as dispatcher:
            await worker.handle("coder", handle)
            yield config, worker, dispatcher


@within(30)
async def test_task_is_too_large(tmp_path: Path) -> None:
    """However it is started; nothing else on the connection is held up."""
    large = Message(inputs={"a": LARGE})
    with logged() as log:
        async with opened(tmp_path) as (_, _, dispatcher):
            with pytest.raises(InvalidMessageError, match="larger than the 3"):
                await dispatcher.run("coder", large)
            with pytest.raises(InvalidMessageError, match="larger than the 3"):
                await dispatcher.start("coder", large)
            async with dispatcher.open_group() as group:
                with pytest.raises(InvalidMessageError, match="larger than the 3"):
                    await group.start("coder", large)
                with pytest.raises(InvalidMessageError, match="larger than the 3"):
                    await group.run("coder", large)
            with pytest.raises(InvalidMessageError, match="larger than the 3"):
                async with dispatcher.map("coder", [Message(), large], limit=2) as results:
                    async for _ in results:
                        pass
            assert (await dispatcher.run("coder", Message())).outputs == "small"
    assert not [line for line in log.lines if "lost the connection" in line]


@pytest.mark.needs_schedules
@within(30)
async def test_schedule_is_too_large(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, _, dispatcher):
        with pytest.raises(InvalidMessageError, match="larger than the 3"):
            await dispatcher.schedule("nightly", "coder", Message(inputs={"a": LARGE}), every=60)


@pytest.mark.parametrize("what", ["output", "report"])
@within(30)
async def test_what_a_handler_gives_is_too_large(tmp_path: Path, what: str) -> None:
    with logged() as log:
        async with opened(tmp_path) as (_, worker, dispatcher):
            waiting = [await dispatcher.start("coder", Message()) for _ in range(5)]
            result = await dispatcher.run("coder", Message(inputs={what: "1"}))
            assert result.status is Status.FAILED
            assert "bytes is larger than the 4" in result.error
            for future in waiting:
                assert (await future.wait()).status is Status.SUCCESS
            assert worker.statistics().failed == 1
    assert not [line for line in log.lines if "lost the connection" in line]


@within(30)
async def test_limit_is_lowered(tmp_path: Path) -> None:
    """The server does not say so. It ends the connection over what is too large."""
    with logged() as log:
        async with configured(tmp_path, account(1 << 20)) as server:
            config = NATSConfig(server.url, user="a", password="a", ack_wait=2)
            began = trio.Event()

            async def handle(message: Message) -> str:
                began.set()
                await lowered.wait()
                return LARGE

            lowered = trio.Event()
            async with open_worker(config) as worker, open_dispatcher(config) as dispatcher:
                await worker.handle("coder", handle)
                future = await dispatcher.start("coder", Message())
                await began.wait()
                reload(server, tmp_path, account(LIMIT))
                with pytest.raises(InvalidMessageError, match="keep large data elsewhere"):
                    while True:  # until the server has read its file
                        await dispatcher.start("nobody", Message(inputs={"a": LARGE}))
                lowered.set()
                result = await future.wait()
                assert result.status is Status.FAILED
                assert "bytes" in result.error
                await until(lambda: worker.statistics().failed == 1)
                await dispatcher.start("coder", Message())
    assert [line for line in log.lines if "maximum payload violation" in line]


@within(30)
async def test_what_is_published_on_a_bus_is_too_large(tmp_path: Path) -> None:
    async with (
        opened(tmp_path) as (config, _, _),
        open_nats_bus(config) as bus,
        bus.subscribe("a") as messages,
    ):
        with pytest.raises(InvalidMessageError, match=f"more than the {LIMIT}"):
            await bus.publish("a", LARGE.encode())
        await bus.publish("a", b"small")
        async for message in messages:
            assert message.data == b"small"
            break
