"""What a server's error lines come to: an error of one call, an outage, or the end."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import nats.errors
import pytest
import trio
from hypothesis import given, strategies as st

from tests._helpers.brokers import Deaf, NATSSwarm, echo, until, within
from tests._helpers.nats_servers import configured, kill, reload
from tests._helpers.ports import free_ports
from tests._helpers.slow_link import open_link
from tests.jetstream.test_results import result_bytes
from tests.nats.test_connect import refusal
from trio_swarmtask import (
    AuthenticationError,
    BrokerError,
    Dispatcher,
    InvalidMessageError,
    Message,
    NATSConfig,
    Status,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._jetstream import _outbox
from trio_swarmtask._jetstream._outbox import NATSOutbox
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._connection import open_connection
from trio_swarmtask._nats._error_lines import (
    MEANINGS,
    ErrorLine,
    Meaning,
    line_of,
    read_refusal,
)
from trio_swarmtask._nats._subscriptions import Ledger, find_refused
from trio_swarmtask.bus import open_nats_bus
from trio_swarmtask.server import Server, _open_server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects at once, and no test passes because of the slow sweep alone."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)


# The table


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("'Stale Connection'", Meaning.OUTAGE),
        ("'maximum connections exceeded'", Meaning.OUTAGE),
        ("'Maximum Payload Violation'", Meaning.OUTAGE),
        ("'attempted to connect to leaf node port'", Meaning.OUTAGE),
        ("'Authorization Violation'", Meaning.LOGIN),
        ("'Account Authentication Expired'", Meaning.LOGIN),
        ("'maximum control line exceeded'", Meaning.FINAL),
        ("'maximum subscriptions exceeded'", Meaning.REFUSED),
        ("'Permissions Violation for Publish to \"stale connection\"'", Meaning.REFUSED),
        ("'Permissions Violation for Publish with Reply of \"x\"'", Meaning.TOLD),
        ("'Invalid Subject'", Meaning.TOLD),
        ("'Whatever A Later Version May Say'", Meaning.TOLD),
    ],
)
def test_meaning_of_a_line(text: str, meaning: Meaning) -> None:
    assert ErrorLine(text).meaning is meaning
    assert all(begin == begin.lower() for begin in MEANINGS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("'Permissions Violation for Publish to \"Work.Coder\"'", ("publish", "Work.Coder", "")),
        (
            r"""'Permissions Violation for Subscription to "a\"b\\" using queue "Q"'""",
            ("subscription", 'a"b\\', ""),
        ),
        (
            '\'Permissions Violation for Subscription to "A.b" (sid "7")\'',
            ("subscription", "A.b", ""),
        ),
        (
            "'Permissions Violation for Subscription to \"a.b.c\", too many tokens'",
            ("subscription", "a.b.c", "it has too many tokens"),
        ),
        ("'Permissions Violation for Publish with Reply of \"x\"'", None),
        ("'Stale Connection'", None),
    ],
)
def test_what_a_line_refuses(text: str, told: tuple[str, str, str] | None) -> None:
    """The subject as it was sent: `Coder` and `coder` are two capabilities."""
    refused = read_refusal(ErrorLine(text))
    if told is None:
        assert refused is None
    else:
        assert refused is not None
        assert (refused.action, refused.subject, refused.why) == told
        assert not refused.is_of(None)


def test_line_in_an_error_of_nats_py() -> None:
    assert str(line_of(nats.errors.Error("nats: 'Authorization Violation'"))) == (
        "authorization violation"
    )
    assert line_of(nats.errors.UnexpectedEOF()) is None
    assert line_of(None) is None


# Which subscription was one too many


class Limited:
    """A server that takes so many subscriptions: what it makes of what it is sent."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: set[int] = set()
        self.refused: list[int] = []

    def take(self, number: int) -> None:
        if number < 0:
            self.held.discard(-number)
        elif len(self.held) >= self.limit:
            self.refused.append(number)
        else:
            self.held.add(number)


