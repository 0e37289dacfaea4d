"""What a server sends, however it is cut into pieces, and what no server should send."""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings, strategies as st

from trio_swarmtask._nats import _protocol as _parser
from trio_swarmtask._nats._protocol import Incoming, Parser, Unreadable, parse_headers


class Subscriptions:
    """All that are asked for, by their numbers; keeps what each is told."""

    def __init__(self, told: list[tuple[Any, ...]]) -> None:
        self._told = told

    def get(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(_future=SimpleNamespace(callback=partial(self._hear, number)))

    def _hear(self, number: int, message: Incoming) -> None:
        reply = message.raw_reply or b""
        self._told.append((number, message.raw_subject, reply, message.head, message.data))


class Heard:
    """Stands for the client: keeps what the parser tells it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.given_up: list[str] = []
        self._pings_outstanding = 0
        self._subs = Subscriptions(self.told)

    async def _process_info(self, info: object) -> None:
        self.told.append(("INFO", info))

    async def _process_ping(self) -> None:
        self.told.append(("PING",))

    async def _process_pong(self) -> None:
        self.told.append(("PONG",))

    async def _process_err(self, text: str) -> None:
        self.told.append(("-ERR", text))

    async def replace_connection(self, reason: Exception) -> None:
        assert isinstance(reason, Unreadable)
        self.given_up.append(str(reason))


def read(*pieces: bytes) -> Heard:
    heard = Heard()

    async def main() -> None:
        parser = Parser(heard)  # type: ignore[arg-type]  # a stand-in
        for piece in pieces:
            await parser.parse(piece)

    trio.run(main)
    return heard


CONVERSATION = (
    b'INFO {"server_id":"S"}\r\n'
    b"PING\r\n"
    b"PONG\r\n"
    b"+OK\r\n"
    b"MSG a.b 1 5\r\nhello\r\n"
    b"MSG a.\xff\x0b.b 22 _INBOX.1 0\r\n\r\n"
    b"HMSG c 3 12 15\r\nNATS/1.0\r\n\r\nabc\r\n"
    b"HMSG c 3 reply 8 8\r\nNATS/1.0\r\n"
    b"MSG d 4 6\r\n\r\nPING\r\n"
    b"-ERR 'Some Error'\r\n"
)
TOLD = [
    ("INFO", {"server_id": "S"}),
    ("PING",),
    ("PONG",),
    (1, b"a.b", b"", b"", b"hello"),
    (22, b"a.\xff\x0b.b", b"_INBOX.1", b"", b""),
    (3, b"c", b"", b"NATS/1.0\r\n\r\n", b"abc"),
    (3, b"c", b"reply", b"NATS/1.0", b""),
    (4, b"d", b"", b"", b"\r\nPING"),
    ("-ERR", "'Some Error'"),
]


def test_conversation() -> None:
    heard = read(CONVERSATION)
    assert heard.told == TOLD
    assert heard.given_up == []


@settings(max_examples=50, deadline=None)  # of a loaded machine it would say nothing
@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=20).map(sorted))
def test_pieces_of_any_size(cuts: list[int]) -> None:
    bounds = [0, *cuts, len(CONVERSATION)]
    pieces = [CONVERSATION[a:b] for a, b in itertools.pairwise(bounds)]
    assert read(*pieces).told == TOLD


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"HELLO\r\n", "unknown: b'HELLO'"),
        (b"\r\n", "unknown: b''"),
        (b"-ERR\r\n", "unknown: b'-ERR'"),
        (b"-ERR \r\n", "unknown: b'-ERR '"),
        (b"-ERR '\xff'\r\n", "UnicodeDecodeError"),
        (b"MSG\r\n", "unknown: b'MSG'"),
        (b"MSG \r\n", "unknown: b'"),
        (b"MSG a 1 -1\r\n", "unknown: b'"),
        (b"MSG a 1 \r\n", "unknown: b'"),
        (b"MSG a one 1\r\n", "unknown: b'"),
        (b"MSG  1 1\r\n", "unknown: b'"),
        (b"MSG a 1 r r 1\r\n", "unknown: b'"),
        (b"HMSG a 1 x 5\r\n", "unknown: b'"),
        (b"HMSG a 1 5\r\n", "unknown: b'"),
        (b"HMSG a 1 5 4\r\n", "a message with more headers than bytes: b'HMSG a 1 5 4"),
        (b"MSG a 1 68157440\r\n", "a message larger than any: b'MSG a 1 68157440"),
        (b"INFO []\r\n", "an INFO that is list"),
        (b"INFO {\r\n", "JSONDecodeError"),
        (b"INFO \xff\r\n", "UnicodeDecodeError"),
        (b"x" * (_parser._LONGEST_LINE + 1), "a line of more than 1048576 bytes"),
    ],
)
def test_what_no_server_says_ends_the_connection(line: bytes, problem: str) -> None:
    heard = read(b"PING\r\n" + line)
    assert heard.told == [("PING",)]
    (reason,) = heard.given_up
    assert reason.startswith("can't read what it sent: ")
    assert problem in reason


def test_another_connection_begins_anew() -> None:
    heard = Heard()

    async def main() -> None:
        parser = Parser(heard)  # type: ignore[arg-type]  # a stand-in
        await parser.parse(b"MSG a 1 500\r\nthe connection brea")
        parser.reset()
        await parser.parse(b"PING\r\n")

    trio.run(main)
    assert heard.told == [("PING",)]


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"", {}),
        (b"N", {}),
        (b"NATS/1.0", {}),
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\na: b\r\nC:d\r\n\r\n", {"a": "b", "C": "d"}),
        (b"NATS/1.0\r\na: b: c\r\nnone\r\n\xff: \xff\r\n\r\n", {"a": "b: c", "\ufffd": "\ufffd"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 503\r\na: b\r\n\r\n", {"Status": "503", "a": "b"}),
        (
            b"NATS/1.0 409 Leadership Change\r\nNats-Pending-Messages: 7\r\n\r\n",
            {"Status": "409", "Description": "Leadership Change", "Nats-Pending-Messages": "7"},
        ),
        (b"NATS/1.0 100 \xff\r\n\r\n", {"Status": "100", "Description": "\ufffd"}),
        (b"NATS/1.0 4\xff4\r\n\r\n", {}),
        (b"NATS/1.0 404Nats-Stream: S\r\na: b\r\n\r\n", {"a": "b"}),
        ("NATS/1.0 ²²²\r\n\r\n".encode(), {}),
    ],
)
def test_headers(block: bytes, headers: dict[str, str]) -> None:
    assert parse_headers(block) == headers


@given(st.binary(max_size=200))
def test_headers_of_any_bytes(block: bytes) -> None:
    found = parse_headers(b"NATS/1.0" + block)
    assert all(isinstance(part, str) for item in found.items() for part in item)


@pytest.mark.parametrize(("size", "pings"), [(6, 2), (1024, 0)])
def test_what_is_a_sign_of_life(size: int, pings: int) -> None:
    """Of a message that has begun: more than the PONGs that it swallows."""

    async def main() -> None:
        heard = Heard()
        parser = Parser(heard)  # type: ignore[arg-type]  # a stand-in
        await parser.parse(b"MSG a 1 100000\r\n")
        heard._pings_outstanding = 2
        await parser.parse(b"x" * size)
        assert heard._pings_outstanding == pings

    trio.run(main)
