"""Listeners: a callback for every message, on every bus."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import until, within
from tests._helpers.buses import publish_all, rest, settle
from trio_swarmtask.bus import BusMessage, NoRespondersError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests._helpers.buses import Buses
    from trio_swarmtask._abc import Source
    from trio_swarmtask.bus import MessageBus


@within(10)
async def test_every_message(buses: Buses, bus: MessageBus, other: MessageBus) -> None:
    """From the entering of the block to the leaving; the block itself gives nothing."""
    heard: list[BusMessage] = []
    await other.publish("a.b", b"before")
    await settle(other, bus)
    async with bus.listen("a.*", heard.append) as nothing:
        assert nothing is None
        await other.publish("a.b", b"1")
        await other.publish("b", b"not this")
        await other.publish("a.c", b"2")
        await settle(other, bus)
    await other.publish("a.b", b"after")
    await settle(other, bus)
    assert heard == [BusMessage("a.b", b"1"), BusMessage("a.c", b"2")]
    assert not buses.has_listeners(bus)


@within(30)
async def test_burst(bus: MessageBus, other: MessageBus) -> None:
    """In order, and none is lost, where a subscription's buffer loses most."""
    heard: list[bytes] = []
    async with (
        bus.listen("a", lambda message: heard.append(message.data)),
        bus.subscribe("a") as messages,
    ):
        published = await publish_all(other, "a", 4000)
        await until(lambda: len(heard) >= 4000)
        await settle(other, bus)
    assert heard == published
    assert messages.dropped == 4000 - 256
    assert await rest(messages) == published[-256:]


@within(10)
async def test_several_listeners(bus: MessageBus, other: MessageBus) -> None:
    """One of which leaves."""
    first: list[bytes] = []
    second: list[bytes] = []
    async with bus.listen("a", lambda message: first.append(message.data)):
        async with bus.listen(">", lambda message: second.append(message.data)):
            await other.publish("a", b"1")
            await settle(other, bus)
        await other.publish("a", b"2")
        await settle(other, bus)
    assert first == [b"1", b"2"]
    assert [data for data in second if data] == [b"1"]


@within(10)
async def test_callback_that_raises_is_logged(
    bus: MessageBus, caplog: pytest.LogCaptureFixture
) -> None:
    """And heard again; neither the publisher nor anybody beside it notices."""
    calls: list[bytes] = []
    heard: list[bytes] = []

    def fail(message: BusMessage) -> None:
        calls.append(message.data)
        raise LookupError("mine")

    async with (
        bus.listen("a.*", fail),
        bus.listen("a.b", lambda message: heard.append(message.data)),
        bus.subscribe("a.b") as messages,
    ):
        await bus.publish("a.b", b"1")
        await bus.publish("a.b", b"2")
        await settle(bus)
    assert calls == [b"1", b"2"]
    assert heard == [b"1", b"2"]
    assert await rest(messages) == [b"1", b"2"]
    records = [record for record in caplog.records if record.name == "trio_swarmtask.bus"]
    assert [record.getMessage() for record in records] == [
        "the listener of 'a.*' failed on 'a.b'"
    ] * 2
    for record in records:
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], LookupError)
    assert caplog.text.count("LookupError: mine") == 2


@within(10)
async def test_on_close_tells_once(bus: MessageBus) -> None:
    closed: list[Exception | None] = []
    async with bus.listen("a", lambda _: None, on_close=closed.append):
        await bus.publish("a", b"1")
        assert closed == []
        await bus.aclose()
        assert closed == [None]
        await bus.aclose()
    assert closed == [None]


@within(10)
async def test_on_close_is_not_told_of_leaving(bus: MessageBus) -> None:
    closed: list[Exception | None] = []
    async with bus.listen("a", lambda _: None, on_close=closed.append):
        pass
    await bus.aclose()
    assert closed == []


@within(10)
async def test_no_message_after_on_close(bus: MessageBus, other: MessageBus) -> None:
    """Also of what was published before and was still under way."""
    told: list[object] = []
    async with bus.listen("a", told.append, on_close=told.append):
        await other.publish("a", b"1")
        await settle(other, bus)
        await bus.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert told == [BusMessage("a", b"1"), None]


@within(10)
async def test_on_close_that_raises_is_logged(
    buses: Buses, bus: MessageBus, caplog: pytest.LogCaptureFixture
) -> None:
    """As the callback's: the bus is closed all the same, for everybody."""
    closed: list[Exception | None] = []

    def fail(_: Exception | None) -> None:
        raise LookupError("mine")

    async with (
        bus.listen("a", lambda _: None, on_close=fail),
        bus.listen("a", lambda _: None, on_close=closed.append),
        bus.subscribe("a") as messages,
    ):
        await bus.aclose()
        assert closed == [None]
        assert await rest(messages) == []
    assert not buses.has_listeners(bus)
    assert "LookupError: mine" in caplog.text


