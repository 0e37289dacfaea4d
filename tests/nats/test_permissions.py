"""What the server's permissions refuse is named, within the time of connecting."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import echo, within
from tests._helpers.nats_servers import configured
from trio_swarmtask import BrokerError, Message, NATSConfig, open_dispatcher, open_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

USERS = """
authorization { users = [
  {user: all, password: all}
  {user: some, password: some, permissions: {%s}}
] }
"""


@asynccontextmanager
async def permitting(directory: Path, permissions: str) -> AsyncIterator[tuple[NATSConfig, str]]:
    """A config of the user with these permissions, and one of a user who may do all."""
    async with configured(directory, USERS % permissions) as server:
        url = f"nats://all:all@127.0.0.1:{server.port}"
        async with open_dispatcher(url), open_worker(url) as worker:
            await worker.handle("coder", echo)  # makes what the other may not make
        yield NATSConfig(server.url, user="some", password="some", connect_timeout=2), url


@pytest.mark.parametrize(
    ("permissions", "named"),
    [
        ('publish: {deny: ["work.>"]}', r"publish to work\.coder\."),
        ('publish: {deny: ["$JS.API.>"]}', r"publish to \$JS\.API\."),
        ('publish: {deny: ["$JS.API.STREAM.>"]}', r"publish to \$JS\.API\.STREAM\."),
        ('subscribe: {deny: ["notify.>"]}', r"subscribe to notify\."),
        ('subscribe: {deny: ["_INBOX.>"]}', r"subscribe to _INBOX\."),
    ],
)
@within(20)
async def test_dispatcher(tmp_path: Path, permissions: str, named: str) -> None:
    async with permitting(tmp_path, permissions) as (config, _):
        with trio.fail_after(4):
            with pytest.raises(BrokerError, match=rf"does not permit this user to {named}"):
                async with open_dispatcher(config) as dispatcher:
                    await dispatcher.run("coder", Message())


@pytest.mark.parametrize(
    ("permissions", "named"),
    [
        ('publish: {deny: ["$JS.API.>"]}', r"publish to \$JS\.API\."),
        ('publish: {deny: ["$JS.API.STREAM.>"]}', r"publish to \$JS\.API\.STREAM\."),
        ('publish: {deny: ["$JS.API.CONSUMER.INFO.>"]}', r"publish to \$JS\.API\.CONSUMER\.INFO"),
        (
            'publish: {deny: ["$JS.API.CONSUMER.MSG.NEXT.>"]}',
            r"publish to \$JS\.API\.CONSUMER\.MSG",
        ),
        ('subscribe: {deny: ["_INBOX.>"]}', r"subscribe to _INBOX\."),
    ],
)
@within(20)
async def test_worker(tmp_path: Path, permissions: str, named: str) -> None:
    async with permitting(tmp_path, permissions) as (config, _):
        with trio.fail_after(4):
            with pytest.raises(BrokerError, match=rf"does not permit this user to {named}"):
                async with open_worker(config) as worker:
                    await worker.handle("coder", echo)
                    await trio.sleep_forever()


@within(20)
async def test_worker_that_may_not_ack(tmp_path: Path) -> None:
    """Or its tasks would come again and again, for ever."""
    async with (
        permitting(tmp_path, 'publish: {deny: ["$JS.ACK.>"]}') as (config, url),
        open_dispatcher(url) as dispatcher,
    ):
        await dispatcher.start("coder", Message())
        with pytest.raises(BrokerError, match=r"not permit this user to publish to \$JS\.ACK\."):
            async with open_worker(config) as worker:
                await worker.handle("coder", echo)
                await trio.sleep_forever()


@within(20)
async def test_worker_that_may_not_store_results(tmp_path: Path) -> None:
    """It ends with the reason; the task goes to another worker."""
    async with (
        permitting(tmp_path, 'publish: {deny: ["done.>"]}') as (config, url),
        open_dispatcher(url) as dispatcher,
    ):
        future = await dispatcher.start("coder", Message())
        with trio.fail_after(4):
            with pytest.raises(
                BrokerError, match=r"does not permit this user to publish to done\."
            ):
                async with open_worker(config) as worker:
                    await worker.handle("coder", echo)
                    await trio.sleep_forever()
        async with open_worker(url) as other:
            await other.handle("coder", echo)
            await future.wait()


@within(20)
async def test_own_id_whose_notice_is_not_permitted(tmp_path: Path) -> None:
    """The subscription for a caller's own ID is another subject than the dispatcher's."""
    permissions = 'subscribe: {deny: ["notify.mine.>", "notify.mine"]}'
    async with permitting(tmp_path, permissions) as (config, _):
        with trio.fail_after(4):
            with pytest.raises(BrokerError, match=r"does not permit this user to subscribe to"):
                async with open_dispatcher(config) as dispatcher:
                    await dispatcher.run("coder", Message(id="mine"))
