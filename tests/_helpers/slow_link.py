# A proxy that is a bad link: slow, cut after so many bytes, or with something slipped in.
#
#     async with open_link(server.port, rate=200_000) as link, open_dispatcher(link.url):
#         await link.slip_in(b"-ERR 'Stale Connection'\r\n")

from __future__ import annotations

import math
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests._helpers.proxy import HOST, Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PIECE = 4096  # bytes


class Link(Proxy):
    """Passes on what a server sends in pieces. Made by `open_link`."""

    def __init__(self, server_port: int, rate: float, latency: float) -> None:
        super().__init__(server_port)
        self.rate = rate  # bytes a second, to the client
        self.latency = latency  # seconds, to the client
        self.allowance = math.inf  # bytes to the client, of each connection
        self.connections = 0
        self._clients: list[trio.SocketStream] = []
        self._passed: dict[trio.SocketStream, int] = {}

    async def slip_in(self, data: bytes) -> None:
        """Send this to each client, between two things that the server says."""
        for client in self._clients:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await client.send_all(data)

    async def serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        self._clients.append(client)
        self._passed[client] = 0
        await super().serve(client)
        self._clients.remove(client)

    async def _answer(self, client: trio.SocketStream, data: bytes) -> None:
        await trio.sleep(self.latency)
        free_at = trio.current_time()  # where this process is late, the next piece is sooner
        for begin in range(0, len(data), _PIECE):
            piece = data[begin : begin + _PIECE]
            self._passed[client] += len(piece)
            if self._passed[client] > self.allowance:
                self.cut()
            await client.send_all(piece)  # a checkpoint first: after a cut nothing is sent
            free_at += len(piece) / self.rate
            await trio.sleep_until(free_at)


@asynccontextmanager
async def open_link(
    server_port: int, rate: float = math.inf, latency: float = 0
) -> AsyncIterator[Link]:
    """Listen on a free port for as long as the block lasts."""
    link = Link(server_port, rate, latency)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, link.serve, 0, host=HOST))
        link.port = listeners[0].socket.getsockname()[1]
        yield link
        nursery.cancel_scope.cancel()
