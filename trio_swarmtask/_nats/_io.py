# The socket of a connection, read in a Trio task and written in Trio's rounds, in place of
# asyncio's streams and of nats-py's two loops.
#
# In: the bytes are parsed at once, and each message is handed to its subscription; the tasks that
# it wakes run in Trio's next round. The file descriptor is a copy, so that neither side can close
# what the other waits for.
#
# A Ctrl-C in this task is raised at the main task's next checkpoint. Raised here, it would end the
# reading, and everybody who waits for an answer would hang, the closing of the connection too.

from __future__ import annotations

import asyncio
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import nats.errors
import trio
from trio_asyncio import aio_as_trio, trio_as_aio

from .._errors import InvalidMessageError
from .._util import get_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from ._protocol import Parser

logger: Final = get_logger("trio_swarmtask.nats")


class Peer(Protocol):
    """The client, as far as its bytes go in and out here."""

    @property
    def is_reconnecting(self) -> bool: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def max_payload(self) -> int: ...
    async def replace_connection(self, reason: Exception) -> None: ...

    _pending: list[bytes]
    _pending_data_size: int

    def write_held(self) -> bool: ...


# Bytes a read: as many as the unfinished message still needs, within these limits.
_LEAST: Final = 1 << 16
_MOST: Final = 1 << 20


async def read_socket(connection: socket.socket, client: Peer, parser: Parser) -> None:
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
    client: Peer,
    parser: Parser,
    follow: Callable[[bytes | Exception], Awaitable[None]],
) -> Exception | None:
    while True:
        await trio.lowlevel.wait_readable(connection)
        try:
            data = connection.recv(min(max(_LEAST, parser.missing), _MOST))
        except BlockingIOError:  # woken too early
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


# Out: nats-py's `publish` is a coroutine, and wakes an asyncio task that writes. Here the bytes go
# into the same buffer, in order with nats-py's own commands. Everything that is published in one
# round of Trio's tasks goes out in one write, just before Trio waits for the network again: no task
# has to be woken for that.
#
# Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol


class Outgoing(trio.abc.Instrument):
    """The sending half of one client."""

    def __init__(self, client: Peer) -> None:
        self._client = client

    def publish(
        self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None
    ) -> None:
        """Send with the next write. Subjects and names of headers are taken as they are.

        Raises:
          InvalidMessageError: if the server would close the connection over it.
        """
        block = b"" if headers is None else encode_headers(headers)
        size, limit = len(block) + len(data), self._client.max_payload
        if size > limit:
            raise too_large(size, subject, limit)
        self.publish_raw(subject.encode(), data, reply.encode(), block)

    def publish_raw(self, subject: bytes, data: bytes, reply: bytes, block: bytes) -> None:
        """As `publish`, for a message that is known to be no larger than the server takes.

        Args:
          block: The headers as they go onto the wire; empty where there are none.
        """
        if reply:
            subject = b"%b %b" % (subject, reply)
        if block:
            head = len(block)
            size = head + len(data)
            command = b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, head, size, block, data)
        else:
            command = b"PUB %b %d\r\n%b\r\n" % (subject, len(data), data)
        client = self._client
        client._pending.append(command)
        client._pending_data_size += len(command)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write what is published, for as long as the block lasts."""
        self._token = trio.lowlevel.current_trio_token()
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        """Trio's hook: every task that could run has had its turn."""
        try:
            again = self._client.write_held()
        except Exception:  # Trio would disable the hook, and nothing would be sent
            logger.exception("writing to the connection failed")
            again = True
        if again:
            # Trio has already decided how long it waits. This wakes it.
            self._token.run_sync_soon(lambda: None, idempotent=True)


def too_large(size: int, subject: str, limit: int) -> InvalidMessageError:
    return InvalidMessageError(
        f"{size} bytes on {subject}: the server takes {limit}; "
        "keep large data elsewhere and send a reference"
    )


def size_of(headers: dict[str, str]) -> int:
    """The number of bytes of these headers as a block."""
    head = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return len(b"NATS/1.0\r\n\r\n") + len(head.encode())


def encode_headers(headers: dict[str, str]) -> bytes:
    """The block of these headers, as it goes onto the wire.

    Raises:
      InvalidMessageError: if a header has more than one line.
    """
    head = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if head.count("\n") != len(headers):
        raise InvalidMessageError(f"a header of more than one line: {head[:200]!r}")
    return f"NATS/1.0\r\n{head}\r\n".encode()
