# The servers that the runners talk to, each in a process of its own on an empty store
#
# nats-server keeps its streams in files. redis-server runs as it does without a configuration:
# it writes a snapshot now and then, and no log of its commands.

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import trio

from trio_swarmtask.server import open_server

from .roles import RoleError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START_SECONDS: Final = 10.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")  # a second


@dataclass(frozen=True)
class Server:
    """Where it is, and which process."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """The processor time that it has used so far, user and system."""
        # proc(5): fields 14 and 15. The second one, the program's name, may hold anything.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


class Servers:
    """Starts each kind of server when it is first asked for. Made by `open_servers`."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._servers: dict[str, Server] = {}

    async def get(self, kind: str) -> Server:
        if kind not in self._servers:
            opened = open_redis() if kind == "redis" else open_nats()
            self._servers[kind] = await self._stack.enter_async_context(opened)
        return self._servers[kind]


@asynccontextmanager
async def open_servers() -> AsyncIterator[Servers]:
    """Leaving the block ends the servers, and removes what they stored."""
    async with AsyncExitStack() as stack:
        yield Servers(stack)


@asynccontextmanager
async def open_nats() -> AsyncIterator[Server]:
    async with open_server() as server:
        yield Server(server.url, server.pid)


@asynccontextmanager
async def open_redis() -> AsyncIterator[Server]:
    program = shutil.which("redis-server")
    if program is None:
        raise RoleError("there is no redis-server on PATH")
    with TemporaryDirectory(prefix="swarmtask-") as directory:
        port = _free_port()
        process = await trio.lowlevel.open_process(
            [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        try:
            await _wait_listening(port)
            yield Server(f"redis://127.0.0.1:{port}", process.pid)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):  # ends: nothing survives SIGKILL
                await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _wait_listening(port: int) -> None:
    with trio.move_on_after(START_SECONDS):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                await trio.sleep(0.05)
            else:
                return
    raise RoleError(f"redis-server did not listen within {START_SECONDS:g} s")