@pytest.mark.parametrize("more", [(), ("begin a limited one", "the server ends one")])
@given(limit=st.integers(0, 6), seed=st.integers(0, 10**9))
def test_refused_are_found_by_their_number(more: tuple[str, ...], limit: int, seed: int) -> None:
    """Whatever is subscribed to and ended in between, whenever a PING goes out."""
    choice = random.Random(seed)
    server, ledger, found = Limited(limit), Ledger(), []
    subscribed: list[int] = []
    limited: list[int] = []

    def ping() -> None:
        nonlocal found
        ledger.errors = len(server.refused) - len(found)
        ledger.asked()
        found += ledger.answered()

    for number in range(1, 60):
        action = choice.choice(["begin", "begin", "end", "ping", "end twice", *more])
        if action.startswith("begin"):
            ledger.begun(number)
            server.take(number)
            subscribed.append(number)
            if ledger.must_ask:
                ping()
            if action == "begin a limited one":
                ledger.limited(number)
                limited.append(number)
                if ledger.must_ask:
                    ping()
        elif action == "ping":
            ping()
        elif action == "the server ends one":
            server.take(-choice.choice(limited or [number]))  # which may have ended long ago
        elif subscribed:
            ended = subscribed.pop(choice.randrange(len(subscribed)))
            for _ in range(1 + (action == "end twice")):
                ledger.ended(ended)
            server.take(-ended)
    ping()
    assert found == server.refused


def test_errors_count_up_to_the_pong() -> None:
    ledger = Ledger()
    ledger.restart([1, 2])
    ledger.asked()
    ledger.begun(3)
    ledger.begun(4)
    assert ledger.answered() == []
    ledger.errors = 1
    ledger.refused(4)  # by its name: the other one is the one too many
    ledger.asked()
    assert ledger.answered() == [3]
    ledger.errors = 1
    assert ledger.answered() == []  # a PONG that nobody has asked for
    assert find_refused([], 3) == []


async def attach_many(dispatcher: Dispatcher, count: int) -> list[str]:
    """What became of each of so many, all at once."""
    outcomes: list[str] = []

    async def attach(number: int) -> None:
        try:
            await dispatcher.attach(f"other-{number}")
        except BrokerError as exc:
            outcomes.append(str(exc).partition(": ")[2][:30])
        else:
            outcomes.append("attached")

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(attach, number)
    return outcomes


