"""What a server that is well hardly ever shows: the parts of `_nats`, one by one."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.nats_servers import kill
from tests._helpers.stream_setup import make
from trio_swarmtask import (
    BrokerError,
    ClosedError,
    InvalidMessageError,
    Message,
    NATSConfig,
    open_dispatcher,
)
from trio_swarmtask._jetstream._api import Publish, _is_usual_ack, publish_soon
from trio_swarmtask._jetstream._headers import delivery_number, is_first_delivery
from trio_swarmtask._jetstream._results import result_id
from trio_swarmtask._jetstream._streams import Durable
from trio_swarmtask._nats import _connection, _protocol as _parser, _requests
from trio_swarmtask._nats._connection import NotConnected, open_connection
from trio_swarmtask._nats._error_lines import Refusal
from trio_swarmtask._nats._loop import open_loop
from trio_swarmtask._nats._protocol import Incoming
from trio_swarmtask._nats._requests import NoAnswer, in_time
from trio_swarmtask._subjects import covers

if TYPE_CHECKING:
    from tests._helpers.api_client import Raw
    from trio_swarmtask.server import Server


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("work.>", "work.coder.*", True),
        (">", "done.*", True),
        ("done.*", "done.*", True),
        ("*.*", "done.*", True),
        ("dead.>", "dead.>", True),
        ("dead.*", "dead.>", False),
        ("dead.a", "dead.>", False),
        ("done.a", "done.*", False),
        ("done", "done.*", False),
        ("done.*.*", "done.*", False),
        ("done.>", "done", False),
        ("", "done.*", False),
        ("work.busy.>", "work.coder.*", False),
    ],
)
def test_covers(pattern: str, subject: str, expected: bool) -> None:
    assert covers(pattern, subject) is expected


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("$JS.ACK.TASKS.work-coder.3.7.9.1795303715647859664.0", 3),
        ("$JS.ACK.hub.ACCHASH.TASKS.work-coder.4.7.9.1795303715647859664.0", 4),
        ("$JS.ACK.hub.ACCHASH.TASKS.work-coder.5.7.9.1795303715647859664.0.token", 5),
        ("$JS.ACK.TASKS.work-coder.0.7.9.1.0", None),
        ("$JS.ACK.TASKS.work-coder.-1.7.9.1.0", None),
        ("$JS.ACK.TASKS.work-coder.².7.9.1.0", None),
        ("$JS.ACK.TASKS.work-coder.3.7.9.1", None),
        ("$JS.API.TASKS.work-coder.3.7.9.1.0", None),
        ("$JS.ACK.OTHER.work-coder.3.7.9.1.0", None),
        ("$JS.ACK.TASKS.spy.3.7.9.1.0", None),
        ("", None),
    ],
)
def test_delivery_number(reply: str, number: int | None) -> None:
    durable = Durable("TASKS", "work-coder", 30)
    assert delivery_number(reply, durable) == number
    assert not is_first_delivery(durable)(reply.encode()), "so nobody asks for the number"


def test_first_delivery() -> None:
    """Of what is taken without a closer look, all tokens are what they are to be."""
    is_first = is_first_delivery(Durable("T.S", "work-coder", 30))
    assert is_first(b"$JS.ACK.T.S.work-coder.1.7.9.1795303715647859664.0")
    for reply in (
        b"",
        b"1",
        b"1.7.9.1",
        b"1.7.9.1.0.token",
        b"2.7.9.1.0",
        b"1.7.9.x.0",
        b"1.\xb2.9.1.0",
    ):
        assert not is_first(b"$JS.ACK.T.S.work-coder." + reply)
    assert not is_first(b"$JS.ACK.TxS.work-coder.1.7.9.1795303715647859664.0")


def test_usual_acknowledgement() -> None:
    """What is taken for one without a closer look says that the message is stored, and no more."""
    for data in (b'{"stream":"TASKS", "seq":1}', b'{"stream":"T","domain":"hub","seq":123456}'):
        assert _is_usual_ack(data)
    for data in (
        b"",
        b"{}",
        b'{"stream":"TASKS"}',
        b'{"stream":"TASKS","seq":0}',
        b'{"stream":"","seq":1}',
        b'{"stream":"TASKS","seq":1,"duplicate": true}',
        b'{"stream":"TASKS","seq":1}{"error":{"code":400}}',
        b'{"error":{"code":400},"stream":"TASKS","seq":1}',
        b'{"stream":"TASKS","seq":1',
        b'{"stream":"TA\\"SKS","seq":1}',
    ):
        assert not _is_usual_ack(data), data


@within(20)
async def test_step_of_a_coroutine_that_suspends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_loop() as loop:

        async def suspend() -> None:
            await asyncio.Event().wait()

        with pytest.raises(BrokerError, match="suspended where it never does"):
            loop.step(suspend())
        loop._on_error(None, {"message": "a socket is bad"})
    assert "asyncio reports: a socket is bad" in caplog.text


@within(20)
async def test_callback_that_raises_ends_nothing(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Incoming) -> None:
        raise LookupError("mine")

    async with nats_swarm.raw() as raw:
        raw.connection.subscribe("x", fail)
        raw.connection.publish("x")
        await raw.requests.echo()
        await raw.requests.echo()
    assert "a message on 'x' could not be handled" in caplog.text


class Told(Publish):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.subject = b"x"
        self.told: list[tuple[bool, bool]] = []

    def on_end(self, *, stored: bool, duplicate: bool = False, receipt: bytes = b"") -> None:
        self.told.append((stored, duplicate))
        assert bool(receipt) == stored


@pytest.mark.parametrize(
    ("data", "stored", "duplicate"),
    [
        (b'{"stream":"TASKS","seq":1}', True, False),
        (b'{"seq":1,"stream":"TASKS"}', True, False),
        (b'{"stream":"TASKS","seq":1,"duplicate":true}', True, True),
        (b'{"error":{"code":503,"err_code":10077}}', False, False),
        (b"{}", False, False),
        (b"", False, False),
    ],
)
def test_answer_to_a_publish_that_nobody_waits_for(
    data: bytes, stored: bool, duplicate: bool
) -> None:
    publish = Told()
    publish.on_reply(Incoming(b"inbox", None, b"", data))
    assert publish.told == [(stored, duplicate)]
    publish.on_error(NoAnswer("none"))
    assert publish.told[1:] == [(False, False)]


@within(20)
async def test_nothing_is_published_for_a_role_that_was_closed(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        raw.requests.close()
        assert not publish_soon(raw.requests, Told(), b"x", b"", b"", 0)


def test_task_of_a_result_that_is_handed_out() -> None:
    head = b"NATS/1.0\r\nNats-Subject: done.forged\r\nNats-Subject: done.t1\r\n\r\n"
    assert result_id(Incoming(b"notify.t.1", None, head, b"")) == "t1"
    assert result_id(Incoming(b"notify.t.1", None, b"", b"")) == ""


@within(20)
async def test_publishers_wait_when_much_is_to_be_sent(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "_HIGH_WATER", 1000)
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await make(raw, "X", "x")
        raw.connection.publish("y", b"y" * 5000)
        assert raw.connection.is_congested
        await raw.store("x", b"")
        assert not raw.connection.is_congested
        assert dispatcher.statistics().outstanding == 0


@within(5)
async def test_too_large_by_nats_py_itself(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its version is not known."""
    async with open_connection(NATSConfig(server.url)) as connection:
        monkeypatch.setattr(connection, "_outgoing", None)
        with pytest.raises(InvalidMessageError, match="1048577 bytes on x: the server takes 10485"):
            connection.publish("x", b"x" * (1024 * 1024 + 1))


