"""A login in a URL: decoded, and for all servers, those that a cluster announces too."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests._helpers.attack import logged
from tests._helpers.brokers import until, within
from tests._helpers.nats_servers import configured, kill
from tests._helpers.ports import free_ports
from tests.nats.test_connect import refusal, use
from trio_swarmtask import AuthenticationError, NATSConfig
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._connection import open_connection

if TYPE_CHECKING:
    from pathlib import Path

    from trio_swarmtask.server import Server

PASSWORD = "p@ss:/w%,0r d"
ENCODED = "p%40ss%3A%2Fw%25%2C0r%20d"

LOGINS = {
    "user and password": (f'{{user: "u@x", password: "{PASSWORD}"}}', f"u%40x:{ENCODED}"),
    "token": (f'{{token: "{PASSWORD}"}}', ENCODED),
}


@pytest.mark.parametrize("kind", LOGINS)
@within(20)
async def test_login_is_decoded(tmp_path: Path, kind: str) -> None:
    """As the Go client does it."""
    login, in_url = LOGINS[kind]
    with logged() as log:
        async with configured(tmp_path, f"authorization: {login}") as server:
            await use(NATSConfig(f"nats://{in_url}@127.0.0.1:{server.port}"))
            wrong = NATSConfig(f"nats://x{in_url}@127.0.0.1:{server.port}")
            error = await refusal(wrong, AuthenticationError)
    for text in (str(error), *log.lines):
        assert PASSWORD not in text
        assert ENCODED not in text


@within(20)
async def test_each_url_has_its_own_login(tmp_path: Path) -> None:
    """One that has none takes that of the first."""
    async with configured(tmp_path, "authorization: {user: a, password: b}") as server:
        here = f"127.0.0.1:{server.port}"
        dead = f"127.0.0.1:{next(free_ports)}"
        await use(NATSConfig(f"nats://a:b@{dead},nats://{here}"))
        await use(NATSConfig(f"nats://{here},nats://a:b@{dead}"))
        await use(NATSConfig(f"nats://no:no@{dead},nats://a:b@{here}"))
        await refusal(NATSConfig(f"nats://a:b@{dead},nats://no:no@{here}"), AuthenticationError)


@within(20)
async def test_login_of_the_config_comes_first(tmp_path: Path) -> None:
    async with configured(tmp_path, "authorization: {user: a, password: b}") as server:
        url = f"nats://127.0.0.1:{server.port},nats://x:y@127.0.0.1:{next(free_ports)}"
        await use(NATSConfig(url, user="a", password="b"))


@within(20)
async def test_server_without_a_scheme(server: Server) -> None:
    await use(NATSConfig(f"127.0.0.1:{server.port}"))
    await use(NATSConfig(f"127.0.0.1:{next(free_ports)}, localhost:{server.port}"))


@pytest.mark.parametrize("kind", LOGINS)
@within(40)
async def test_servers_that_a_cluster_announces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """They were tried without a login, and the log named the server that was gone."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    login, in_url = LOGINS[kind]
    routes = [next(free_ports) for _ in range(2)]
    others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    with logged() as log:
        async with AsyncExitStack() as stack:
            servers = []
            for number, port in enumerate(routes):
                (directory := tmp_path / f"{number}").mkdir()
                listen = f'listen: "127.0.0.1:{port}", routes: [{others}]'
                text = f"authorization: {login}\ncluster: {{name: c, {listen}}}"
                opening = configured(directory, text, jetstream=False)
                servers.append(await stack.enter_async_context(opening))
            first, second = servers
            url = f"nats://{in_url}@127.0.0.1:{first.port}"
            connection = await stack.enter_async_context(open_connection(NATSConfig(url)))
            client = connection.client
            await until(lambda: second.port in [one.uri.port for one in client._server_pool])
            kill(first)
            await until(lambda: not connection.is_up)
            await connection.wait_up()
            assert client.connected_url is not None
            assert client.connected_url.port == second.port
    assert not [line for line in log.lines if "refuses" in line]
