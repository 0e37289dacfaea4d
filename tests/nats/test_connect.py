"""Connecting: typed errors in time, texts that say what to do, and no secret anywhere."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import echo, until, within
from tests._helpers.nats_servers import configured, free_port, listening
from trio_swarmtask import (
    AuthenticationError,
    BrokerError,
    Message,
    NATSConfig,
    Status,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._connection import open_connection
from trio_swarmtask.server import Server, _open_server

if TYPE_CHECKING:
    from pathlib import Path


async def refusal(config: NATSConfig, kind: type[BrokerError] = BrokerError) -> BrokerError:
    """The error of opening a broker, which comes within ``connect_timeout``, and one second."""
    with trio.fail_after(config.connect_timeout + 1):
        with pytest.raises(BrokerError) as raised:
            async with open_broker(config):
                pytest.fail("it connected")
    assert type(raised.value) is kind
    return raised.value


async def use(config: NATSConfig | str | None) -> None:
    """Send one task and get its result."""
    async with (
        open_broker(config) as broker,
        open_dispatcher(broker) as dispatcher,
        open_worker(broker) as worker,
    ):
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(20)
async def test_nobody_listens() -> None:
    url = f"nats://127.0.0.1:{await free_port()}"
    error = await refusal(NATSConfig(url, connect_timeout=0.5))
    assert str(error).startswith(f"no NATS server at {url} within 0.5 seconds: ")
    assert isinstance(error.__cause__, OSError)


@within(20)
async def test_server_that_comes_up_late_is_waited_for() -> None:
    port = await free_port()
    tried, done = trio.Event(), trio.Event()

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.aclose()
        tried.set()

    async def connect_and_use() -> None:
        await use(f"nats://127.0.0.1:{port}")
        done.set()

    async with trio.open_nursery() as nursery:
        async with listening(refuse, port):
            nursery.start_soon(connect_and_use)
            await tried.wait()
        async with _open_server(["--jetstream"], port=port):
            await done.wait()


@within(20)
async def test_listener_that_says_nothing() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with listening(silent) as port:
        error = await refusal(NATSConfig(f"nats://127.0.0.1:{port}", connect_timeout=0.5))
    assert "127.0.0.1" in str(error)
    assert "within 0.5 seconds" in str(error)


@within(20)
async def test_listener_that_is_no_nats_server() -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async with listening(http) as port:
        error = await refusal(NATSConfig(f"nats://127.0.0.1:{port}", connect_timeout=0.5))
    assert "no NATS server at" in str(error)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--user", "ada", "--pass", "right"], {"user": "ada", "password": "wrong-one"}),
        (["--user", "ada", "--pass", "right"], {}),
        (["--auth", "right"], {"token": "wrong-one"}),
    ],
)
@within(20)
async def test_wrong_credentials_end_it_at_once(
    arguments: list[str], settings: dict[str, str]
) -> None:
    async with _open_server(["--jetstream", *arguments]) as server:
        before = trio.current_time()
        error = await refusal(
            NATSConfig(server.url, connect_timeout=10, **settings), AuthenticationError
        )
        assert trio.current_time() - before < 5
    assert str(error).startswith(f"{server.url} refuses the credentials: ")
    assert "wrong-one" not in str(error)


@pytest.mark.parametrize("where", ["url", "fields"])
@within(20)
async def test_user_and_password(where: str) -> None:
    async with _open_server(["--jetstream", "--user", "ada", "--pass", "right"]) as server:
        if where == "url":
            await use(f"nats://ada:right@127.0.0.1:{server.port}")
        else:
            await use(NATSConfig(server.url, user="ada", password="right"))


@pytest.mark.parametrize("where", ["url", "fields"])
@within(20)
async def test_token(where: str) -> None:
    async with _open_server(["--jetstream", "--auth", "right"]) as server:
        if where == "url":
            await use(f"nats://right@127.0.0.1:{server.port}")
        else:
            await use(NATSConfig(server.url, token="right"))


@within(20)
async def test_no_jetstream() -> None:
    async with _open_server([]) as server:
        error = await refusal(NATSConfig(server.url))
    assert "has no JetStream; start nats-server with --jetstream" in str(error)


@within(20)
async def test_no_jetstream_for_the_account(tmp_path: Path) -> None:
    text = """
    accounts {
      A { jetstream: enabled, users: [{user: a, password: a}] }
      B { users: [{user: b, password: b}] }
    }
    """
    async with configured(tmp_path, text) as server:
        await use(NATSConfig(server.url, user="a", password="a"))
        error = await refusal(NATSConfig(server.url, user="b", password="b"))
    assert "JetStream" in str(error)
    assert "account" in str(error)


@within(20)
async def test_list_whose_first_server_is_down(server: Server) -> None:
    await use(f"nats://127.0.0.1:{await free_port()}, {server.url}")


@within(20)
async def test_url_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", server.url)
    await use(None)
    async with open_broker() as broker:
        assert repr(broker) == f"<Broker at {server.url}>"


@pytest.mark.parametrize("bad", [None, "password", "token"])
@within(20)
async def test_secrets_are_shown_nowhere(
    bad: str | None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not in a log record, a repr, an error's text or a traceback: with the right ones or wrong."""
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    user = ["--user", "ada", "--pass", "s3cret-word"]
    async with _open_server(["--jetstream", *user]) as server:
        for config in (
            NATSConfig(f"nats://ada:s3cret-word{bad or ''}@127.0.0.1:{server.port}"),
            NATSConfig(server.url, user="ada", password=f"s3cret-word{bad or ''}"),
            NATSConfig(server.url, token="s3cret-word"),
        ):
            try:
                async with open_broker(config) as broker, open_dispatcher(broker) as dispatcher:
                    texts += [repr(broker), repr(dispatcher)]
            except AuthenticationError as exc:
                texts += [repr(exc), *traceback.format_exception(exc)]
            else:
                assert bad is None
            texts.append(repr(config))
    texts.append(caplog.text)
    assert "***" in "".join(texts)
    assert "s3cret-word" not in "".join(texts)


@within(20)
async def test_unsubscribe_on_a_connection_that_has_just_broken(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the client has noticed: its own writer may have ended by then."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    async with open_connection(NATSConfig(server.url)) as connection:
        heard: list[bytes] = []
        gone = connection.subscribe("a", lambda message: heard.append(message.data))
        kept = connection.subscribe("b", lambda message: heard.append(message.data))
        client: Any = connection.client
        client._flusher_task.cancel()  # nats-py writes by itself then
        await until(client._flusher_task.done)
        client._transport._io_writer.transport.abort()
        connection.unsubscribe(gone)
        assert client._pending, "it was written to a connection that is gone"
        await connection.call(client.replace_connection(OSError("a break")))
        await connection.wait_up()
        connection.publish("a", b"1")
        connection.publish("b", b"2")
        await until(lambda: heard)
        assert heard == [b"2"]
        connection.unsubscribe(kept)