@within(5)
async def test_room_that_never_comes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection went: the publish that follows says so."""
    monkeypatch.setattr(_connection, "_HIGH_WATER", 1000)
    async with open_connection(NATSConfig(server.url)) as connection:
        kill(server)
        await until(lambda: not connection.is_up)
        await connection.call(connection.client.publish("y", b"y" * 5000))
        await connection.wait_room()
        with pytest.raises(NotConnected):
            connection.publish("x")
        with pytest.raises(NotConnected):
            connection.end_at_server(None)  # type: ignore[arg-type]  # it does not look at it


@within(20)
async def test_reply_that_never_comes(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_requests, "REQUEST_SECONDS", 0.2)
    async with nats_swarm.raw() as raw:
        raw.connection.subscribe("silent", lambda message: None)
        heard: list[Incoming | None] = []
        raw.requests.tell("silent", b"", heard.append)
        with pytest.raises(NoAnswer, match=r"no reply within 0\.2 seconds"):
            await raw.requests.request("silent")
        assert heard == [None]
        with pytest.raises(BrokerError, match=r"did not dance within 0\.1 seconds"):
            await in_time(raw_with_timeout(raw), "dance", trio.sleep_forever)


def raw_with_timeout(raw: Raw) -> _connection.Connection:
    object.__setattr__(raw.connection.config, "connect_timeout", 0.1)
    return raw.connection


@within(20)
async def test_requests_that_end_otherwise(nats_swarm: NATSSwarm) -> None:
    """A reply that is too late, one that a server has thrown away, and a role that was closed."""
    async with nats_swarm.raw() as raw:
        raw.connection.subscribe("silent", lambda message: None)
        with trio.move_on_after(0.05):
            await raw.requests.request("silent")
        raw.connection.publish(raw.requests._prefix + "1")
        await raw.requests.echo()
        raw.requests._on_refused(Refusal("subscription", "elsewhere"))
        heard: list[Incoming | None] = []
        raw.requests.tell("silent", b"", heard.append)
        raw.requests._on_refused(Refusal("publish", "elsewhere"))
        assert heard == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed, raw.requests)
            await until(lambda: len(raw.requests._waiting) == 2)
            raw.requests.close()
        await closed(raw.requests)


async def closed(requests: _requests.Requests) -> None:
    with pytest.raises(ClosedError, match="closed meanwhile"):
        await requests.request("silent")


@within(20)
async def test_server_throws_us_out(server: Server) -> None:
    """For what would end the next connection too."""
    with pytest.raises(BrokerError, match=r"for good: the server closed the connection: "):
        async with open_connection(NATSConfig(server.url)) as connection:
            subscription = connection.subscribe("x", lambda message: None)
            await connection.call(
                connection.client._send_command(b"SUB " + b"x" * 5000 + b" 99\r\n")
            )
            connection.publish("x")
            await until(lambda: connection.client.is_closed)
            await trio.sleep_forever()
    connection.unsubscribe(subscription)
    connection._lose("a second time")
    with pytest.raises(BrokerError, match="for good"):
        connection.subscribe("x", lambda message: None)
    with pytest.raises(BrokerError, match="for good"):
        connection.publish("x")
    with pytest.raises(BrokerError, match="for good"):
        await connection.wait_up()


@within(20)
async def test_call_that_the_loop_cancels(nats_swarm: NATSSwarm) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with nats_swarm.raw() as raw:
        with pytest.raises(BrokerError, match=r"the connection to nats://.* was closed"):
            await raw.connection.call(cancelled())


@within(30)
async def test_what_cannot_be_read_replaces_the_connection(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py's read loop would end, and the client go on saying that it is connected."""

    def stumble(*args: object) -> None:
        monkeypatch.undo()
        raise LookupError("odd")

    async with nats_swarm.raw() as raw, nats_swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with open_dispatcher(nats_swarm.broker) as dispatcher:
            monkeypatch.setattr(_parser, "Incoming", stumble)
            with trio.fail_after(5):
                await dispatcher.run("coder", Message())
        assert raw.connection.lost is None
    told = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    reason = "can't read what it sent: LookupError('odd')"
    assert told == [f"lost the connection to {nats_swarm.url}: {reason}"]
