"""Tasks that are tried again after a failure, on both brokers."""

from __future__ import annotations

import itertools
import math
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Handler, Message, Result, Retry, RetryTask, Status, TaskState
from trio_swarmtask._abc import Delivery
from trio_swarmtask._jetstream._delivery import NATSDelivery
from trio_swarmtask._memory._queue import _MemoryDelivery

if TYPE_CHECKING:
    from collections.abc import Callable

THREE = Message(max_attempts=3)
SOON = Retry(first_delay=0.01)


class Flaky:
    """A handler that fails so many times, or for ever, and then succeeds."""

    def __init__(self, failures: float, make: Callable[[], Exception] = ConnectionError) -> None:
        self.calls = 0
        self._failures = failures
        self._make = make

    async def __call__(self, message: Message) -> str:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._make()
        return "done"


async def run_with(swarm: Swarm, handler: Handler, message: Message, retry: Retry | None) -> Result:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler, retry=retry)
        result = await dispatcher.run("coder", message)
    assert await swarm.count_tasks() == 0
    return result


@within(20)
async def test_failure_is_tried_again(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    handler = Flaky(2, lambda: ConnectionError("busy"))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler, retry=SOON)
        result = await dispatcher.run("coder", THREE)
        await swarm.wait_until_empty()
        statistics = worker.statistics()
    assert (result.outputs, result.attempt, handler.calls) == ("done", 3, 3)
    assert (statistics.retried, statistics.failed, statistics.succeeded) == (2, 0, 1)
    warnings = [record for record in caplog.records if record.name == "trio_swarmtask.worker"]
    assert [record.levelname for record in warnings] == ["WARNING", "WARNING"]
    assert "attempt 1 of 3 at task" in warnings[0].message
    assert warnings[0].message.endswith("seconds: busy")


@within(5)
async def test_no_delay_at_all(swarm: Swarm) -> None:
    """The task comes again once its worker has let go of it, and not when its lease lapses."""
    handler = Flaky(2, lambda: RetryTask(delay=0))
    result = await run_with(swarm, handler, THREE, None)
    assert (result.outputs, result.attempt) == ("done", 3)


