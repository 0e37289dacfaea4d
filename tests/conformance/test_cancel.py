"""Cancelling a task from afar, on both brokers."""

from __future__ import annotations

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from tests._helpers.handlers import Waiting
from trio_swarmtask import (
    ClosedError,
    Message,
    Result,
    Status,
    TaskCancelledError,
    TaskFailedError,
)


@within(20)
async def test_worker_that_is_closing_hears_of_it(swarm: Swarm) -> None:
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            future = await dispatcher.start("coder", Message())
            await handler.started.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.shutdown, 10)
                await until(worker._closing.pulls_ended.is_set)
                begun = trio.current_time()
                await future.cancel()
                await handler.cancelled.wait()
                assert trio.current_time() - begun < 2
        assert (await future.wait()).cancelled_by


@within(20)
async def test_waiting_task_is_taken_out_of_the_queue(swarm: Swarm) -> None:
    async with swarm.dispatcher(name="boss") as dispatcher:
        future = await dispatcher.start("coder", Message(inputs={"goal": "none"}))
        await future.cancel()
        assert await swarm.count_tasks() == 0
        result = await future.wait()
        assert result.status == Status.FAILED
        assert result.cancelled_by == result.agent == "boss"
        assert result.completed_at is not None
        with pytest.raises(
            TaskCancelledError, match=f"{future.id} was cancelled by boss"
        ) as caught:
            result.raise_for_status()
        assert isinstance(caught.value, TaskFailedError)
        assert await swarm.stored_result(future.id) == result.encode()
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
            await until(lambda: worker.statistics().succeeded == 1)


@within(20)
async def test_both_copies_of_a_task_are_taken_out_of_the_queue(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(id="mine"))
        await swarm.store_again("coder", "mine", Message(id="mine").encode())
        assert await swarm.count_tasks() == 2
        await future.cancel()
        assert await swarm.count_tasks() == 0


@within(20)
async def test_running_handler_is_cancelled(swarm: Swarm) -> None:
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        await future.cancel()
        await handler.cancelled.wait()
        assert (await future.wait()).cancelled_by
        await until(lambda: worker.statistics().in_flight == 0)
        statistics = worker.statistics()
        assert (statistics.cancelled, statistics.failed, statistics.given_back) == (1, 0, 0)
        assert await swarm.count_tasks() == 0
        assert handler.calls == 1


@within(20)
async def test_finished_task_keeps_its_result(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        future = await dispatcher.start("coder", Message(inputs={"a": "b"}))
        result = await future.wait()
        await future.cancel()
        assert await future.wait() == result
        assert worker.statistics().cancelled == 0


@within(20)
async def test_task_that_ended_unheard_keeps_its_result(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(id="mine"))
        stored = Result(id="mine", status=Status.SUCCESS, outputs="theirs", agent="w")
        async with swarm.outbox() as outbox:
            await outbox.store_result("mine", stored.encode())
            await future.cancel()
            assert (await future.wait()).outputs == "theirs"
            assert await outbox.store_result("mine", b"late") == stored.encode()


@within(20)
async def test_cancelled_twice_and_by_two(swarm: Swarm) -> None:
    handler = Waiting()
    async with (
        swarm.dispatcher(name="one") as one,
        swarm.dispatcher(name="two") as two,
        swarm.worker() as worker,
    ):
        await worker.handle("coder", handler)
        future = await one.start("coder", Message())
        await handler.started.wait()
        other = await two.attach(future.id)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(future.cancel)
                nursery.start_soon(other.cancel)
        result = await future.wait()
        assert result.cancelled_by in ("one", "two")
        assert await other.wait() == result
        await handler.cancelled.wait()
        assert handler.calls == 1


@within(20)
async def test_clean_up_is_waited_for(swarm: Swarm) -> None:
    handler = Waiting(clean_up=0.3)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        assert await dispatcher._core.futures.cancel(future, 10)
        assert handler.clean_ups == 1


@within(20)
async def test_clean_up_that_takes_too_long_is_told(swarm: Swarm) -> None:
    handler = Waiting(clean_up=3)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        assert not await dispatcher._core.futures.cancel(future, 0.1)
        assert handler.clean_ups == 0


@within(20)
async def test_task_that_never_ran_needs_no_worker_to_say_so(swarm: Swarm) -> None:
    async with swarm.worker() as gone:
        await gone.handle("coder", echo)
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        assert await dispatcher._core.futures.cancel(future, 10)


@within(20)
async def test_one_of_two_copies_that_runs_is_waited_for(swarm: Swarm) -> None:
    """The other one waits behind it, and was never delivered."""
    handler = Waiting(clean_up=0.3)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler, max_in_flight=1)
        future = await dispatcher.start("coder", Message(id="mine"))
        await handler.started.wait()
        await swarm.store_again("coder", "mine", Message(id="mine").encode())
        assert await dispatcher._core.futures.cancel(future, 10)
        assert (handler.clean_ups, handler.calls) == (1, 1)
        assert await swarm.count_tasks() == 0


@within(20)
async def test_both_of_two_copies_that_run_are_waited_for(swarm: Swarm) -> None:
    """At two workers, one of which has cleaned up long before the other."""
    quick, slow = Waiting(), Waiting(clean_up=0.5)
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker() as one,
        swarm.worker() as other,
    ):
        await one.handle("coder", quick, max_in_flight=1)
        future = await dispatcher.start("coder", Message(id="mine"))
        await quick.started.wait()
        await other.handle("coder", slow)
        await swarm.store_again("coder", "mine", Message(id="mine").encode())
        await slow.started.wait()
        assert await dispatcher._core.futures.cancel(future, 10)
        assert (quick.clean_ups, slow.clean_ups) == (1, 1)


@within(20)
async def test_handler_that_fails_as_it_is_cancelled(swarm: Swarm) -> None:
    started = trio.Event()

    async def stumble(message: Message) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", stumble)
        future = await dispatcher.start("coder", Message())
        await started.wait()
        assert await dispatcher._core.futures.cancel(future, 10)
        assert (await future.wait()).cancelled_by
        assert worker.statistics().failed == 0


@within(20)
async def test_value_of_a_handler_that_was_cancelled_is_not_the_result(swarm: Swarm) -> None:
    started = trio.Event()

    async def finish(message: Message) -> str:
        started.set()
        with trio.move_on_after(5, shield=True):
            await go_on.wait()
        return "done all the same"

    go_on = trio.Event()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", finish)
        future = await dispatcher.start("coder", Message())
        await started.wait()
        await future.cancel()
        go_on.set()
        await until(lambda: worker.statistics().in_flight == 0)
        assert worker.statistics().cancelled == 1
        assert (await future.wait()).outputs is None


@within(20)
async def test_task_given_back_is_taken_out_of_the_queue(swarm: Swarm) -> None:
    """Its worker has left; nobody else is there to say that it does not run."""
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            future = await dispatcher.start("coder", Message())
            await handler.started.wait()
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        await future.cancel()
        assert await swarm.count_tasks() == 0


@within(20)
async def test_task_with_another_capability_than_named_is_found(swarm: Swarm) -> None:
    """An ID names one task: it runs where it was sent first."""
    handler = Waiting()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message(id="mine"))
        assert await dispatcher.start("tester", Message(id="mine")) is future
        await handler.started.wait()
        assert await dispatcher._core.futures.cancel(future, 10)
        assert handler.clean_ups == 1


@within(20)
async def test_cancelling_does_not_outlive_the_dispatcher(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
    with pytest.raises(ClosedError):
        await future.cancel()
    assert await swarm.count_tasks() == 1