@within(10)
async def test_entering_a_listener_twice(bus: MessageBus) -> None:
    listener = bus.listen("a", lambda _: None)
    for _ in range(2):
        async with listener:
            with pytest.raises(RuntimeError, match="the block of 'a' was entered before"):
                async with listener:
                    pytest.fail("it was entered")
        listener = bus.listen("a", lambda _: None)


# What a callback may do to others


class Panic(BaseException):
    """As compiled code raises where it breaks off."""


@pytest.mark.parametrize("kind_of_error", [SystemExit, GeneratorExit, Panic])
@within(10)
async def test_callback_that_raises_what_is_no_exception(
    bus: MessageBus,
    other: MessageBus,
    kind_of_error: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Is logged, and the next message comes; neither a publisher nor a request notices."""
    heard: list[bytes] = []

    def fail(message: BusMessage) -> None:
        heard.append(message.data)
        if message.data == b"0":
            raise BaseExceptionGroup("several", [kind_of_error()])
        raise kind_of_error

    async with bus.listen("a", fail), bus.subscribe("a") as messages:
        published = await publish_all(other, "a", 3)
        await settle(other, bus)
        assert heard == published
        assert [await anext(messages) for _ in range(3)] == [BusMessage("a", n) for n in published]
        with pytest.raises(NoRespondersError):
            await bus.request("nobody", b"")
    assert caplog.text.count("the listener of 'a' failed on 'a'") == 3


@pytest.mark.parametrize("kind_of_error", [SystemExit, GeneratorExit, Panic])
@within(10)
async def test_on_close_that_raises_what_is_no_exception(
    bus: MessageBus, kind_of_error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[Exception | None] = []

    def fail(_: Exception | None) -> None:
        raise kind_of_error

    async with (
        bus.listen("a", lambda _: None, on_close=fail),
        bus.listen("a", lambda _: None, on_close=closed.append),
    ):
        await bus.aclose()
    assert closed == [None]
    assert "the listener of 'a' failed on the bus being closed" in caplog.text


@within(10)
async def test_listener_that_has_ended_is_not_called(
    buses: Buses, bus: MessageBus, other: MessageBus
) -> None:
    """Neither with the message whose callback has ended it, nor of the bus being closed.

    Which of two listeners is called first is the server's affair.
    """
    heard: list[int] = []

    def end_other(number: int, _: object) -> None:
        heard.append(number)
        listeners[1 - number].end()

    async def listen(subject: str) -> list[Source]:
        both: list[Source] = []
        for number in (0, 1):
            callback = functools.partial(end_other, number)
            both.append(bus.listen(subject, callback, on_close=callback))
            await both[-1].__aenter__()
        return both

    listeners = await listen("a")
    await other.publish("a", b"")
    await settle(other, bus)
    assert len(heard) == 1
    listeners[heard.pop()].end()
    listeners = await listen("b")
    await bus.aclose()
    assert len(heard) == 1
    assert not buses.has_listeners(bus)


async def asynchronous(_: object) -> None: ...


async def endless(_: object) -> AsyncIterator[None]:  # noqa: ASYNC900 - wrong on purpose
    yield


class Asynchronous:
    async def __call__(self, _: object) -> None: ...


NO_CALLBACKS: list[tuple[Any, str]] = [
    (asynchronous, "must not be async, as <function asynchronous"),
    (functools.partial(asynchronous), "must not be async"),
    (endless, "must not be async"),
    (Asynchronous(), "must not be async"),
    (None, "must be a function, not None"),
    ("print", "must be a function, not 'print'"),
]


@pytest.mark.parametrize(("callback", "text"), NO_CALLBACKS)
@within(10)
async def test_what_is_no_callback(bus: MessageBus, callback: Any, text: str) -> None:  # noqa: ANN401 - wrong on purpose
    """Refused at once, before anything is subscribed to."""
    with pytest.raises(TypeError, match=f"^callback {text}"):
        bus.listen("a", callback)
    if callback is not None:
        with pytest.raises(TypeError, match=f"^on_close {text}"):
            bus.listen("a", print, on_close=callback)


@within(10)
async def test_callback_that_turns_out_to_be_async(
    bus: MessageBus, caplog: pytest.LogCaptureFixture
) -> None:
    """As a lambda may be: told with each message, for nobody awaits it."""
    async with bus.listen("a", lambda message: asynchronous(message)):  # type: ignore[arg-type,return-value]  # wrong on purpose
        await bus.publish("a", b"")
        await settle(bus)
    assert "TypeError: the callback is async" in caplog.text