@within(20)
async def test_last_failure_is_the_result(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    handler = Flaky(9, lambda: ValueError(f"failure {handler.calls}"))
    result = await run_with(swarm, handler, THREE, SOON)
    assert (result.status, result.error, result.attempt) == (Status.FAILED, "failure 3", 3)
    assert handler.calls == 3
    assert caplog.records[-1].levelname == "ERROR"
    assert caplog.records[-1].exc_info is not None


@pytest.mark.parametrize("attempts", [0, 1])
@within(20)
async def test_message_that_allows_no_other_attempt(swarm: Swarm, attempts: int) -> None:
    handler = Flaky(9, lambda: RetryTask("later, please", delay=0))
    result = await run_with(swarm, handler, Message(max_attempts=attempts), SOON)
    assert (result.error, handler.calls) == ("later, please", 1)


@within(20)
async def test_message_that_has_had_attempts_before(swarm: Swarm) -> None:
    handler = Flaky(9)
    result = await run_with(swarm, handler, Message(attempt=4, max_attempts=5), SOON)
    assert (result.attempt, handler.calls) == (5, 2)


@pytest.mark.parametrize(
    ("on", "calls"),
    [
        (ConnectionError, 3),
        ((KeyError, OSError), 3),
        ((), 1),
        (KeyError, 1),
        (lambda exc: "busy" in str(exc), 3),
        (lambda exc: "broken" in str(exc), 1),
        (lambda exc: exc.nothing, 1),
        (lambda exc: sys.exit(3), 1),
    ],
)
@within(20)
async def test_what_is_worth_another_attempt(swarm: Swarm, on: type[Exception], calls: int) -> None:
    handler = Flaky(9, lambda: ConnectionError("busy"))
    result = await run_with(swarm, handler, THREE, Retry(on=on, first_delay=0.01))
    assert (result.status, handler.calls) == (Status.FAILED, calls)


@pytest.mark.parametrize(("other", "calls"), [(OSError(), 3), (KeyError(), 1), (RetryTask(), 3)])
@within(20)
async def test_group_of_failures(swarm: Swarm, other: Exception, calls: int) -> None:
    """Each one must be worth it."""
    handler = Flaky(9, lambda: ExceptionGroup("two", [ConnectionError(), other]))
    await run_with(swarm, handler, THREE, Retry(on=OSError, first_delay=0.01))
    assert handler.calls == calls


@within(20)
async def test_handler_asks_for_it_itself(swarm: Swarm) -> None:
    """Without any `Retry`; and it says when."""
    times = []

    async def ask(message: Message) -> str:
        times.append(trio.current_time())
        if len(times) == 1:
            raise RetryTask("not yet", delay=0.3)
        return "done"

    result = await run_with(swarm, ask, THREE, None)
    assert result.outputs == "done"
    assert 0.3 <= times[1] - times[0] < 2


@within(20)
async def test_delays_grow(swarm: Swarm) -> None:
    times = []

    async def fail(message: Message) -> None:
        times.append(trio.current_time())
        raise ConnectionError

    retry = Retry(first_delay=0.2, max_delay=0.4)
    await run_with(swarm, fail, Message(max_attempts=4), retry)
    first, second, third = (later - time for time, later in itertools.pairwise(times))
    assert 0.1 <= first < 0.2 + 0.5
    assert 0.2 <= second < 0.4 + 0.5
    assert 0.2 <= third < 0.4 + 0.5


@pytest.mark.parametrize(("timeouts", "calls"), [(False, 1), (True, 2)])
@within(20)
async def test_timeout_counts_only_if_asked(swarm: Swarm, timeouts: bool, calls: int) -> None:
    started = []

    async def sleep(message: Message) -> None:
        started.append(message.id)
        await trio.sleep_forever()

    message = Message(max_attempts=2, timeout=1)
    result = await run_with(swarm, sleep, message, Retry(first_delay=0.01, timeouts=timeouts))
    assert (result.status, len(started)) == (Status.TIMEOUT, calls)


@within(20)
async def test_deadline_that_the_next_attempt_would_miss(swarm: Swarm) -> None:
    handler = Flaky(9, lambda: RetryTask("busy", delay=60))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        with trio.fail_after(5):
            async with dispatcher.open_group(on_failure="collect") as group:
                result = await group.run("coder", THREE)
    assert (result.error, handler.calls) == ("busy", 1)


@within(20)
async def test_worker_is_gone_between_attempts(swarm: Swarm) -> None:
    """The next one is made by another worker, which may be of a version that knows no retries."""
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            handler = Flaky(9)
            await worker.handle("coder", handler, retry=Retry(first_delay=0.5))
            future = await dispatcher.start("coder", THREE)
            await until(lambda: worker.statistics().retried)
        async with swarm.worker() as worker:
            await worker.handle("coder", Flaky(1, lambda: ValueError("no luck")))
            result = await future.wait()
    assert (result.error, result.attempt, handler.calls) == ("no luck", 2, 1)


@within(20)
async def test_clean_shutdown_is_no_attempt(swarm: Swarm) -> None:
    handler = Flaky(9)
    async with swarm.dispatcher() as dispatcher, AsyncExitStack() as stack:
        worker = await stack.enter_async_context(swarm.worker())
        started = trio.Event()

        async def stay(message: Message) -> None:
            started.set()
            await trio.sleep_forever()

        await worker.handle("coder", stay)
        future = await dispatcher.start("coder", Message(max_attempts=2))
        await started.wait()
        with pytest.raises(trio.TooSlowError):
            await worker.shutdown(0)
        other = await stack.enter_async_context(swarm.worker())
        await other.handle("coder", handler, retry=SOON)
        await future.wait()
    assert handler.calls == 2


@within(30)
async def test_retries_make_no_dead_letter(swarm: Swarm) -> None:
    handler = Flaky(5)
    async with swarm.dispatcher() as dispatcher, swarm.worker(max_deliveries=2) as worker:
        await worker.handle("coder", handler, retry=Retry(first_delay=0.01, max_delay=0.01))
        result = await dispatcher.run("coder", Message(max_attempts=9))
    assert (result.outputs, handler.calls) == ("done", 6)
    assert await swarm.dead_letters() == {}


@within(20)
async def test_delay_without_an_end(swarm: Swarm) -> None:
    """It is no reason to try again at once."""
    handler = Flaky(math.inf, lambda: RetryTask(delay=1e300))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        await worker.handle("other", Flaky(0))
        future = await dispatcher.start("coder", THREE)
        await until(lambda: worker.statistics().retried == 1)
        for _ in range(3):  # time for a delivery that would come
            await dispatcher.run("other", Message())
        assert (handler.calls, worker.statistics().deliveries) == (1, 4)
        await future.cancel()


@within(20)
async def test_cancelled_between_attempts(swarm: Swarm) -> None:
    """Nobody has it then, and that is known at once."""
    handler = Flaky(9, lambda: RetryTask(delay=10))
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        begun = trio.current_time()
        async with dispatcher.open_group() as group:
            future = await group.start("coder", THREE)
            await until(lambda: worker.statistics().retried)
            group.cancel_scope.cancel()
        assert trio.current_time() - begun < 1.5
        assert future.state == TaskState.STOPPED
        assert future.result.cancelled_by
    assert handler.calls == 1
    assert await swarm.count_tasks() == 0


@within(20)
async def test_cancelled_while_it_fails(swarm: Swarm) -> None:
    """A failure of the clean-up asks for no other attempt."""
    started = trio.Event()
    calls = []

    async def stumble(message: Message) -> None:
        calls.append(message.id)
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            raise ConnectionError

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", stumble, retry=SOON)
        future = await dispatcher.start("coder", THREE)
        await started.wait()
        await future.cancel()
        await swarm.wait_until_empty()
    assert len(calls) == 1


@within(20)
async def test_retry_that_can_not_be_one(swarm: Swarm) -> None:
    async with swarm.worker() as worker:
        with pytest.raises(TypeError, match="retry must be a Retry, not 3"):
            await worker.handle("coder", Flaky(1), retry=3)  # type: ignore[arg-type]  # the point


async def lose(swarm: Swarm, count: int) -> None:
    """Take a task, and let its lease lapse, as a worker that dies does, so many times."""
    send, receive = trio.open_memory_channel[Delivery](10)
    async with (
        swarm.open() as broker,
        broker.open_intake("coder", each(send.send_nowait)) as intake,
    ):
        for _ in range(count):
            intake.ask(1)
            delivery = await receive.receive()
            await trio.sleep_until(delivery.lease_until)


@pytest.mark.parametrize("attempts", [1, 2])
@within(20)
async def test_last_attempt_that_was_lost_is_the_end(swarm: Swarm, attempts: int) -> None:
    swarm.configure(ack_wait=1)
    handler = Flaky(0)
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(max_attempts=attempts))
        await lose(swarm, attempts)
        async with swarm.worker() as worker:
            await worker.handle("coder", handler, retry=SOON)
            result = await future.wait()
            await until(lambda: worker.statistics().failed == 1)
    assert handler.calls == 0
    assert (result.status, result.attempt) == (Status.FAILED, attempts)
    assert result.error.startswith(f"attempt {attempts} of {attempts} was the last, and was lost")
    await swarm.wait_until_empty()


@pytest.mark.parametrize("attempts", [0, 3])
@within(20)
async def test_attempt_that_was_lost_is_followed_by_another(swarm: Swarm, attempts: int) -> None:
    """Where the message leaves one, or does not say."""
    swarm.configure(ack_wait=1)
    handler = Flaky(0)
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(max_attempts=attempts))
        await lose(swarm, 2)
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            assert (await future.wait()).status == Status.SUCCESS
    assert handler.calls == 1


@within(20)
async def test_broker_that_is_early_is_waited_for(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is killed forgets the delay of what was put back."""
    handler = Flaky(1)
    rests = [1.0, 0.05]

    async def rests_for(_: Delivery) -> float:
        return rests.pop(0)

    for kind in (_MemoryDelivery, NATSDelivery):
        monkeypatch.setattr(kind, "rests_for", rests_for)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler, retry=Retry(first_delay=0, max_delay=0))
        began = trio.current_time()
        result = await dispatcher.run("coder", Message(max_attempts=2))
        assert trio.current_time() - began >= 1.05
        assert worker.statistics().given_back == 1
    assert (result.status, handler.calls, rests) == (Status.SUCCESS, 2, [])
