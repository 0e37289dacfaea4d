"""Mutated words of the server itself, to roles on a real one: no block ends, no waiter hangs, no
task is unsettled.

They are mutated where a role takes them, all replies to one kind of request every other time. The
lines of the protocol are said on the connection. As in `test_fuzz.py`: some in CI, 100,000 of
each kind by `nox -s fuzz`; of the lines on a connection, most of which end it, one in a hundred.
"""

from __future__ import annotations

import gc
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.attack import BrokenServer, Siege, open_broken, open_siege
from tests._helpers.brokers import within
from tests._helpers.fuzz import COUNT, SECONDS, Round, rounds, told
from tests._helpers.hostile_bytes import STATUSES
from tests._helpers.nats_servers import greeting
from trio_swarmtask import Message, Status, UnsupportedVersionError
from trio_swarmtask._check import Malformed
from trio_swarmtask._jetstream import _intake, _outbox
from trio_swarmtask._jetstream._answers import read_ack, read_answer
from trio_swarmtask._jetstream._headers import delivery_number
from trio_swarmtask._jetstream._intake import NATSIntake
from trio_swarmtask._nats import _client, _requests
from trio_swarmtask._nats._client import Sink
from trio_swarmtask._nats._error_lines import TOO_MANY_SUBSCRIPTIONS, ErrorLine, Meaning
from trio_swarmtask._nats._protocol import Incoming, Parser
from trio_swarmtask._nats._requests import Requests
from trio_swarmtask.results import (
    InvalidResultError,
    Result,
    ResultNotFoundError,
    ResultPublisher,
    ResultStatus,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_swarmtask.server import Server

AT_ONCE = 60
LISTED = 100  # of so many records one lists them all, which takes its time
END = Result(status=ResultStatus.SUCCESS)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked again is asked soon, and what is missed is looked up soon."""
    monkeypatch.setattr(_requests, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(_requests, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(_intake, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(_intake, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(_requests, "REQUEST_SECONDS", 0.4)
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 0.2)
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.005)


class Garbler:
    """Mutates every other reply to one kind of request, as roles take them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.played: Round | None = None
        self.left = 0
        self._take = Requests._on_reply
        self._mutate: Callable[[Round, str, Incoming], Incoming | None]
        garbler = self

        def on_reply(requests: Requests, message: Incoming) -> None:
            waiting = requests._waiting.get(message.raw_subject)
            if waiting is not None and garbler.left > 0:
                message = garbler.garble(waiting.subject.decode(), message)
            garbler._take(requests, message)

        monkeypatch.setattr(Requests, "_on_reply", on_reply)

    def begin(
        self, played: Round, mutate: Callable[[Round, str, Incoming], Incoming | None]
    ) -> None:
        self.played, self._mutate = played, mutate
        self.left = played.count

    def garble(self, request: str, message: Incoming) -> Incoming:
        assert self.played is not None
        if self.played.rng.random() < 0.5:
            return message
        mutated = self._mutate(self.played, request, message)
        if mutated is None:
            return message
        self.left -= 1
        return mutated


def replaced(message: Incoming, head: bytes, data: bytes) -> Incoming:
    return Incoming(message.raw_subject, message.raw_reply, head, data)


def acknowledgement(played: Round, request: str, message: Incoming) -> Incoming | None:
    """The server confirms a publish, or refuses it. A refusal that is one is believed."""
    if not request.startswith(("work.", "done.", "dead.", "back.", "lease.", "$KV.")):
        return None
    if played.rng.random() < 0.1:
        return replaced(message, played.headers(Status="503"), message.data)

    def refusal(data: bytes) -> tuple[int, int] | None:
        error = read_ack(data).error
        return None if error is None else (error.code, error.err_code)

    def is_fair(data: bytes) -> bool:
        with suppress(Malformed):
            return refusal(data) in (None, refusal(message.data))
        return True

    return replaced(message, message.head, played.mutated([message.data], is_fair))


def answer(played: Round, request: str, message: Incoming) -> Incoming | None:
    """An answer of the API. What has the right form and says something else is believed."""
    api = request.removeprefix("$JS.API.")
    if api == request or api.startswith(("DIRECT.GET.", "CONSUMER.MSG.NEXT.")):
        return None

    def is_fair(data: bytes) -> bool:
        with suppress(Malformed):
            return bool(read_answer(api, {}, data) == json.loads(message.data))
        return True

    return replaced(message, message.head, played.mutated([message.data], is_fair))


def direct_get(played: Round, request: str, message: Incoming) -> Incoming | None:
    """A stored message, with the headers that say which it is."""
    if not request.startswith("$JS.API.DIRECT.GET."):
        return None
    head, data = message.head, message.data
    if played.rng.random() < 0.7:
        head = head[:8] + played.mutated([head[8:]])
    else:
        data = played.mutated([data])
    return replaced(message, head, data)


class Work:
    """What makes roles ask, and must end whatever they are told. All IDs are new."""

    def __init__(self, siege: Siege, publisher: ResultPublisher) -> None:
        self._siege = siege
        self._publisher = publisher
        self._count = 0
        self._records = 0

    def name(self) -> str:
        self._count += 1
        return f"own-{self._count}"

    async def run(self) -> None:
        result = await self._siege.dispatcher.run("work", Message())
        assert result.status is Status.SUCCESS

    async def start_own(self) -> None:
        future = await self._siege.dispatcher.start("work", Message(id=self.name()))
        assert (await future.wait()).status is Status.SUCCESS

    async def attach(self) -> None:
        """A result that is there: its bytes may be others."""
        name = self.name()
        await self._siege.client.publish(f"done.{name}", b"{}")
        future = await self._siege.dispatcher.attach(name)
        with suppress(UnsupportedVersionError):
            await future.wait()
        self._siege.dispatcher.forget(future)

    async def cancel(self) -> None:
        future = await self._siege.dispatcher.start("nobody", Message())
        await future.cancel()
        with suppress(UnsupportedVersionError):
            await future.wait()

    async def later(self) -> None:
        not_before = datetime.now(UTC) + timedelta(hours=1)
        message = Message(id=self.name())
        future = await self._siege.dispatcher.start("work", message, not_before=not_before)
        await future.cancel()

    async def schedule(self) -> None:
        name = self.name()
        await self._siege.dispatcher.schedule(name, "work", Message(), every=3600)
        await self._siege.dispatcher.unschedule(name)

    async def record(self) -> None:
        name = self.name()
        self._records += 1
        lists = self._records % LISTED == 1
        with suppress(ResultNotFoundError, InvalidResultError):
            await self._publisher.publish(name, END)
            await self._publisher.get(name)
        if lists:
            await self._publisher.list()

    async def do(self, garbler: Garbler, acts: list[Callable[[], Awaitable[None]]]) -> None:
        """Until so many replies were mutated."""
        while garbler.left > 0:
            async with trio.open_nursery() as nursery:
                for index in range(AT_ONCE):
                    nursery.start_soon(acts[index % len(acts)])


REPLIES = {
    "acknowledgements": (
        acknowledgement,
        ("run", "start_own", "cancel", "later", "schedule", "record"),
    ),
    "answers of the API": (answer, ("cancel", "later", "schedule", "start_own", "record")),
    "direct gets": (direct_get, ("attach", "record", "cancel")),
}


@pytest.mark.needs_schedules
@pytest.mark.parametrize("kind", REPLIES)
@within(SECONDS)
async def test_mutated_replies(server: Server, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mutate, acts = REPLIES[kind]
    garbler = Garbler(monkeypatch)
    async with (
        open_siege(server.port, ack_wait=20) as siege,
        open_kv_publisher(server.url) as publisher,
    ):
        work = Work(siege, publisher)
        for played in rounds(kind):
            with told(played):
                garbler.begin(played, mutate)
                await work.do(garbler, [getattr(work, act) for act in acts])
                assert not await siege.serve(40)
                assert not siege.log.tracebacks, siege.log.tracebacks[0]
                await siege.clear()
                assert await siege.wait_left(0, 60) == 0
                for stream in ("TASK_RESULTS", "KV_results"):
                    await siege.client.api(f"STREAM.PURGE.{stream}")


def find_intake(capability: str) -> NATSIntake:
    everything = gc.get_objects()
    return next(
        one
        for one in everything
        if isinstance(one, NATSIntake) and one._capability == capability and one._connection.is_up
    )


@within(SECONDS)
async def test_mutated_words_to_a_pull(server: Server) -> None:
    """Statuses, deliveries that are none, and anything else. What is believed ends the pull."""
    async with open_siege(server.port, ack_wait=20) as siege:
        intake = find_intake("work")
        ack = b"$JS.ACK.TASKS.work-work.1.5.5.1700000000000000000.0"

        def is_delivery(reply: bytes) -> bool:
            text = reply.decode(errors="backslashreplace")
            return delivery_number(text, intake._durable) is not None

        def word(played: Round) -> Incoming:
            inbox = intake._inbox.encode()
            line = b"NATS/1.0 %b Why Not\r\nNats-Pending-Messages: 1\r\n\r\n"
            head = line % played.rng.choice(STATUSES)
            if played.rng.random() < 0.7:
                return Incoming(inbox, None, head[:8] + played.mutated([head[8:]]), b"")
            reply = ack
            while is_delivery(reply):
                reply = played.line(ack)
            subject = played.rng.choice((f"work.work.{played.name(0)}".encode(), inbox))
            return Incoming(subject, reply, played.headers(Status="503"), played.mutated([b"{}"]))

        for played in rounds("pulls"):
            with told(played):
                for index in range(played.count):
                    intake._on_message(word(played))
                    if index % 50 == 0:
                        assert not await siege.serve(40)
                assert not siege.log.tracebacks, siege.log.tracebacks[0]
                assert await siege.wait_left(0, 60) == 0


LINES = [
    greeting(auth_required=False, nonce="abc", jetstream=True, cluster="c", xkey="x").strip(),
    b"MSG _INBOX.nobody 1 5",
    b"MSG results.fuzz-1 2 _INBOX.nobody 5",
    b"HMSG _INBOX.nobody 1 12 17",
    b"PING",
    b"PONG",
    b"+OK",
    b"-ERR 'Permissions Violation for Subscription to \"x.y\"'",
    b"-ERR 'Permissions Violation for Publish to \"x.y\"'",
    b"-ERR 'Maximum Subscriptions Exceeded'",
    b"-ERR 'Stale Connection'",
    b"-ERR 'Slow Consumer Detected'",
]


class NoClient:
    """What a parser tells nobody. It has every subscription."""

    _pings_outstanding = 0

    def __init__(self) -> None:
        self._subs = self
        self.heard: list[Incoming] = []
        self._future = Sink(self.heard.append)

    def get(self, number: int) -> NoClient:
        assert number >= 0
        return self

    async def _ignore(self, *_: object) -> None:
        pass

    _process_ping = _process_pong = _process_info = _process_err = _ignore
    replace_connection = _ignore


def parse_all(data: bytes) -> Parser:
    """Hand it to a parser, which is then where it stands."""
    client = NoClient()
    parser = Parser(client)  # type: ignore[arg-type]  # as much of one as it asks for
    with pytest.raises(StopIteration):
        parser.parse(data).send(None)
    for message in client.heard:
        assert message.subject
        assert isinstance(message.reply, str)
        assert isinstance(message.headers, dict)
    return parser


def mutated_line(played: Round) -> bytes:
    return played.mutated(LINES) + played.rng.choice((b"\r\n", b"\r\nhello\r\n", b"\n", b""))


def test_mutated_lines() -> None:
    """Each is taken, or ends the connection: nothing comes out of the parser."""
    for played in rounds("lines"):
        with told(played):
            for _ in range(played.count):
                parse_all(mutated_line(played))


def is_to_be_said(data: bytes) -> bool:
    """Nothing that is believed, and ends a block; and nothing that only a missing PONG can end."""
    texts = [line[5:] for line in data.split(b"\r\n") if line.startswith(b"-ERR ")]
    lines = [ErrorLine(text.decode(errors="replace")) for text in texts]
    if any(line.meaning in (Meaning.LOGIN, Meaning.FINAL) for line in lines):
        return False
    if TOO_MANY_SUBSCRIPTIONS in map(str, lines):
        return False  # it names none: any that is being made would be taken for refused
    return not parse_all(data)._rest


@within(SECONDS)
async def test_mutated_lines_on_a_connection(server: Server) -> None:
    # A task that went to a connection which had just been given up comes after its lease alone.
    async with open_broken(server, ack_wait=0.5) as (proxy, siege):
        for played in rounds("lines on a connection", max(5, COUNT // 100)):
            with told(played):
                for _ in range(played.count):
                    await say(proxy, played)
                    assert not await siege.serve(40)
                assert not siege.log.tracebacks, siege.log.tracebacks[0]
                assert not siege.log.unexplained()
                assert await siege.wait_left(0, 60) == 0


async def say(proxy: BrokenServer, played: Round) -> None:
    if played.rng.random() < 0.2:  # to the next connection that is made
        proxy.greetings = [played.mutated(LINES[:1]) + b"\r\n"]
        proxy.cut()
        return
    while not is_to_be_said(data := mutated_line(played)):
        pass
    await proxy.say(data)
