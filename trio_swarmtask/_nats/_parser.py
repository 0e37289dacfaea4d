# Reads what a server sends: the lines of NATS's protocol, messages, and their headers.
#
# In place of nats-py's parser, for what comes from the network must not end the reading. There, a
# subject with a vertical tab, a header block of eight bytes or a status that is not UTF-8 (anyone
# may store all of these) raise, and the read loop ends while the client says that it is connected.
# Here a message is taken as it is, and what is against the protocol ends the connection, which is
# then replaced.
#
# Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._client import Client

# Bytes. The server's own limit is 4096, and can be set; an INFO names all servers of a cluster.
_LONGEST_LINE: Final = 1 << 20

_VERSION: Final = "NATS/1.0"


class Parser:
    """The parser of one client, as nats-py calls it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.reset()

    def reset(self) -> None:
        """Begin anew: there is another connection."""
        self._buffer = bytearray()
        # Of the message whose body is to come: see _parse_message.
        self._coming: tuple[int, bytes, bytes, int, int] | None = None

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read, and hand on what is complete."""
        self._buffer += data
        try:
            while await self._hand_on():
                pass
        except Exception as exc:  # noqa: BLE001 - whatever it is, the rest can't be made sense of
            await self._client.replace_connection(Unreadable(f"can't read what it sent: {exc!r}"))

    async def _hand_on(self) -> bool:
        """Whether there was something that is complete."""
        if self._coming is not None:
            message = self._take_message(*self._coming)
            if message is None:
                return False
            await self._client._process_msg(*message)
            return True
        line = self._take_line()
        if line is None:
            return False
        if line.startswith((b"MSG ", b"HMSG ")):
            self._coming = _parse_message(line)
        else:
            await self._follow(line)
        return True

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _LONGEST_LINE:
                raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _take_message(
        self, number: int, subject: bytes, reply: bytes, head_size: int, size: int
    ) -> tuple[int, bytes, bytes, bytes, bytes] | None:
        if len(self._buffer) < size + 2:
            return None
        head, data = bytes(self._buffer[:head_size]), bytes(self._buffer[head_size:size])
        del self._buffer[: size + 2]
        self._coming = None
        return number, subject, reply, data, head

    async def _follow(self, line: bytes) -> None:
        operation, _, rest = line.partition(b" ")
        if operation == b"PING":
            await self._client._process_ping()
        elif operation == b"PONG":
            await self._client._process_pong()
        elif operation == b"INFO":
            await self._client._process_info(_parse_info(rest))
        elif operation == b"-ERR" and rest:
            await self._client._process_err(rest.decode().lower())
        elif operation != b"+OK":
            raise ValueError(f"unknown: {line[:40]!r}")


class Unreadable(Exception):
    """What a server sent is against the protocol."""


def _parse_message(line: bytes) -> tuple[int, bytes, bytes, int, int]:
    # MSG <subject> <number of the subscription> [reply] <size>, and for HMSG the size of the
    # headers before that of it all.
    operation, *words = line.split(b" ")
    sizes = 2 if operation == b"HMSG" else 1
    if len(words) not in (2 + sizes, 3 + sizes) or not words[0]:
        raise ValueError(f"a message that begins with {line[:40]!r}")
    if not (words[1].isdigit() and words[-1].isdigit() and words[-sizes].isdigit()):
        raise ValueError(f"a message that begins with {line[:40]!r}")
    reply = words[2] if len(words) == 3 + sizes else b""
    head_size, size = int(words[-2]) if sizes == 2 else 0, int(words[-1])
    if head_size > size:
        raise ValueError(f"a message of {size} bytes with headers of {head_size}")
    return int(words[1]), words[0], reply, head_size, size


def _parse_info(text: bytes) -> dict[str, object]:
    info = json.loads(text)
    if not isinstance(info, dict):
        raise TypeError(f"an INFO that is {type(info).__name__}")
    return info


def parse_headers(block: bytes) -> dict[str, str] | None:
    """A message's headers; what is not one is passed over.

    A status that the server wrote into the first line is ``Status``, its text ``Description``.
    """
    if not block:
        return None
    first, *lines = block.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    if len(first) > len(_VERSION):
        status, _, description = first[len(_VERSION) :].strip().partition(" ")
        if len(status) == 3 and status.isascii() and status.isdigit():
            headers["Status"] = status
            if description:
                headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers or None
