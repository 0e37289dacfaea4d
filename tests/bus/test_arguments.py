"""Arguments that are wrong, checkpoints, and calls in a cancelled scope, on every bus."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints

import trio_swarmtask.bus
from tests._helpers.brokers import within
from tests._helpers.buses import Buses, answer, rest, settle
from trio_swarmtask.bus import InvalidSubjectError, MemoryBus, NoRespondersError, open_nats_bus

if TYPE_CHECKING:
    from trio_swarmtask.bus import MessageBus

BAD_SUBJECTS: list[tuple[Any, str]] = [
    ("", "it is empty"),
    ("a b", "it holds ' '; use letters, digits, '-', '_' and dots"),
    ("a\r\nPUB b 0", r"it holds '\r'"),
    ("a\u2028", r"it holds '\u2028'"),
    ("\ud800", r"it holds '\ud800'"),
    ("a..b", "it has an empty token; write one dot between two tokens, none at the ends"),
    (".a", "it has an empty token"),
    ("a.", "it has an empty token"),
    ("x" * 1025, "it is longer than 1024 bytes"),
    (None, "it must be a string, not NoneType"),
    (b"a", "it must be a string, not bytes"),
    (5, "it must be a string, not int"),
]


@pytest.mark.parametrize(
    ("subject", "problem"),
    [
        *BAD_SUBJECTS,
        *((text, "'*' and '>' are for subscribing") for text in ("*", "a.>", "a.*.b", "a*", "a>b")),
    ],
)
@within(10)
async def test_subject_that_cannot_be_published_on(
    bus: MessageBus, subject: str, problem: str
) -> None:
    """The bus works on: nothing of it has reached the server."""
    told = f"can't publish on subject .*: {re.escape(problem)}"
    with pytest.raises(InvalidSubjectError, match=told):
        await bus.publish(subject, b"")
    with pytest.raises(InvalidSubjectError, match=told):
        await bus.request(subject, b"")
    await settle(bus)


@pytest.mark.parametrize(
    ("subject", "problem"),
    [
        *BAD_SUBJECTS,
        ("a*", "a wildcard is a token of its own, unlike in 'a*'"),
        ("a.b>", "a wildcard is a token of its own, unlike in 'b>'"),
        ("a.>.b", "'>' stands for the rest, so it comes last"),
    ],
)
@within(10)
async def test_subject_that_cannot_be_subscribed_to(
    buses: Buses, bus: MessageBus, subject: str, problem: str
) -> None:
    """At the call, not first on entering."""
    told = f"can't subscribe to subject .*: {re.escape(problem)}"
    with pytest.raises(InvalidSubjectError, match=told):
        bus.subscribe(subject)
    with pytest.raises(InvalidSubjectError, match=told):
        bus.queue_subscribe(subject, "q")
    with pytest.raises(InvalidSubjectError, match=told):
        bus.listen(subject, lambda _: None)
    assert not buses.has_listeners(bus)
    await settle(bus)


@pytest.mark.parametrize(
    ("queue", "problem"), [*BAD_SUBJECTS, ("*", "'*' and '>' are for subscribing")]
)
@within(10)
async def test_queue_that_cannot_be(bus: MessageBus, queue: str, problem: str) -> None:
    with pytest.raises(InvalidSubjectError, match=f"can't share queue .*: {re.escape(problem)}"):
        bus.queue_subscribe("a", queue)
    await settle(bus)


@pytest.mark.parametrize("data", ["text", None, 5, bytearray(b"x"), memoryview(b"x"), [b"x"], {}])
@within(10)
async def test_data_that_is_not_bytes(bus: MessageBus, data: Any) -> None:  # noqa: ANN401 - is the case
    told = f"data must be bytes, not {re.escape(repr(data))}"
    async with bus.subscribe("a") as messages:
        with pytest.raises(TypeError, match=told):
            await bus.publish("a", data)
        with pytest.raises(TypeError, match=told):
            await bus.request("a", data)
        await settle(bus)
    assert await rest(messages) == []


@pytest.mark.parametrize(
    ("size", "error", "told"),
    [
        (0, ValueError, "buffer_size must be from 1 up, not 0"),
        (-1, ValueError, "buffer_size must be from 1 up, not -1"),
        (1.0, TypeError, r"buffer_size must be a whole number, not 1\.0"),
        (True, TypeError, "buffer_size must be a whole number, not True"),
        (None, TypeError, "buffer_size must be a whole number, not None"),
    ],
)
@within(10)
async def test_buffer_size_that_cannot_be(size: int, error: type[Exception], told: str) -> None:
    """Before anything is connected."""
    with pytest.raises(error, match=told):
        MemoryBus(size)
    with pytest.raises(error, match=told):
        async with open_nats_bus("nats://127.0.0.1:1", buffer_size=size):
            pytest.fail("it was opened")


@within(10)
async def test_checkpoints(bus: MessageBus) -> None:
    """Each async method on every call, whether it has to wait or not."""
    with assert_checkpoints():
        await bus.publish("a", b"")
    with assert_checkpoints(), pytest.raises(NoRespondersError):
        await bus.request("a", b"")
    for made in (bus.subscribe("a"), bus.queue_subscribe("a", "q"), bus.listen("a", print)):
        with assert_checkpoints():
            await made.__aenter__()
        await made.__aexit__(None, None, None)
    async with bus.subscribe("a") as messages, trio.open_nursery() as nursery:
        await bus.publish("a", b"1")
        await settle(bus)
        with assert_checkpoints():
            assert (await anext(messages)).data == b"1"
        nursery.start_soon(answer, bus, messages)
        with assert_checkpoints():
            assert (await bus.request("a", b"2")).data == b"[2]"
        with assert_checkpoints():
            await bus.aclose()
        with assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await anext(messages)
        with assert_checkpoints():
            await bus.aclose()


@within(10)
async def test_cancelled_publish_sends_nothing(bus: MessageBus) -> None:
    async with bus.subscribe("a") as messages:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bus.publish("a", b"cancelled")
        assert scope.cancelled_caught
        await settle(bus)
    assert await rest(messages) == []


@within(10)
async def test_cancelled_request_sends_nothing(buses: Buses, bus: MessageBus) -> None:
    """A request that was never sent has started nothing at whoever would have answered."""
    async with bus.subscribe("a") as messages:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bus.request("a", b"cancelled")
        assert scope.cancelled_caught
        assert not buses.waiting(bus)
        await settle(bus)
    assert await rest(messages) == []


@pytest.mark.parametrize(
    "name",
    [
        *("MessageBus", "MemoryBus", "BusMessage", "BusSubscription", "open_nats_bus"),
        *("BusClosedError", "NoRespondersError", "InvalidSubjectError"),
    ],
)
def test_public_name(name: str) -> None:
    """There for annotations and for `isinstance`."""
    assert hasattr(trio_swarmtask.bus, name)
