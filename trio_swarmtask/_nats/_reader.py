# Reads a connection's socket in a Trio task, in place of asyncio's stream and nats-py's read loop.
#
# What was read is parsed there and then, and each message handed to its subscription: the tasks
# that it wakes run in Trio's next round. The descriptor is a copy, so that neither side can close
# what the other waits for.
#
# A Ctrl-C that hits this task waits for the main task's next checkpoint: raised in here it would
# end the reading, and everybody who waits for an answer, the closing of the connection among them,
# would hang.

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Final

import nats.errors
import trio
from trio_asyncio import aio_as_trio, trio_as_aio

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from ._client import Client
    from ._parser import Parser

# Bytes a read: as many as the message that has begun still needs, within these.
_LEAST: Final = 1 << 16
_MOST: Final = 1 << 20


async def read_socket(connection: socket.socket, client: Client, parser: Parser) -> None:
    """Read until the connection breaks or is given up. Closes ``connection``."""
    with closing(connection):
        loop = asyncio.get_running_loop()
        follow = aio_as_trio(parser.follow, loop=loop)
        error = await trio_as_aio(_read, loop=loop)(connection, client, parser, follow)
    if error is not None:
        await client.replace_connection(error)


@trio.lowlevel.enable_ki_protection
async def _read(
    connection: socket.socket,
    client: Client,
    parser: Parser,
    follow: Callable[[bytes | Exception], Awaitable[None]],
) -> Exception | None:
    while True:
        await trio.lowlevel.wait_readable(connection)
        try:
            data = connection.recv(min(max(_LEAST, parser.missing), _MOST))
        except BlockingIOError:  # somebody was told too early
            continue
        except OSError as exc:
            return exc
        if client.is_reconnecting or client.is_closed:
            return None
        if not data:
            return nats.errors.UnexpectedEOF()
        found = parser.take(data)
        if found is not None:
            await follow(found)
