# What open_dispatcher, open_worker and open_broker take, and what they hand on.
#
# Nothing here connects: a broker in memory stands in for NATS.

from __future__ import annotations

import math
import os
import re
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trio_swarmtask import (
    Broker,
    BrokerError,
    MemoryBroker,
    Message,
    NATSConfig,
    open_broker,
    open_dispatcher,
    open_worker,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    Open = Callable[..., AbstractAsyncContextManager[Any]]

OPENERS = (open_broker, open_dispatcher, open_worker)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[NATSConfig]:
    """What would have been connected to; None is added when the connection is closed."""
    opened: list[NATSConfig | None] = []

    @asynccontextmanager
    async def open_nats_broker(config: NATSConfig) -> AsyncIterator[Broker]:
        opened.append(config)
        try:
            yield MemoryBroker()
        finally:
            opened.append(None)

    monkeypatch.setattr("trio_swarmtask._jetstream.open_nats_broker", open_nats_broker)
    monkeypatch.delenv("NATS_URL", raising=False)
    return opened


async def refuse(
    error: type[Exception], match: str, opener: Open, *args: Any, **kwargs: Any
) -> None:
    with pytest.raises(error, match=match):
        async with opener(*args, **kwargs):
            pytest.fail("it was opened")


# The broker


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("broker", [5, b"nats://SECRET@h", ["nats://SECRET@h"], object()], ids=type)
async def test_broker_of_a_wrong_type(
    opener: Open, broker: object, connections: list[NATSConfig]
) -> None:
    """Whatever it is, it may hold a password."""
    with pytest.raises(TypeError, match=r"can't be a broker: pass a URL") as info:
        async with opener(broker):
            pytest.fail("it was opened")
    assert type(broker).__name__ in str(info.value)
    assert "SECRET" not in str(info.value)
    assert connections == []


async def test_open_broker_with_a_broker() -> None:
    """It is open already; the error must not advise to pass one."""
    with pytest.raises(TypeError, match="MemoryBroker") as info:
        async with open_broker(MemoryBroker()):
            pytest.fail("it was opened")
    assert "an open Broker" not in str(info.value)


@pytest.mark.parametrize("opener", OPENERS)
async def test_broker_url_broken(opener: Open, connections: list[NATSConfig]) -> None:
    await refuse(ValueError, "'http://h' is not the URL of a NATS server", opener, "http://h")
    assert connections == []


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    ("broker", "url"),
    [
        ("nats://a,tls://b", "nats://a,tls://b"),
        (NATSConfig("nats://a"), "nats://a"),
        (None, "nats://127.0.0.1:4222"),
    ],
)
async def test_broker_is_connected_to(
    opener: Open, broker: str | NATSConfig | None, url: str, connections: list[NATSConfig]
) -> None:
    """For as long as the block lasts."""
    async with opener(broker):
        assert [config.url for config in connections] == [url]
    assert len(connections) == 2