@within(20)
async def test_one_subscription_too_many_is_an_error_of_its_call(tmp_path: Path) -> None:
    """All else goes on, and where one is let go of there is room for another."""
    async with (
        configured(tmp_path, "max_subscriptions: 8") as server,
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", echo)
        held = [await dispatcher.attach(f"other-{number}") for number in range(5)]
        with pytest.raises(BrokerError, match=r"subscribe to notify\.one\.more: maximum subs"):
            await dispatcher.attach("one-more")
        dispatcher.forget(held.pop())
        held.append(await dispatcher.attach("another"))
        with pytest.raises(BrokerError, match="maximum subscriptions exceeded"):
            await dispatcher.run("coder", Message(id="mine"))
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        await NATSSwarm(server.url).store_result("another", result_bytes("another", "x"))
        assert (await held[-1].wait()).outputs == "x"


@within(20)
async def test_as_many_are_refused_as_there_is_no_room_for(tmp_path: Path) -> None:
    """Of those that are subscribed to at the same moment."""
    async with (
        configured(tmp_path, "max_subscriptions: 8") as server,
        open_dispatcher(server.url) as dispatcher,
    ):
        outcomes = await attach_many(dispatcher, 9)
        assert outcomes.count("attached") == 8 - 3  # two inboxes, and the results of its own
        assert outcomes.count("maximum subscriptions exceeded") == 9 - 5
        assert dispatcher.statistics().outstanding == 5


@within(20)
async def test_subscription_of_the_bus_that_is_one_too_many(tmp_path: Path) -> None:
    async with (
        configured(tmp_path, "max_subscriptions: 3") as server,
        open_nats_bus(server.url) as bus,
        bus.subscribe("a"),
        bus.subscribe("b") as messages,
    ):
        for block in (bus.subscribe("c"), bus.listen("c", lambda _: None)):
            with pytest.raises(BrokerError, match="refuses to subscribe to c: maximum subs"):
                async with block:
                    pytest.fail("it was entered")
        await bus.publish("b", b"1")
        assert (await anext(messages)).data == b"1"


@pytest.mark.parametrize(
    ("limit", "told"),
    [(4, r"subscribe to _INBOX\.\S+\.\*: max"), (5, r"subscribe to _INBOX\.\S+[^*]: max")],
)
@within(20)
async def test_capability_that_is_one_too_many(tmp_path: Path, limit: int, told: str) -> None:
    """The worker goes on with those that it has."""
    async with (
        configured(tmp_path, f"max_subscriptions: {limit}") as server,
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", echo)
        with pytest.raises(BrokerError, match=told):
            await worker.handle("other", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(20)
async def test_no_room_to_hear_of_cancellations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        configured(tmp_path, "max_subscriptions: 3") as server,
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert "exceeded. Hold fewer" in caplog.text
    assert "what is cancelled is found by looking alone" in caplog.text


@within(20)
async def test_limit_is_lower_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of a dispatcher are not heard, and looked up every second."""
    monkeypatch.setattr(_outbox, "_LAST_LOOK", 0.05)
    config = tmp_path / "nats.conf"
    config.write_text("max_subscriptions: 9")
    arguments, store = ["-c", str(config), "--jetstream"], tmp_path / "store"
    async with (
        _open_server(arguments, store_dir=store, port=next(free_ports)) as server,
        open_dispatcher(server.url) as dispatcher,
    ):
        future = await dispatcher.start("coder", Message())
        kill(server)
        config.write_text("max_subscriptions: 2")
        async with _open_server(arguments, store_dir=store, port=server.port):
            await until(lambda: "results are not heard" in caplog.text)
            for text in ("a", "b"):
                async with NATSSwarm(server.url).raw() as raw:
                    await raw.store(f"done.{future.id}", result_bytes(future.id, text))
                assert (await future.wait()).outputs == text
                future = await dispatcher.start("coder", Message())


# Outages, and the end


OUTAGES = [begin for begin, meaning in MEANINGS.items() if meaning is Meaning.OUTAGE]


@pytest.mark.parametrize("text", OUTAGES)
@within(20)
async def test_outage(server: Server, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever waits goes on waiting, and what is begun later works."""
    async with open_link(server.port) as link, open_dispatcher(link.url) as dispatcher:
        future = await dispatcher.start("coder", Message())
        await link.slip_in(f"-ERR '{text.title()}'\r\n".encode())
        await until(lambda: f"lost the connection to {link.url}: {text}" in caplog.text)
        async with open_worker(link.url) as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((begin, AuthenticationError) for begin, m in MEANINGS.items() if m is Meaning.LOGIN),
        *((begin, BrokerError) for begin, m in MEANINGS.items() if m is Meaning.FINAL),
    ],
)
@within(20)
async def test_end(server: Server, text: str, kind: type[BrokerError]) -> None:
    async with open_link(server.port) as link:
        with pytest.raises(BrokerError, match=f"for good: the server closed .*: {text}") as raised:
            async with open_dispatcher(link.url):
                await link.slip_in(f"-ERR '{text.title()}'\r\n".encode())
                await trio.sleep_forever()
    assert type(raised.value) is kind


@pytest.mark.parametrize("text", ["Invalid Subject", "What A Later Version May Say"])
@within(20)
async def test_line_that_is_only_told(
    server: Server, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_link(server.port) as link, open_dispatcher(link.url) as dispatcher:
        await link.slip_in(f"-ERR '{text}'\r\n".encode())
        await until(lambda: f"the client of {link.url} reports: {text.lower()}" in caplog.text)
        await dispatcher.start("coder", Message())
        assert link.connections == 1


@within(30)
async def test_max_connections_are_lowered_for_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients are thrown out, and come back once they may."""
    async with (
        configured(tmp_path, "max_connections: 10") as server,
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
    ):
        await worker.handle("coder", echo)
        reload(server, tmp_path, "max_connections: 1")
        await until(lambda: "maximum connections exceeded" in caplog.text)
        reload(server, tmp_path, "max_connections: 10")
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(20)
async def test_connection_that_is_one_too_many(tmp_path: Path) -> None:
    text = """
    accounts { A { jetstream: enabled, users: [{user: a, password: a}], limits: {%s} } }
    """
    async with configured(tmp_path, text % "max_connections: 1") as server:
        config = NATSConfig(server.url, user="a", password="a", connect_timeout=0.5)
        async with open_broker(config):
            error = await refusal(config)
    assert str(error) == (
        f"{server.url} did not let us in within 0.5 seconds: "
        "maximum account active connections exceeded"
    )
    async with configured(tmp_path, "max_connections: 1") as server:
        config = NATSConfig(server.url, connect_timeout=0.5)
        async with open_broker(config):
            error = await refusal(config)
    assert "maximum connections exceeded" in str(error) or "hangs up on every login" in str(error)


@within(20)
async def test_control_lines_are_too_short_for_a_login(tmp_path: Path) -> None:
    async with configured(tmp_path, "max_control_line: 20") as server:
        error = await refusal(NATSConfig(server.url, connect_timeout=0.5))
    assert "maximum control line exceeded" in str(error)


@within(20)
async def test_max_payload_is_lowered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server does not say so: what is too large ends the connection, and is then an error."""
    async with (
        configured(tmp_path, "max_payload: 100000") as server,
        open_worker(server.url) as worker,
        open_dispatcher(server.url) as dispatcher,
        NATSSwarm(server.url).raw() as raw,
    ):
        await worker.handle("coder", echo)
        reload(server, tmp_path, "max_payload: 2000")
        connection = raw.connection
        while connection.client.max_payload > 2000:
            await connection.call(connection.client.replace_connection(OSError("to look again")))
            await connection.wait_up()
        with pytest.raises(InvalidMessageError, match="2000"):
            await dispatcher.run("coder", Message(inputs={"a": "x" * 5000}))
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert "maximum payload violation" in caplog.text


@within(20)
async def test_max_payload_of_the_account(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once the client has logged in."""
    text = """
    accounts { A {
      jetstream: enabled, users: [{user: a, password: a}], limits: {max_payload: 2000}
    } }
    """
    async with (
        configured(tmp_path, text) as server,
        open_dispatcher(NATSConfig(server.url, user="a", password="a")) as dispatcher,
    ):
        with pytest.raises(InvalidMessageError, match="larger than the 1"):
            await dispatcher.run("coder", Message(inputs={"a": "x" * 5000}))
    assert "lost the connection" not in caplog.text


@within(20)
async def test_subscriptions_made_in_an_outage_are_sent_once(tmp_path: Path) -> None:
    """Twice would be one error more than there are refused ones."""
    async with (
        configured(tmp_path, "max_subscriptions: 2") as server,
        open_connection(NATSConfig(server.url)) as connection,
    ):
        told: list[str] = []
        with connection.listening(on_refused=lambda refused: told.append(refused.subject)):
            connection.subscribe("a", print)
            await connection.call(connection.client.replace_connection(OSError("a break")))
            assert not connection.is_up
            for subject in "bcd":
                connection.subscribe(subject, print)
            await connection.wait_up()
            await connection.catch_up()
            assert told == ["c", "d"]
            await connection.wait_certain()


@within(20)
async def test_refused_subscription_that_was_ended_by_then(tmp_path: Path) -> None:
    """Nobody is told."""
    async with (
        configured(tmp_path, "max_subscriptions: 1") as server,
        open_connection(NATSConfig(server.url)) as connection,
    ):
        told: list[str] = []
        with connection.listening(on_refused=lambda refused: told.append(refused.subject)):
            connection.subscribe("a", print)
            connection.unsubscribe(connection.subscribe("b", print))
            await until(lambda: connection.client.doubt is not None)
            await connection.wait_certain()
            assert told == []


@within(20)
async def test_refusal_of_what_was_heard(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The permission is taken away: results are looked up, until the next connection."""
    async with (
        open_link(server.port) as link,
        open_broker(link.url) as broker,
        broker.open_outbox("key", lambda _: Deaf()) as outbox,
    ):
        assert isinstance(outbox, NATSOutbox)
        line = 'Permissions Violation for Subscription to "notify.key.>"'
        await link.slip_in(f"-ERR '{line}'\r\n".encode())
        await until(lambda: outbox._no_notices)
        assert "results are not heard, and looked up every second: " in caplog.text
        link.cut()
        await until(lambda: not outbox._no_notices)
