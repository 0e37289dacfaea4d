"""A list of servers of which some say nothing: the others have their turn in time."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import nats.aio.client
import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.nats_servers import listening
from tests._helpers.proxy import HOST, Proxy, open_proxy
from trio_swarmtask import BrokerError, NATSConfig
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._connection import open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio_swarmtask.server import Server


async def say_nothing(client: trio.SocketStream) -> None:
    await client.receive_some()
    await trio.sleep_forever()


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """It accepts, and says nothing."""
    async with listening(say_nothing) as port:
        yield f"nats://{HOST}:{port}"


@contextmanager
def unreachable() -> Iterator[str]:
    """It takes no more connections, as if their packets were dropped."""
    with socket.socket() as full, socket.socket() as first:
        full.bind((HOST, 0))
        full.listen(0)
        first.connect(full.getsockname())
        yield f"nats://{HOST}:{full.getsockname()[1]}"


async def seconds_to_open(url: str, **settings: Any) -> float:
    began = trio.current_time()
    async with open_connection(NATSConfig(url, **settings)):
        return trio.current_time() - began


def try_last(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The order of a list is left to chance elsewhere."""

    def order(servers: list[Any]) -> None:
        servers.sort(key=lambda one: one.uri.port == port)

    monkeypatch.setattr(nats.aio.client, "shuffle", order)


@within(30)
async def test_first_connect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server has a share of the time."""
    try_last(monkeypatch, server.port)
    async with silent() as one:
        with unreachable() as other:
            took = await seconds_to_open(f"{server.url},{one},{other}", connect_timeout=4.5)
    assert 3 <= took < 4.5


@within(30)
async def test_none_of_them_answers() -> None:
    async with silent() as one:
        with unreachable() as other, pytest.raises(BrokerError) as caught:
            await seconds_to_open(f"{one},{other}", connect_timeout=0.4)
    assert "did not answer within 0.2 seconds" in str(caught.value)


@within(30)
async def test_reconnect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent server used to have all of `connect_timeout`."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    async with silent() as one, open_proxy(server.port) as proxy:
        try_last(monkeypatch, proxy.port)
        url = f"{proxy.url},{one}"
        async with open_connection(NATSConfig(url, connect_timeout=1000)) as connection:
            await connection.call(connection.client.replace_connection(OSError("a break")))
            began = trio.current_time()
            await connection.wait_up()
    assert trio.current_time() - began < 10


class Slow(Proxy):
    """Its greeting takes half a second."""

    async def _answer(self, client: trio.SocketStream, data: bytes) -> None:
        if data.startswith(b"INFO"):
            await trio.sleep(0.5)
        await super()._answer(client, data)


@within(30)
async def test_long_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that needs more than its share has more at each further attempt."""
    monkeypatch.setattr(_client, "_ATTEMPT", 0.1)
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    slow = Slow(server.port)
    async with listening(slow.serve) as port, silent() as one:
        url = f"nats://{HOST}:{port},{one}"
        async with open_connection(NATSConfig(url, connect_timeout=20)) as connection:
            assert connection.client._silences == {}
            assert connection.is_up
