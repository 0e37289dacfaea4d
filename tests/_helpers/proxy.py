# A TCP proxy for tests, that can cut and freeze: between a client and a server, at a moment of the
# test's own choosing.
#
#     async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
#         proxy.cut_at_answer(b'"seq"')  # the server has stored it, and the client never hears
#         await dispatcher.start(...)

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HOST = "127.0.0.1"


class Proxy:
    """Passes bytes on, both ways. Made by `open_proxy`."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.cuts = 0
        self._server_port = server_port
        self._refusing = False
        self._wanted: bytes | None = None
        self._connections: set[trio.CancelScope] = set()
        self._passing = trio.Event()
        self._passing.set()

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"

    def cut(self, *, for_good: bool = False) -> None:
        """End all connections now; ``for_good`` closes each new one at once, too."""
        self.cuts += 1
        self._refusing = for_good
        for connection in self._connections:
            connection.cancel()

    def mend(self) -> None:
        """Let new connections pass again."""
        self._refusing = False

    def cut_at_answer(self, part: bytes) -> None:
        """Cut once the server sends something with ``part`` in it, which is not passed on."""
        self._wanted = part

    def freeze(self) -> None:
        """Keep all connections and pass nothing on, as a network does that drops packets."""
        if self._passing.is_set():
            self._passing = trio.Event()

    def thaw(self) -> None:
        """Pass on what was held back, too."""
        self._passing.set()

    async def serve(self, client: trio.SocketStream) -> None:
        """One connection, as `trio.serve_tcp` calls it."""
        with suppress(OSError, trio.BrokenResourceError):
            if not self._refusing:
                async with await trio.open_tcp_stream(HOST, self._server_port) as server:
                    if not self._refusing:  # it may have been cut meanwhile
                        await self._join(client, server)

    async def _join(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            self._connections.add(scope)
            try:
                nursery.start_soon(self._pass_on, client, server.send_all, scope)
                await self._pass_on(server, partial(self._answer, client), scope)
            finally:
                self._connections.discard(scope)

    async def _pass_on(
        self,
        source: trio.SocketStream,
        send: Callable[[bytes], Awaitable[None]],
        scope: trio.CancelScope,
    ) -> None:
        with suppress(trio.BrokenResourceError):
            async for chunk in source:
                await self._passing.wait()
                await send(bytes(chunk))
        scope.cancel()  # one side has ended, and so does the other

    async def _answer(self, client: trio.SocketStream, data: bytes) -> None:
        if self._wanted is not None and self._wanted in data:
            self._wanted = None
            self.cut()
        await client.send_all(data)  # a checkpoint first: after a cut nothing is sent


class OneWay(Proxy):
    """Holds back what the server says, and nothing else."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self.free = trio.Event()
        self.free.set()

    async def _answer(self, client: trio.SocketStream, data: bytes) -> None:
        await self.free.wait()
        await super()._answer(client, data)


@asynccontextmanager
async def open_proxy(server_port: int) -> AsyncIterator[Proxy]:
    """Listen on a free port for as long as the block lasts."""
    proxy = Proxy(server_port)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host=HOST))
        proxy.port = listeners[0].socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()
