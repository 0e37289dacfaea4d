"""Ctrl-C, and a KeyboardInterrupt of a callback: the program ends, wherever it came."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import until
from trio_swarmtask import Message, open_dispatcher, open_worker
from trio_swarmtask._nats import _protocol as _parser
from trio_swarmtask._nats._protocol import Incoming
from trio_swarmtask.bus import BusMessage, MemoryBus, MessageBus, open_nats_bus
from trio_swarmtask.server import open_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


pytestmark = pytest.mark.usefixtures("ctrl_c")


def interrupted(program: Callable[[], Awaitable[None]]) -> None:
    """Run a program which an interrupt is to end, unwrapped."""

    async def main() -> None:
        with trio.fail_after(20):
            await program()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def hear_of_an_interrupt(
    bus: MessageBus, publish: Callable[[str, bytes], Awaitable[None]], *, on_close: bool
) -> None:
    heard: list[bytes] = []

    def interrupt(argument: object) -> None:
        if (argument is None) == on_close:
            raise BaseExceptionGroup("as of a nursery", [KeyboardInterrupt()])

    async with (
        bus.listen("a", interrupt, on_close=interrupt),
        bus.listen("a", lambda message: heard.append(message.data)),
    ):
        try:
            await publish("a", b"1")
            await until(lambda: heard)
            if on_close:
                await bus.aclose()
            await trio.sleep_forever()
        finally:
            assert heard == [b"1"]


@pytest.mark.parametrize("on_close", [False, True])
def test_callback_in_memory(on_close: bool) -> None:
    """It comes out of the publish, or of the closing, once all have been called."""

    async def program() -> None:
        bus = MemoryBus()
        await hear_of_an_interrupt(bus, bus.publish, on_close=on_close)

    interrupted(program)


@pytest.mark.parametrize("on_close", [False, True])
def test_callback_on_a_server(on_close: bool) -> None:
    """It comes out of the bus's block, and nobody else hears of it."""

    async def program() -> None:
        async with open_server() as server, open_nats_bus(server.url) as other:
            try:
                async with open_nats_bus(server.url) as bus:
                    await hear_of_an_interrupt(bus, other.publish, on_close=on_close)
            finally:
                with trio.CancelScope(shield=True), trio.fail_after(5):
                    async with other.subscribe("b") as messages:
                        await other.publish("b", b"2")
                        assert await anext(messages) == BusMessage("b", b"2")

    interrupted(program)


@pytest.mark.parametrize("reads", ["trio", "nats-py"])
def test_ctrl_c_while_a_connection_is_read(reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the program, not the reading: or leaving the blocks would hang."""
    if reads == "nats-py":
        monkeypatch.setattr("nats.aio.client.__version__", "2.999.0")
    pressed: list[bool] = []

    def press(*args: Any) -> Incoming:
        if pressed == [False]:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        return Incoming(*args)

    async def handle(message: Message) -> None:
        pressed.append(False)

    async def program() -> None:
        async with (
            open_server() as server,
            open_worker(server.url) as worker,
            open_dispatcher(server.url) as dispatcher,
        ):
            await worker.handle("coder", handle)
            await dispatcher.run("coder", Message())
            await trio.sleep_forever()

    monkeypatch.setattr(_parser, "Incoming", press)
    interrupted(program)
    assert pressed == [False, True]
