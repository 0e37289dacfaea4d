"""The read loop, over sockets that break."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import nats.errors
import pytest

from trio_swarmtask._nats import _io as _reader
from trio_swarmtask._nats._loop import open_loop
from trio_swarmtask._nats._protocol import Parser


class Socket:
    """Always readable; each read does what comes next in the script."""

    def __init__(self, *script: bytes | OSError) -> None:
        self._real, other = socket.socketpair()
        other.close()
        self._script = iter(script)

    def fileno(self) -> int:
        return self._real.fileno()

    def recv(self, size: int) -> bytes:
        what = next(self._script)
        if isinstance(what, OSError):
            raise what
        return what

    def close(self) -> None:
        self._real.close()


class State:
    """What the reader asks its client."""

    is_reconnecting = False
    is_closed = False
    replace_connection = pytest.fail


@pytest.mark.parametrize(
    ("end", "error"),
    [(ConnectionResetError("reset"), ConnectionResetError), (b"", nats.errors.UnexpectedEOF)],
)
async def test_reading_until_the_connection_breaks(
    end: bytes | OSError, error: type[Exception]
) -> None:
    """Also where the system says that there is something to read, and there is not."""
    taken: list[bytes] = []
    followed: list[bytes | Exception] = []

    def take(data: bytes) -> bytes | None:
        taken.append(data)
        return b"PING" if data == b"b" else None

    async def follow(found: bytes | Exception) -> None:
        followed.append(found)

    connection = Socket(b"a", BlockingIOError(), b"b", end)
    try:
        parser = SimpleNamespace(take=take, missing=0)
        found = await _reader._read(connection, State(), parser, follow)  # type: ignore[arg-type]  # stand-ins
    finally:
        connection.close()
    assert type(found) is error
    assert taken == [b"a", b"b"]
    assert followed == [b"PING"]


async def test_what_comes_from_a_connection_that_was_given_up_is_not_taken() -> None:
    """Nor is it replaced by the reader: somebody else is at it."""
    state = State()
    state.is_reconnecting = True
    parser = SimpleNamespace(take=pytest.fail, follow=pytest.fail, missing=0)
    connection = Socket(b"a")
    async with open_loop() as loop:
        await loop.run(_reader.read_socket(connection, state, parser))  # type: ignore[arg-type]  # a stand-in
    assert connection.fileno() == -1


async def test_reads_are_as_large_as_the_message_that_has_begun() -> None:
    """Within bounds: whatever a server says of its size."""
    asked: list[int] = []

    class Sized(Socket):
        def recv(self, size: int) -> bytes:
            asked.append(size)
            return super().recv(size)

    parser = Parser(SimpleNamespace(_pings_outstanding=0, _subs={}))  # type: ignore[arg-type]  # a stand-in
    connection = Sized(
        b"MSG a 1 100000\r\n", b"x" * 30_000, b"x" * 70_002 + b"MSG a 1 9000000\r\n", b""
    )

    async def follow(found: bytes | Exception) -> None:
        pytest.fail(f"found {found!r}")

    try:
        await _reader._read(connection, State(), parser, follow)  # type: ignore[arg-type]  # stand-ins
    finally:
        connection.close()
    assert asked == [1 << 16, 100_002, 70_002, 1 << 20]
