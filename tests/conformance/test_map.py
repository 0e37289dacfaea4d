"""Many tasks with few of them at a time, and their results as they come, on both brokers."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import FAIL, Staff
from trio_swarmtask import (
    ClosedError,
    Future,
    InvalidCapabilityError,
    InvalidMessageError,
    Message,
    Result,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def numbered(count: int | None = None) -> Iterator[Message]:
    numbers = itertools.count() if count is None else range(count)
    return (Message(inputs={"number": f"{number}"}) for number in numbers)


def number_of(result: Result) -> int:
    return int(result.outputs_as(dict[str, str])["number"])


class Counted:
    """An endless iterable that counts what was taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[Message]:
        for message in numbered():
            self.taken += 1
            yield message


class CountedAsync(Counted):
    """The same, as an async iterable that is no generator."""

    __iter__ = None  # type: ignore[assignment]  # so it is not iterable as the other one is

    def __aiter__(self) -> CountedAsync:
        return self

    async def __anext__(self) -> Message:
        await trio.lowlevel.checkpoint()
        self.taken += 1
        return Message(inputs={"number": f"{self.taken - 1}"})


class Gate:
    """A handler that echoes once its number is let through."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.open = [trio.Event() for _ in range(100)]

    async def __call__(self, message: Message) -> dict[str, str]:
        number = int(message.inputs["number"])
        self.running.add(number)
        try:
            await self.open[number].wait()
        finally:
            self.running.discard(number)
        return message.inputs


@within(30)
@pytest.mark.parametrize("ordered", [False, True])
async def test_every_message_gets_its_result(swarm: Swarm, ordered: bool) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", numbered(300), limit=20, ordered=ordered) as results:
            assert "map over 'coder'" in repr(results)
            numbers = [number_of(result) async for result in results]
            with pytest.raises(StopAsyncIteration):
                await anext(results)
        assert (numbers if ordered else sorted(numbers)) == list(range(300))
        assert dispatcher.statistics().outstanding == 0
        assert dispatcher.statistics().started == 300


@within(20)
async def test_no_messages(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, dispatcher.map("coder", []) as results:
        assert [result async for result in results] == []


@within(20)
async def test_results_come_as_they_are_ready(swarm: Swarm) -> None:
    gate = Gate()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", gate)
        async with dispatcher.map("coder", numbered(3)) as results:
            for number in (2, 0, 1):
                gate.open[number].set()
                assert number_of(await anext(results)) == number


@within(20)
async def test_ordered_results_wait_for_those_before(swarm: Swarm) -> None:
    gate = Gate()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", gate)
        async with dispatcher.map("coder", numbered(3), ordered=True) as results:
            for number in (2, 1):
                gate.open[number].set()
            await until(lambda: dispatcher.statistics().resolved == 2)
            with trio.move_on_after(0.1) as scope:
                await anext(results)
            assert scope.cancelled_caught
            gate.open[0].set()
            assert [number_of(result) async for result in results] == [0, 1, 2]


@within(30)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind_of_messages", [Counted, CountedAsync])
async def test_endless_messages_are_taken_a_limit_ahead(
    swarm: Swarm, kind_of_messages: type[Counted], ordered: bool
) -> None:
    messages = kind_of_messages()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", messages, limit=7, ordered=ordered) as results:
            for read in range(1, 50):
                await anext(results)
                assert messages.taken <= read + 7
                assert dispatcher.statistics().outstanding <= 7
            # All the places are taken, by results that nobody reads.
            await until(lambda: dispatcher.statistics().resolved == 49 + 7)
            assert messages.taken == 49 + 7
        assert await swarm.count_tasks() == 0


@within(20)
async def test_failure_is_a_result(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", Staff())
        messages = [FAIL, Message(), FAIL]
        async with dispatcher.map("coder", messages, ordered=True) as results:
            statuses = [result.status async for result in results]
        assert statuses == [Status.FAILED, Status.SUCCESS, Status.FAILED]


@within(20)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("how", ["break", "raise", "deadline"])
async def test_leaving_early_cancels_what_is_outstanding(
    swarm: Swarm, how: str, ordered: bool
) -> None:
    """At the workers and in the queue; their clean-up is waited for; no error is wrapped."""
    staff = Staff()
    slow = Message(inputs={"do": "wait", "clean_up": "0.2"})
    messages = itertools.chain([Message()], itertools.repeat(slow))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", staff, max_in_flight=3)

        async def read() -> None:
            async with dispatcher.map("coder", messages, limit=6, ordered=ordered) as results:
                assert (await anext(results)).outputs == "done"
                await until(lambda: staff.running == 3)
                if how == "raise":
                    raise LookupError("mine")
                if how == "deadline":
                    await anext(results)

        if how == "raise":
            with pytest.raises(LookupError, match="mine"):
                await read()
        else:
            with trio.move_on_after(2 if how == "deadline" else 20) as scope:
                await read()
            assert scope.cancelled_caught is (how == "deadline")
        assert (staff.running, staff.clean_ups) == (0, 4)
        assert await swarm.count_tasks() == 0
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_leaving_at_once_leaves_no_task(swarm: Swarm) -> None:
    """Also of those that are just being stored."""
    async with swarm.dispatcher() as dispatcher:
        await (await dispatcher.start("coder", Message())).cancel()
        for messages in (numbered(), (Message(id=f"mine-{n}") for n in itertools.count())):
            for _ in range(3):
                async with dispatcher.map("coder", messages, limit=5):
                    await trio.lowlevel.checkpoint()
                assert await swarm.count_tasks() == 0
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_reading_after_the_block_is_an_error(swarm: Swarm) -> None:
    """Also where it was begun in the block."""
    async with swarm.dispatcher() as dispatcher, trio.open_nursery() as nursery:
        async with dispatcher.map("coder", [Message()]) as results:

            async def read() -> None:
                with pytest.raises(ClosedError, match="block of this map was left"):
                    await anext(results)

            nursery.start_soon(read)
            await until(lambda: dispatcher.statistics().outstanding)
        await read()


@within(20)
@pytest.mark.parametrize("ordered", [False, True])
async def test_several_readers_share_the_results(swarm: Swarm, ordered: bool) -> None:
    numbers: list[int] = []
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", numbered(100), limit=10, ordered=ordered) as results:

            async def read() -> None:
                numbers.extend([number_of(result) async for result in results])

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(read)
        assert sorted(numbers) == list(range(100))


@within(20)
async def test_reading_that_is_cancelled_loses_nothing(swarm: Swarm) -> None:
    numbers: list[int] = []
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", numbered(50), limit=5) as results:
            while True:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await anext(results)
                assert scope.cancelled_caught
                try:
                    numbers.append(number_of(await anext(results)))
                except StopAsyncIteration:
                    break
        assert sorted(numbers) == list(range(50))


# Messages that end in an error


@within(60)
@pytest.mark.parametrize("ordered", [False, True])
async def test_nothing_is_kept_of_what_was_read(
    kind: str, swarm: Swarm, ordered: bool, request: pytest.FixtureRequest
) -> None:
    count = 20_000 if kind == "memory" else 2000
    most = 0
    gc.disable()  # what has to wait for it is kept, too
    request.addfinalizer(gc.enable)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with dispatcher.map("coder", numbered(count), limit=50, ordered=ordered) as results:
            read = 0
            async for _ in results:
                read += 1
                if read % 1000 == 0:
                    most = max(most, sum(type(each) is Future for each in gc.get_objects()))
            assert read == count
            assert most <= 50 + 1  # and one was just read


# What can be mapped


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


# Errors of what is mapped, and of the dispatcher


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
