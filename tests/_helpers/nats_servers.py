# Servers for tests: with a configuration of their own, scripted, or silent.

from __future__ import annotations

import json
import os
import signal
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trio_swarmtask.server import Server, _open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


def configured(
    directory: Path, text: str, *, jetstream: bool = True
) -> AbstractAsyncContextManager[Server]:
    """A server with this configuration file."""
    config = directory / "nats.conf"
    config.write_text(text)
    arguments = ["-c", str(config), *(["--jetstream"] if jetstream else [])]
    return _open_server(arguments)


def kill(server: Server) -> None:
    """As the kernel or an operator may: nothing is said, nothing is flushed."""
    os.kill(server.pid, signal.SIGKILL)


@asynccontextmanager
async def restarted(server: Server) -> AsyncIterator[Server]:
    """A server on the same port and store, after `kill`."""
    arguments = ["--jetstream"]
    async with _open_server(arguments, store_dir=server.store_dir, port=server.port) as again:
        yield again


@asynccontextmanager
async def listening(
    serve: Callable[[trio.SocketStream], Awaitable[None]], port: int = 0
) -> AsyncIterator[int]:
    """The port on which ``serve`` is called for every client."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, port, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def greeting(**settings: Any) -> bytes:
    """The INFO of a server, as its first line."""
    info = {"server_id": "S", "version": "2.15.0", "max_payload": 1 << 20, "headers": True}
    return b"INFO " + json.dumps(info | settings).encode() + b"\r\n"


async def free_port() -> int:
    """A port that nobody listens on."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def reload(server: Server, directory: Path, text: str) -> None:
    """Give it another configuration, as an operator does."""
    (directory / "nats.conf").write_text(text)
    os.kill(server.pid, signal.SIGHUP)
