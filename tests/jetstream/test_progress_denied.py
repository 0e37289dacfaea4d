"""Progress where the connection is lost, or the server does not permit it."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import echo, until, within
from tests._helpers.nats_servers import configured
from tests._helpers.proxy import open_proxy
from tests.jetstream.test_progress import Reporter, note, quick as quick
from trio_swarmtask import (
    BrokerError,
    Message,
    NATSConfig,
    current_task,
    open_broker,
    open_dispatcher,
    open_worker,
)

if TYPE_CHECKING:
    from pathlib import Path

    from trio_swarmtask.server import Server


USERS = """
authorization { users = [
  {user: all, password: all}
  {user: some, password: some, permissions: {%s}}
] }
"""


@within(10)
async def test_connection_that_is_lost_for_good(server: Server) -> None:
    """Updates end, `wait` says why; a worker with a dispatcher of its own is left as ever."""
    asked = trio.Event()

    async def handle(message: Message) -> None:
        await current_task().dispatcher()
        asked.set()
        await trio.sleep_forever()

    async def follow(dispatcher_url: NATSConfig) -> None:
        with pytest.raises(BrokerError, match="for good"):
            async with open_dispatcher(dispatcher_url) as dispatcher:
                future = await dispatcher.start("coder", Message())
                async with future.updates() as updates:
                    await asked.wait()
                    proxy.cut(for_good=True)
                    with trio.CancelScope(shield=True):
                        assert [update async for update in updates] == []
                        with pytest.raises(BrokerError, match="for good"):
                            await future.wait()
                    await trio.sleep_forever()

    async with open_proxy(server.port) as proxy, trio.open_nursery() as nursery:
        config = NATSConfig(proxy.url, reconnect_timeout=0.2)
        nursery.start_soon(follow, config)
        with pytest.raises(BrokerError, match="for good"):
            async with open_worker(config) as worker:
                await worker.handle("coder", handle)
                await trio.sleep_forever()


@within(10)
async def test_roles_on_one_connection(server: Server) -> None:
    reporter = Reporter()
    async with (
        open_broker(server.url) as broker,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        await worker.handle("coder", reporter)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as updates:
            await reporter.notes.send("one")
            assert note(await anext(updates)) == "one"
            await reporter.notes.aclose()


# Refusals


@within(10)
async def test_subscription_that_is_not_permitted(tmp_path: Path) -> None:
    """It is said each time; the task goes on."""
    users = USERS % 'subscribe: {deny: ["results.*"]}'
    async with configured(tmp_path, users) as server, AsyncExitStack() as stack:
        url = f"127.0.0.1:{server.port}"
        dispatcher = await stack.enter_async_context(open_dispatcher(f"nats://some:some@{url}"))
        future = await dispatcher.start("coder", Message(id="T-1"))
        refusal = r"not permit this user to subscribe to results\.T-1$"
        updates = future.updates()
        for _ in range(2):
            with pytest.raises(BrokerError, match=refusal):
                await anext(updates)
            with pytest.raises(BrokerError, match=refusal):
                async with future.updates():
                    pytest.fail("it was entered")
        assert future._watchers == ()
        async with open_worker(f"nats://all:all@{url}") as worker:
            await worker.handle("coder", echo)
            await future.wait()
        assert [update async for update in updates] == []


@within(10)
async def test_reports_that_are_not_permitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for a connection, and the handler goes on."""
    reporter = Reporter()
    users = USERS % 'publish: {deny: ["results.*"]}'

    def warned() -> int:
        text = "the progress of tasks is not sent"
        return sum(text in message for message in caplog.messages)

    async with configured(tmp_path, users) as server, open_proxy(server.port) as proxy:
        config = NATSConfig(proxy.url, user="some", password="some")
        url = f"nats://all:all@127.0.0.1:{server.port}"
        async with open_worker(config) as worker, open_dispatcher(url) as dispatcher:
            await worker.handle("coder", reporter)
            future = await dispatcher.start("coder", Message())
            await reporter.notes.send("refused")
            await until(lambda: warned() == 1)
            for _ in range(5):
                await reporter.notes.send("not sent")
            connection = worker._broker.connection  # type: ignore[attr-defined]  # NATSBroker's
            proxy.cut()
            await until(lambda: not connection.is_up)
            await connection.wait_up()
            await reporter.notes.send("refused again")
            await until(lambda: warned() == 2)
            await reporter.notes.aclose()
            (await future.wait()).raise_for_status()
    violations = [
        record
        for record in caplog.records
        if record.levelno == logging.ERROR and "violation" in record.getMessage()
    ]
    assert len(violations) == 2
