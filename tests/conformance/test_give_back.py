"""What is given back, is: however a worker's block ends, whatever holds it up, on both brokers."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import Staff
from trio_swarmtask import Message, Status
from trio_swarmtask._jetstream._delivery import NATSDelivery
from trio_swarmtask._memory._queue import _MemoryDelivery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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
@within(30)
async def test_what_is_no_exception_ends_the_block(swarm: Swarm, kind_of_error: str) -> None:
    """Out of the block itself: the tasks are given back."""
    error = NO_EXCEPTIONS[kind_of_error]()
    staff = Staff()

    async with swarm.dispatcher() as dispatcher:
        futures = [
            await dispatcher.start("coder", Message(inputs={"do": "wait"})) for _ in range(5)
        ]
        with pytest.raises(type(error)) as raised:
            async with swarm.worker() as worker:
                await worker.handle("coder", staff)
                await until(lambda: staff.running == 5)
                raise error
        assert raised.value is error
        assert worker.statistics().given_back == 5
        async with swarm.worker() as other:
            await other.handle("coder", echo)
            with trio.fail_after(LONG_BEFORE_THE_LEASE):
                for future in futures:
                    assert (await future.wait()).attempt == 2


async def _raise(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def _in_nursery(error: BaseException) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(_raise, error)


async def _in_thread(error: BaseException) -> None:
    def work() -> None:
        raise error

    await trio.to_thread.run_sync(work)


PLACES = {"handler": _raise, "nursery": _in_nursery, "thread": _in_thread}


@pytest.mark.parametrize("kind_of_error", NO_EXCEPTIONS)
@pytest.mark.parametrize("where", PLACES)
@within(30)
async def test_what_a_handler_raises_fails_its_task_alone(
    swarm: Swarm, kind_of_error: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker lives on, and says whose handler it was; the other tasks are not disturbed."""
    if where == "thread" and isinstance(trio.lowlevel.current_clock(), MockClock):
        pytest.skip("virtual time does not wait for threads")

    async def handle(message: Message) -> str:
        if message.inputs:
            await PLACES[where](NO_EXCEPTIONS[kind_of_error]())
        return "fine"

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handle, max_in_flight=1)
        with caplog.at_level("ERROR"):
            bad = await dispatcher.start("coder", Message(inputs={"bad": "1"}))
            result = await bad.wait()
        assert result.status == Status.FAILED
        assert result.error
        assert (await dispatcher.run("coder", Message())).outputs == "fine"
        await until(lambda: worker.statistics().in_flight == 0)
        assert (worker.statistics().failed, worker.statistics().succeeded) == (1, 1)
    (told,) = [record for record in caplog.records if bad.id in record.getMessage()]
    assert told.exc_info


@pytest.mark.parametrize("kind_of_error", ["ValueError", *NO_EXCEPTIONS])
@pytest.mark.parametrize("by", ["deadline", "cancellation", "shutdown"])
@within(30)
async def test_clean_up_that_raises(
    swarm: Swarm, kind_of_error: str, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What ended the task stays what ended it; the error is logged, and noted at a timeout."""
    make = NO_EXCEPTIONS.get(kind_of_error, lambda: ValueError("bad"))
    running = trio.Event()

    async def handle(message: Message) -> str:
        if not message.inputs:
            return "fine"
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            raise make()

    timeout = 1 if by == "deadline" else 0
    async with swarm.dispatcher() as dispatcher:
        with caplog.at_level("ERROR"):
            async with swarm.worker() as worker:
                await worker.handle("coder", handle)
                message = Message(inputs={"bad": "1"}, timeout=timeout)
                future = await dispatcher.start("coder", message)
                await running.wait()
                if by == "shutdown":
                    with pytest.raises(trio.TooSlowError):
                        await worker.shutdown(0)
                else:
                    if by == "cancellation":
                        await future.cancel()
                    result = await future.wait()
                    assert (await dispatcher.run("coder", Message())).outputs == "fine"
                    await until(lambda: worker.statistics().in_flight == 0)
        counts = worker.statistics()
        if by == "shutdown":
            assert counts.given_back == 1
        elif by == "cancellation":
            assert result.cancelled_by
            assert counts.cancelled == 1
        else:
            assert result.status == Status.TIMEOUT
            assert "did not end within 1 seconds, and raised" in result.error
            assert counts.timed_out == 1
    (told,) = [record for record in caplog.records if future.id in record.getMessage()]
    assert told.exc_info


@within(30)
async def test_interrupt_counts_as_a_failed_delivery(swarm: Swarm) -> None:
    """Of the task whose handler it came out of, not of the others in hand."""
    staff = Staff()

    async def interrupted(message: Message) -> None:
        raise KeyboardInterrupt

    async with swarm.dispatcher() as dispatcher:
        other = await dispatcher.start("tester", Message(inputs={"do": "wait"}))
        with pytest.raises(KeyboardInterrupt):
            async with swarm.worker() as worker:
                await worker.handle("tester", staff)
                await until(lambda: staff.running)
                await worker.handle("coder", interrupted)
                bad = await dispatcher.start("coder", Message())
                await trio.sleep_forever()
        async with swarm.worker(max_deliveries=1) as worker:
            await worker.handle("tester", echo)
            await worker.handle("coder", echo)
            assert (await other.wait()).status == Status.SUCCESS
            assert "dead letter" in (await bad.wait()).error


class Stumbling(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the disk of the log is full")


@pytest.mark.parametrize("told", [True, False])
@within(30)
async def test_logging_that_raises(
    swarm: Swarm, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """A user's handler of log records ends no worker; what it raised goes to standard error."""
    monkeypatch.setattr(logging, "raiseExceptions", told)

    async def fail(message: Message) -> None:
        raise ValueError("no luck")

    logger, stumbling = logging.getLogger("trio_swarmtask"), Stumbling()
    logger.addHandler(stumbling)
    try:
        async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
            await worker.handle("coder", fail)
            for _ in range(2):
                result = await dispatcher.run("coder", Message())
                assert (result.status, result.error) == (Status.FAILED, "no luck")
    finally:
        logger.removeHandler(stumbling)
    assert ("the disk of the log is full" in capfd.readouterr().err) is told


@within(30)
async def test_fault_while_a_task_is_settled(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of the library costs one delivery, and no worker."""
    faults = 0

    def not_soon(*_: object) -> bool:
        return False

    def once_wrong(complete: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
        async def broken(*args: object) -> bool:
            nonlocal faults
            faults += 1
            if faults == 1:
                raise ZeroDivisionError
            return await complete(*args)

        return broken

    for kind in (NATSDelivery, _MemoryDelivery):
        monkeypatch.setattr(kind, "complete_soon", not_soon)
        monkeypatch.setattr(kind, "complete", once_wrong(kind.complete))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        result = await dispatcher.run("coder", Message())
        await until(lambda: worker.statistics().in_flight == 0)
    assert (result.status, result.attempt) == (Status.SUCCESS, 2)
    [told] = [record for record in caplog.records if "a fault of trio_swarmtask" in record.message]
    assert result.id in told.message
    assert told.exc_info


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
