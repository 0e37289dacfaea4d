# A NATS client of a few lines, which shares no code with the product: it speaks the protocol on a
# socket. For looking at a server from outside, and for sending what no decent client would.

from __future__ import annotations

import itertools
import json
import math
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST = "127.0.0.1"
ANSWER_SECONDS = 3


@dataclass(frozen=True)
class Received:
    subject: str
    reply: str
    headers: dict[str, str]
    status: str
    data: bytes


class PlainClient:
    """One connection. Made by `open_plain_client`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._numbers = itertools.count(1)
        self._inboxes: dict[str, trio.MemorySendChannel[Received]] = {}
        self._pongs: list[trio.Event] = []
        self._writing = trio.Lock()
        self.errors: list[str] = []

    async def send(self, data: bytes) -> None:
        """Any bytes at all."""
        async with self._writing:
            await self._stream.send_all(data)

    async def publish(
        self, subject: bytes | str, data: bytes = b"", headers: bytes = b"", reply: str = ""
    ) -> None:
        """Publish; ``headers`` is the whole block as it goes out, however broken."""
        await self.send(publication(subject, data, headers, reply))

    async def flush(self) -> None:
        """Wait until the server has read what was sent."""
        pong = trio.Event()
        self._pongs.append(pong)
        await self.send(b"PING\r\n")
        await pong.wait()

    async def subscribe(self, subject: str) -> trio.MemoryReceiveChannel[Received]:
        number = str(next(self._numbers))
        send, receive = trio.open_memory_channel[Received](float("inf"))
        self._inboxes[number] = send
        await self.send(f"SUB {subject} {number}\r\n".encode())
        return receive

    async def request(self, subject: str, body: object = None) -> Received:
        async with await self._ask(subject, body) as replies:
            return await replies.receive()

    async def api(self, request: str, /, **body: object) -> dict[str, Any]:
        """One request of JetStream's API; an error is a KeyError of its code.

        A question is asked again: a cluster that elects who has to answer gives no answer at all.
        """
        reply = None
        while reply is None:
            with trio.move_on_after(ANSWER_SECONDS if ".INFO." in request else math.inf):
                reply = await self.request(f"$JS.API.{request}", body or None)
        if not reply.data:
            raise KeyError(reply.status)
        answer: dict[str, Any] = json.loads(reply.data)
        if "error" in answer:
            raise KeyError(answer["error"]["err_code"])
        return answer

    async def messages(self, stream: str, subject: str, sequence: int = 1) -> list[Received]:
        """All messages, from that sequence on, of a stream that allows direct gets."""
        found: list[Received] = []
        while True:
            body = {"seq": sequence, "next_by_subj": subject, "batch": 1000}
            async with await self._ask(f"$JS.API.DIRECT.GET.{stream}", body) as replies:
                while True:
                    reply = await replies.receive()
                    if reply.status:
                        break
                    found.append(reply)
            if reply.status == "404" or reply.headers.get("Nats-Num-Pending", "0") == "0":
                return found
            sequence = int(found[-1].headers["Nats-Sequence"]) + 1

    async def _ask(self, subject: str, body: object) -> trio.MemoryReceiveChannel[Received]:
        inbox = f"_INBOX.plain.{id(self)}.{next(self._numbers)}"
        replies = await self.subscribe(inbox)
        data = b"" if body is None else json.dumps(body).encode()
        await self.publish(subject, data, reply=inbox)
        return replies

    # Reading

    async def read(self) -> None:
        while True:
            words = (await self._line()).split(" ")
            if words[0] in ("MSG", "HMSG"):
                await self._message(words)
            elif words[0] == "PING":
                await self.send(b"PONG\r\n")
            elif words[0] == "PONG":
                self._pongs.pop(0).set()
            elif words[0] == "-ERR":
                self.errors.append(" ".join(words[1:]))

    async def _message(self, words: list[str]) -> None:
        sizes = 2 if words[0] == "HMSG" else 1
        subject, number, *reply = words[1:-sizes]
        size = int(words[-1])
        head_size = int(words[-2]) if sizes == 2 else 0
        body = await self._bytes(size + 2)
        head, *lines = body[:head_size].decode(errors="replace").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        status = head.removeprefix("NATS/1.0").strip()[:3]
        received = Received(subject, reply[0] if reply else "", headers, status, body[head_size:-2])
        try:
            self._inboxes[number].send_nowait(received)
        except trio.BrokenResourceError:
            del self._inboxes[number]
            await self.send(f"UNSUB {number}\r\n".encode())

    async def _line(self) -> str:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._fill()
        line = self._buffer[:end].decode(errors="replace")
        del self._buffer[: end + 2]
        return line

    async def _bytes(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _fill(self) -> None:
        chunk = await self._stream.receive_some(1 << 20)
        if not chunk:
            raise trio.BrokenResourceError(f"the server hung up: {self.errors}")
        self._buffer += chunk


def publication(
    subject: bytes | str, data: bytes = b"", headers: bytes = b"", reply: str = ""
) -> bytes:
    """The bytes of one publish."""
    if isinstance(subject, str):
        subject = subject.encode()
    words = [subject, *([reply.encode()] if reply else [])]
    if headers:
        sizes = b"%d %d" % (len(headers), len(headers) + len(data))
        return b"HPUB " + b" ".join([*words, sizes]) + b"\r\n" + headers + data + b"\r\n"
    return b"PUB " + b" ".join([*words, b"%d" % len(data)]) + b"\r\n" + data + b"\r\n"


LOGIN: Final[ContextVar[dict[str, str]]] = ContextVar("LOGIN", default={})  # noqa: B039 - never changed
"""Of all plain clients: as CONNECT has it."""


@asynccontextmanager
async def open_plain_client(port: int) -> AsyncIterator[PlainClient]:
    """Connect to a server on this machine, with the login of `LOGIN` if it asks for one."""
    async with await trio.open_tcp_stream(HOST, port) as stream, trio.open_nursery() as nursery:
        client = PlainClient(stream)
        options = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            **LOGIN.get(),
        }
        await client.send(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
        nursery.start_soon(client.read)
        await client.flush()
        yield client
        nursery.cancel_scope.cancel()
