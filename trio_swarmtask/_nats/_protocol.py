# Reads what a server sends: the lines of NATS's protocol, and messages.
#
# This replaces nats-py's parser, because nothing from the network may end the reading. In nats-py,
# a subject with a vertical tab, a header block of eight bytes or a status that is not UTF-8 (anyone
# may store all of these) raise, and the read loop ends while the client says that it is connected.
# Here a message is taken as it is; bytes that break the protocol end the connection, which is then
# replaced.
#
# Messages are handed on without a coroutine, because no receiver waits. The other lines of a server
# are rare; nats-py's coroutines handle them.
#
# Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol

from __future__ import annotations

import json
import re
from typing import Any, Final, Protocol

from .._util import get_logger

logger: Final = get_logger("trio_swarmtask.nats")

_VERSION: Final = "NATS/1.0"


# A message that came in. This class replaces nats-py's `Msg`, at half the cost. The headers are
# parsed only if somebody asks for them. Of most messages only the body is asked for.
class Incoming:
    """One message, as it was read. ``raw_reply`` is None where there is none."""

    __slots__ = ("data", "head", "raw_reply", "raw_subject")

    def __init__(
        self, raw_subject: bytes, raw_reply: bytes | None, head: bytes, data: bytes
    ) -> None:
        self.raw_subject = raw_subject
        self.raw_reply = raw_reply
        self.head = head
        """The header block, with its first line; empty where there is none."""
        self.data = data

    @property
    def subject(self) -> str:
        return self.raw_subject.decode("utf-8", "backslashreplace")

    @property
    def reply(self) -> str:
        """Empty where there is none."""
        reply = self.raw_reply
        return reply.decode("utf-8", "backslashreplace") if reply else ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers, without malformed lines. Parsed at each call.

        A status that the server wrote into the first line is ``Status``, its text
        ``Description``.
        """
        return parse_headers(self.head) if self.head else {}

    def header(self, name: bytes) -> str:
        """One header's value, found without parsing the others; empty if there is none."""
        _, found, value = self.head.rpartition(b"\r\n%b:" % name)
        return value.partition(b"\r\n")[0].decode(errors="replace").strip() if found else ""


def parse_headers(block: bytes) -> dict[str, str]:
    """See `Incoming.headers`."""
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
    return headers


# Bytes. The server's own limit is 4096, and can be set; an INFO names all servers of a cluster.
_LONGEST_LINE: Final = 1 << 20

# Bytes. The server lets max_payload be 64 MB at most.
_LARGEST: Final = 65 << 20

# Bytes of a message that has begun: more than the PONGs of a quarter of an hour.
_SIGN_OF_LIFE: Final = 1024

# MSG <subject> <number of the subscription> [reply] <size>, and for HMSG the size of the headers
# before that of it all.
_PLAIN: Final = re.compile(rb"MSG ([^ \r\n]+) (\d{1,18}) (?:([^ \r\n]+) )?(\d{1,18})\r\n").match
_H: Final = ord("H")
_WITH_HEADERS: Final = re.compile(
    rb"HMSG ([^ \r\n]+) (\d{1,18}) (?:([^ \r\n]+) )?(\d{1,18}) (\d{1,18})\r\n"
).match


class Peer(Protocol):
    """The client, as far as the parser calls it."""

    _subs: dict[int, Any]
    _pings_outstanding: int

    async def replace_connection(self, reason: Exception) -> None: ...
    async def _process_ping(self) -> None: ...
    async def _process_pong(self) -> None: ...
    async def _process_info(self, info: dict[str, object]) -> None: ...
    async def _process_err(self, err_msg: str) -> None: ...


class Parser:
    """The parser of one client, as nats-py calls it."""

    def __init__(self, client: Peer) -> None:
        self._client = client
        self.reset()

    def reset(self) -> None:
        """Start again, for a new connection."""
        self._rest = bytearray()  # not parsed yet: begins with an incomplete line or message
        self._needed = 0  # bytes: with fewer of them, nothing more is complete
        self._unfinished = 0  # bytes of it, since the last sign of life

    @property
    def missing(self) -> int:
        """Bytes that the message which has begun still needs, if that is known; else below 1."""
        return self._needed - len(self._rest)

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read, and hand on what is complete."""
        await self.follow(self.take(data))

    def take(self, data: bytes) -> bytes | Exception | None:
        """Hand on the messages that are complete.

        Returns what else there is, for `follow`: a line that is no message, or what went wrong.
        """
        # Data is a sign of life: on a slow link the PONG is late behind much data. But a message
        # that never ends would swallow the PONGs themselves.
        self._unfinished += len(data)
        if not self._rest or self._unfinished >= _SIGN_OF_LIFE:
            self._unfinished = 0
            self._client._pings_outstanding = 0
        try:
            return self._take(data)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the rest can't be understood
            return exc

    async def follow(self, found: bytes | Exception | None) -> None:
        """Do what a line says, and take what comes after it."""
        while isinstance(found, bytes):
            try:
                await self._follow(found)
                found = self.take(b"")
            except Exception as exc:  # noqa: BLE001 - as above
                found = exc
        if found is not None:
            reason = Unreadable(f"can't read what it sent: {found!r}")
            await self._client.replace_connection(reason)

    def _take(self, data: bytes) -> bytes | None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return None
            data = bytes(self._rest)
        begin, length = 0, len(data)
        find = self._client._subs.get
        while begin < length:
            if data[begin] == _H:
                found = _WITH_HEADERS(data, begin)
                if found is None:
                    break
                subject, number, reply, head_size, size = found.groups()
                body = found.end()
                split = body + int(head_size)
            else:
                found = _PLAIN(data, begin)
                if found is None:
                    break
                subject, number, reply, size = found.groups()
                split = body = found.end()
            end = body + int(size)
            if split > end:
                raise ValueError(f"a message with more headers than bytes: {found[0][:200]!r}")
            if end - body + 2 > _LARGEST:
                raise ValueError(f"a message larger than any: {found[0][:200]!r}")
            if end + 2 > length:
                self._keep(data, begin, end + 2 - begin)
                return None
            begin = end + 2
            subscription = find(int(number))
            if subscription is not None:
                message = Incoming(subject, reply, data[body:split], data[split:end])
                try:
                    subscription._future.callback(message)  # a Sink
                except Exception:  # it would end the reading, and with it everything
                    logger.exception("a message on %r could not be handled", message.subject)
        end = data.find(b"\r\n", begin)
        if end >= 0:
            self._keep(data, end + 2, 0)
            return data[begin:end]
        if len(data) - begin > _LONGEST_LINE:
            raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
        self._keep(data, begin, 0)
        return None

    def _keep(self, data: bytes, begin: int, needed: int) -> None:
        self._rest = bytearray(data[begin:])
        self._needed = needed

    async def _follow(self, line: bytes) -> None:
        operation, _, rest = line.partition(b" ")
        if operation == b"PING":
            await self._client._process_ping()
        elif operation == b"PONG":
            await self._client._process_pong()
        elif operation == b"INFO":
            await self._client._process_info(_parse_info(rest))
        elif operation == b"-ERR" and rest:
            await self._client._process_err(rest.decode())
        elif operation != b"+OK":
            raise ValueError(f"unknown: {line[:40]!r}")


class Unreadable(Exception):
    """What a server sent is against the protocol."""


def _parse_info(text: bytes) -> dict[str, object]:
    info = json.loads(text)
    if not isinstance(info, dict):
        raise TypeError(f"an INFO that is {type(info).__name__}")
    return info
