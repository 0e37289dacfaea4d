"""What is given back, is: however a worker's block ends, whatever holds it up, on both brokers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

from tests._helpers.brokers import Swarm, echo, until, within
from trio_swarmtask import Message

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_BEFORE_THE_LEASE = 5  # seconds; ack_wait is 30


class Panic(BaseException):
    """As compiled code raises it."""


NO_EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit("bad"),
    "CancelledError": lambda: asyncio.CancelledError("bad"),
    "GeneratorExit": lambda: GeneratorExit("bad"),
    "Panic": lambda: Panic("bad"),
    "group": lambda: BaseExceptionGroup("bad", [GeneratorExit(), ValueError()]),
}


@pytest.mark.parametrize("kind_of_error", NO_EXCEPTIONS)
@pytest.mark.parametrize("where", ["handler", "clean-up", "block"])
@within(30)
async def test_what_is_no_exception_ends_the_block(
    swarm: Swarm, kind_of_error: str, where: str
) -> None:
    """Out of a handler, out of its clean-up, or of the block itself: the tasks are given back."""
    error = NO_EXCEPTIONS[kind_of_error]()
    begun = 0

    async def handle(message: Message) -> None:
        nonlocal begun
        begun += 1
        try:
            if where == "handler" and message.inputs:
                raise error
            await trio.sleep_forever()
        finally:
            if where == "clean-up" and message.inputs:
                raise error

    async with swarm.dispatcher() as dispatcher:
        futures = [await dispatcher.start("coder", Message()) for _ in range(5)]
        with pytest.raises(type(error)) as raised:
            async with swarm.worker() as worker:
                await worker.handle("coder", handle)
                await until(lambda: begun == 5)
                bad = await dispatcher.start("coder", Message(inputs={"bad": "1"}))
                await until(lambda: begun == 6)
                if where == "block":
                    raise error
                if where == "clean-up":
                    await bad.cancel()
                await trio.sleep_forever()
        assert repr(raised.value) == repr(error)  # Trio takes a group apart, and makes it anew
        assert worker.statistics().given_back == (5 if where == "clean-up" else 6)
        async with swarm.worker() as other:
            await other.handle("coder", echo)
            with trio.fail_after(LONG_BEFORE_THE_LEASE):
                for future in futures:
                    assert (await future.wait()).attempt == 2
                await bad.wait()


@within(30)
async def test_thread_that_is_busy_while_tasks_are_given_back(swarm: Swarm) -> None:
    """All the time that giving back may take has passed then, and it is done all the same."""
    begun = 0

    async def handle(message: Message) -> None:
        nonlocal begun
        begun += 1
        try:
            await trio.sleep_forever()
        finally:
            if message.inputs:
                clock = trio.lowlevel.current_clock()
                if isinstance(clock, MockClock):
                    clock.jump(1.6)
                else:
                    time.sleep(1.6)  # noqa: ASYNC251 - that is the fault

    async with swarm.dispatcher() as dispatcher:
        futures = [
            await dispatcher.start("coder", Message(inputs={"blocks": "1"} if n == 10 else {}))
            for n in range(20)
        ]
        async with swarm.worker() as worker:
            await worker.handle("coder", handle)
            await until(lambda: begun == 20)
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
            assert worker.statistics().given_back == 20
        async with swarm.worker() as other:
            await other.handle("coder", echo)
            with trio.fail_after(LONG_BEFORE_THE_LEASE):
                for future in futures:
                    assert (await future.wait()).attempt == 2
