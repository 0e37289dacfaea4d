"""Errors of what is mapped, and of the dispatcher, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests._helpers.brokers import Swarm, echo, until, within
from tests.conformance.test_map import number_of, numbered
from trio_swarmtask import (
    ClosedError,
    InvalidMessageError,
    Message,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Failing:
    """Some messages, then an error."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.failed = False

    def __iter__(self) -> Iterator[Message]:
        yield from numbered(self.count)
        self.failed = True
        raise LookupError("no more")


@within(20)
@pytest.mark.parametrize("ordered", [False, True])
async def test_error_of_the_iterable_is_raised_to_the_reader(swarm: Swarm, ordered: bool) -> None:
    """Once; the results of what was taken before can be read."""
    numbers = []
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", Failing(3), ordered=ordered) as results:
            errors = 0
            while True:
                try:
                    numbers.append(number_of(await anext(results)))
                except LookupError:
                    errors += 1
                    assert not ordered or numbers == [0, 1, 2]
                except StopAsyncIteration:
                    break
    assert (sorted(numbers), errors) == ([0, 1, 2], 1)


@within(20)
async def test_error_of_the_iterable_leaves_the_block(swarm: Swarm) -> None:
    """As it was raised; what is outstanding is cancelled."""
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(LookupError, match="no more"):
            async with dispatcher.map("coder", Failing(3)) as results:
                async for _ in results:
                    pass
        assert await swarm.count_tasks() == 0


@within(20)
async def test_error_that_nobody_read_leaves_the_block(swarm: Swarm) -> None:
    messages = Failing(3)
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(LookupError, match="no more"):
            async with dispatcher.map("coder", messages):
                await until(lambda: messages.failed)
        assert await swarm.count_tasks() == 0


@within(20)
async def test_error_that_nobody_read_yields_to_the_blocks_own(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    messages = Failing(0)
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(ZeroDivisionError):
            async with dispatcher.map("coder", messages):
                await until(lambda: messages.failed)
                raise ZeroDivisionError
    assert "a map was left before its error was read" in caplog.text
    assert "no more" in caplog.text


@within(20)
async def test_message_that_can_not_be_sent_is_raised_as_by_start(swarm: Swarm) -> None:
    large = Message(inputs={"text": "x" * (2 << 20)})
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        wrong: list[tuple[Any, str]] = [
            ("text", "'text' is not a Message"),
            (large, "larger than"),
            (Message(id="mine", inputs=large.inputs), "larger than"),
            (Message(id="not an ID"), "must be a string of"),
        ]
        for message, text in wrong:
            messages = [*numbered(2), message, *numbered(3)]
            async with dispatcher.map("coder", messages, limit=3, ordered=True) as results:
                assert [number_of(await anext(results)) for _ in range(2)] == [0, 1]
                with pytest.raises(InvalidMessageError, match=text):
                    await anext(results)
                assert len([result async for result in results]) <= 2  # taken meanwhile
            assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_several_errors_that_nobody_read(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is raised, and the others are told."""
    large = {"text": "x" * (2 << 20)}
    async with swarm.dispatcher() as dispatcher:
        messages = [Message(id="one", inputs=large), Message(id="two", inputs=large)]
        with pytest.raises(InvalidMessageError, match="larger than"):
            async with dispatcher.map("coder", messages) as results:
                opened: Any = results
                await until(lambda: len(opened._places) == 2)
    assert "a map was left before its error was read" in caplog.text


@within(20)
async def test_dispatcher_that_is_closed_ends_the_map(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(ClosedError, match="dispatcher was closed"):
            async with dispatcher.map("coder", numbered(), limit=5) as results:
                await until(lambda: dispatcher.statistics().outstanding == 5)
                await dispatcher.aclose()
                await anext(results)
        with pytest.raises(ClosedError):
            dispatcher.map("coder", [])


@within(20)
async def test_dispatcher_that_is_closed_is_no_news(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    closed, refused = trio.Event(), False

    async def two() -> AsyncIterator[Message]:  # noqa: ASYNC900 - it is what is tested
        nonlocal refused
        try:
            yield Message()
            await closed.wait()
            yield Message()
        finally:
            refused = True

    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(ZeroDivisionError):
            async with dispatcher.map("coder", two()):
                await until(lambda: dispatcher.statistics().outstanding)
                await dispatcher.aclose()
                closed.set()
                await until(lambda: refused)
                raise ZeroDivisionError
    assert "left before its error" not in caplog.text
