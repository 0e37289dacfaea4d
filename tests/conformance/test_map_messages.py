"""What can be mapped: iterables and generators, which are closed, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests._helpers.brokers import Swarm, echo, until, within
from tests.conformance.test_map import numbered
from trio_swarmtask import (
    InvalidCapabilityError,
    Message,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@within(20)
async def test_what_can_not_be_mapped(swarm: Swarm) -> None:
    async def one() -> Message:
        raise AssertionError

    wrong: Any
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(InvalidCapabilityError):
            dispatcher.map("a coder", [])
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="limit must be from 1 up"):
                dispatcher.map("coder", [], limit=wrong)
        for wrong in (1.5, "10", True, None):
            with pytest.raises(TypeError, match="limit must be a whole number"):
                dispatcher.map("coder", [], limit=wrong)
        for wrong in (Message(), 7, one, None):
            with pytest.raises(TypeError, match="must be an iterable or an async iterable"):
                dispatcher.map("coder", wrong)
        wrong = one()
        with pytest.raises(TypeError, match="has to be awaited"):
            dispatcher.map("coder", wrong)
        with pytest.raises(TypeError, match="grace must be a number"):
            dispatcher.map("coder", [], grace="soon")  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(ValueError, match="orphans must be"):
            dispatcher.map("coder", [], orphans="ignore")  # type: ignore[arg-type]  # wrong on purpose


# Async generators


class Generator:
    """Makes messages, with a cancel scope open in between, and says how it ended."""

    def __init__(self, count: int | None = None) -> None:
        self.messages = numbered(count)
        self.closed = False
        self.task: trio.lowlevel.Task | None = None

    async def __call__(self) -> AsyncIterator[Message]:  # noqa: ASYNC900 - it is what is tested
        self.task = trio.lowlevel.current_task()
        try:
            with trio.CancelScope():
                for message in self.messages:
                    await trio.lowlevel.checkpoint()
                    yield message  # noqa: ASYNC101,ASYNC119 - the one task that runs it closes it, too
        finally:
            assert trio.lowlevel.current_task() is self.task
            with trio.move_on_after(5, shield=True):
                await trio.sleep(0.01)
                self.closed = True


@within(20)
@pytest.mark.parametrize("count", [20, None])
async def test_async_generator_is_closed(swarm: Swarm, count: int | None) -> None:
    generator = Generator(count)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", generator(), limit=5) as results:
            read = 0
            async for _ in results:
                read += 1
                if read == 20 and count is None:
                    break
    assert generator.closed


@within(20)
async def test_async_generator_that_waits_is_cancelled(swarm: Swarm) -> None:
    cancelled = False
    waiting = trio.Event()

    async def wait() -> AsyncIterator[Message]:  # noqa: ASYNC900 - it is what is tested
        nonlocal cancelled
        yield Message()
        waiting.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled = True
            raise

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", wait()) as results:
            await anext(results)
            await waiting.wait()
    assert cancelled


@within(20)
async def test_async_generator_that_fails_while_it_is_closed(swarm: Swarm) -> None:
    async def stubborn() -> AsyncIterator[Message]:  # noqa: ASYNC900 - it is what is tested
        try:
            while True:
                yield Message()
        finally:
            raise LookupError("not closed")

    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(LookupError, match="not closed"):
            async with dispatcher.map("coder", stubborn(), limit=2):
                await until(lambda: dispatcher.statistics().outstanding == 2)
        assert await swarm.count_tasks() == 0


@within(20)
async def test_interrupt_in_the_iterable(swarm: Swarm) -> None:
    def interrupted() -> Iterator[Message]:
        yield Message()
        raise KeyboardInterrupt

    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(KeyboardInterrupt):
            async with dispatcher.map("coder", interrupted()) as results:
                async for _ in results:
                    pass
        assert await swarm.count_tasks() == 0


# As part of something larger