async def test_broker_from_the_environment(
    connections: list[NATSConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", "nats://there")
    async with open_dispatcher():
        assert connections == [NATSConfig("nats://there", name=connections[0].name)]


async def test_open_broker_gives_the_connection(connections: list[NATSConfig]) -> None:
    async with open_broker("nats://h") as broker:
        assert isinstance(broker, MemoryBroker)


@pytest.mark.parametrize("opener", [open_dispatcher, open_worker])
async def test_broker_that_is_shared(opener: Open, connections: list[NATSConfig]) -> None:
    """It is not connected to, and not closed."""
    async with opener(MemoryBroker()):
        pass
    assert connections == []


@pytest.mark.parametrize("opener", OPENERS)
async def test_connecting_fails(opener: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def refused(config: NATSConfig) -> AsyncIterator[Broker]:
        raise BrokerError(f"no server at {config.safe_url}")
        yield

    monkeypatch.setattr("trio_swarmtask._jetstream.open_nats_broker", refused)
    await refuse(BrokerError, "no server at nats://h", opener, "nats://h")


# Names


@pytest.mark.parametrize("opener", [open_dispatcher, open_worker])
@pytest.mark.parametrize("name", [5, b"me", True, ["me"]])
async def test_name_of_a_wrong_type(opener: Open, name: object) -> None:
    wrong = f"name must be a string.*not {re.escape(repr(name))}"
    await refuse(TypeError, wrong, opener, MemoryBroker(), name=name)


@pytest.mark.parametrize("opener", [open_dispatcher, open_worker])
@pytest.mark.parametrize("name", ["", "\ud800"])
async def test_name_that_cannot_be_sent(opener: Open, name: str) -> None:
    """It stands in every envelope; better refused here than with each task."""
    wrong = f"name must be .*not {re.escape(repr(name))}"
    await refuse((TypeError, ValueError), wrong, opener, MemoryBroker(), name=name)


@pytest.mark.parametrize("opener", OPENERS)
async def test_name_of_the_connection(opener: Open, connections: list[NATSConfig]) -> None:
    """The configured one, else the role's: host, process, a few random characters."""
    for _ in range(2):
        async with opener("nats://h"):
            pass
    async with opener(NATSConfig("nats://h", name="mine")):
        pass
    first, second, configured = (config.name for config in connections if config is not None)
    made = rf"{re.escape(socket.gethostname())}-{os.getpid()}-[0-9a-z]{{4,}}"
    assert re.fullmatch(made, first)
    assert re.fullmatch(made, second)
    assert first != second
    assert configured == "mine"


async def test_name_of_the_worker(connections: list[NATSConfig]) -> None:
    async with open_worker("nats://h", name="worker 1") as worker:
        assert worker.name == "worker 1" == connections[0].name
    async with open_worker(NATSConfig("nats://h", name="mine"), name="worker 2") as worker:
        assert worker.name == "worker 2"
        assert connections[-1].name == "mine"
    async with open_worker("nats://h") as worker:
        assert worker.name == connections[-1].name


async def test_name_of_the_dispatcher(connections: list[NATSConfig]) -> None:
    """It is written into a blank `submitted_by`."""
    async with open_dispatcher("nats://h", name="planner") as dispatcher:
        assert "planner" in repr(dispatcher)
        assert connections[0].name == "planner"

    senders = []

    async def handler(message: Message) -> None:
        senders.append(message.submitted_by)

    broker = MemoryBroker()
    async with open_worker(broker) as worker, open_dispatcher(broker, name="planner") as dispatcher:
        await worker.handle("coder", handler)
        await dispatcher.run("coder", Message())
        await dispatcher.run("coder", Message(submitted_by="me"))
    assert senders == ["planner", "me"]


# The worker's limits


@pytest.mark.parametrize("value", ["5", None, True, [5]])
async def test_default_timeout_of_a_wrong_type(value: object) -> None:
    wrong = f"default_timeout must be a number of seconds, not {re.escape(repr(value))}"
    await refuse(TypeError, wrong, open_worker, MemoryBroker(), default_timeout=value)


@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, -math.inf])
async def test_default_timeout_not_above_0(value: float) -> None:
    wrong = f"default_timeout must be more than 0 seconds, not {value!r}"
    await refuse(ValueError, wrong, open_worker, MemoryBroker(), default_timeout=value)


@pytest.mark.parametrize("value", ["5", None, True, 5.0, math.inf])
async def test_max_deliveries_of_a_wrong_type(value: object) -> None:
    wrong = f"max_deliveries must be a whole number, not {value!r}"
    await refuse(TypeError, wrong, open_worker, MemoryBroker(), max_deliveries=value)


@pytest.mark.parametrize("value", [0, -1])
async def test_max_deliveries_below_1(value: int) -> None:
    wrong = f"max_deliveries must be from 1 up, not {value}"
    await refuse(ValueError, wrong, open_worker, MemoryBroker(), max_deliveries=value)


@pytest.mark.parametrize("limits", [{}, {"default_timeout": 1, "max_deliveries": 1}])
async def test_limits_good(limits: dict[str, int]) -> None:
    async with open_worker(MemoryBroker(), **limits) as worker:
        assert worker.statistics().in_flight == 0
