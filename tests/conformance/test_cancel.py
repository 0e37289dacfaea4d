"""Cancelling a task from afar, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from swarm import Swarm, echo, until, within

from trio_swarmtask import (
    ClosedError,
    InvalidMessageError,
    Message,
    NATSConfig,
    Result,
    Status,
    TaskCancelledError,
    TaskFailedError,
    _service,
)
from trio_swarmtask._broker import NewTask
from trio_swarmtask._cancelled import encode_cancelled
from trio_swarmtask._memory_queue import _MemoryDelivery
from trio_swarmtask._nats._delivery import NATSDelivery

if TYPE_CHECKING:
    from trio_swarmtask._broker import Delivery


class Handler:
    """Waits until it is cancelled, and cleans up for so many seconds."""

    def __init__(self, clean_up: float = 0) -> None:
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.calls = 0
        self.clean_ups = 0
        self._clean_up = clean_up

    async def __call__(self, message: Message) -> None:
        self.calls += 1
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()
            with trio.move_on_after(self._clean_up + 1, shield=True):
                await trio.sleep(self._clean_up)
                self.clean_ups += 1


@within(20)
async def test_worker_that_is_closing_hears_of_it(swarm: Swarm) -> None:
    handler = Handler()
    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", handler)
            future = await dispatcher.start("coder", Message())
            await handler.started.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.shutdown, 10)
                await until(worker._pulls_ended.is_set)
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
    handler = Handler()
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
            assert not await outbox.store_result("mine", b"late")


@within(20)
async def test_cancelled_twice_and_by_two(swarm: Swarm) -> None:
    handler = Handler()
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
    handler = Handler(clean_up=0.3)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        assert await dispatcher._futures.cancel(future, 10)
        assert handler.clean_ups == 1


@within(20)
async def test_clean_up_that_takes_too_long_is_told(swarm: Swarm) -> None:
    handler = Handler(clean_up=3)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        assert not await dispatcher._futures.cancel(future, 0.1)
        assert handler.clean_ups == 0


@within(20)
async def test_task_that_never_ran_needs_no_worker_to_say_so(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        assert await dispatcher._futures.cancel(future, 10)


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
        assert await dispatcher._futures.cancel(future, 10)
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
    handler = Handler()
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
    handler = Handler()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message(id="mine"))
        assert await dispatcher.start("tester", Message(id="mine")) is future
        await handler.started.wait()
        assert await dispatcher._futures.cancel(future, 10)
        assert handler.clean_ups == 1


@within(20)
async def test_cancelling_does_not_outlive_the_dispatcher(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
    with pytest.raises(ClosedError):
        await future.cancel()
    assert await swarm.count_tasks() == 1


@within(20)
async def test_result_of_another_ends_a_handler_that_runs_on(swarm: Swarm) -> None:
    """Though nobody tells it: its worker looks, in each round of renewal."""
    handler = Handler()
    swarm.configure(ack_wait=1)
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        future = await dispatcher.start("coder", Message())
        await handler.started.wait()
        stored = Result(id=future.id, status=Status.SUCCESS, outputs="theirs", agent="w")
        async with swarm.outbox() as outbox:
            assert await outbox.store_result(future.id, stored.encode())
        await handler.cancelled.wait()
        await until(lambda: worker.statistics().in_flight == 0)
        assert worker.statistics().cancelled == 1
        assert (await future.wait()).outputs == "theirs"


@within(20)
async def test_push_that_is_ahead_of_its_task(swarm: Swarm) -> None:
    """The worker looks before it starts it: it may be a task that goes on, too."""
    handler = Handler()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        await worker.handle("tester", echo)
        cancelled = Result(id="t1", status=Status.FAILED, error="cancelled", agent="boss")
        async with swarm.outbox() as outbox:
            await outbox.stop("coder", "t1", 0, due=True)
            await outbox.stop("tester", "t2", 0, due=True)
            await outbox.store_result("t1", cancelled.encode())
            await outbox.store(NewTask("coder", "t1", Message(id="t1").encode()))
            await swarm.wait_until_empty()
            assert handler.calls == 0
        assert (await dispatcher.run("tester", Message(id="t2"))).status == Status.SUCCESS


@within(20)
async def test_cancelled_while_its_result_is_looked_for(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its arrival and its handler: it is neither started nor given back."""
    looking = trio.Event()

    def be_slow_once(kind: type[Delivery]) -> None:
        is_done = kind.is_done

        async def look(delivery: Delivery) -> bool:
            if not looking.is_set():
                looking.set()
                await trio.sleep_forever()
            return await is_done(delivery)

        monkeypatch.setattr(kind, "is_done", look)

    be_slow_once(NATSDelivery)
    be_slow_once(_MemoryDelivery)
    handler = Handler()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", handler)
        async with swarm.outbox() as outbox:
            await outbox.stop("coder", "t1", 0, due=True)  # so that it is looked for at all
        future = await dispatcher.start("coder", Message(id="t1"))
        await looking.wait()
        assert await dispatcher._futures.cancel(future, 10)
        await until(lambda: worker.statistics().in_flight == 0)
        assert worker.statistics().given_back == 0
        assert handler.calls == 0


@within(20)
async def test_push_that_comes_after_the_end(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canceller's result was first, and the handler had ended before it was told."""
    monkeypatch.setattr(_service, "_REMEMBERED", 1)
    go_on = trio.Event()

    async def wait(message: Message) -> None:
        await go_on.wait()

    async with (
        swarm.dispatcher() as dispatcher,
        swarm.worker() as worker,
        swarm.outbox() as outbox,
    ):
        await worker.handle("coder", wait)
        for name in ("t1", "t2"):
            await dispatcher.start("coder", Message(id=name))
        await until(lambda: worker.statistics().in_flight == 2)
        for name in ("t1", "t2"):
            await outbox.store_result(name, encode_cancelled(name, "boss"))
        go_on.set()
        await until(lambda: worker.statistics().superseded == 2)
        # One of them is remembered, and there is no room for more.
        answers = [await outbox.stop("coder", name, 2, due=True) for name in ("t1", "t2")]
        assert sum(answers) == (1 if isinstance(swarm.broker, NATSConfig) else 2)


@within(20)
async def test_pushes_ahead_of_their_tasks_fill_no_memory(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_service, "_REMEMBERED", 1)
    async with swarm.worker() as worker, swarm.outbox() as outbox:
        await worker.handle("coder", echo)
        for name in ("t1", "t2"):
            await outbox.stop("coder", name, 0, due=True)
        await until(lambda: len(worker._services["coder"]._early) == 1)  # type: ignore[union-attr,arg-type]


# Attaching, forgetting


@within(20)
async def test_attach_to_a_task_of_another(swarm: Swarm) -> None:
    async with swarm.dispatcher() as one, swarm.dispatcher() as two, swarm.worker() as worker:
        future = await one.start("coder", Message(inputs={"a": "b"}))
        early = await two.attach(future.id)
        assert early.id == future.id
        await worker.handle("coder", echo)
        assert (await early.wait()).outputs == {"a": "b"}
        late = await two.attach(future.id)
        assert await late.wait() == await future.wait()
        assert two.statistics().outstanding == 0


@within(20)
async def test_attach_to_what_can_not_be(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(InvalidMessageError, match="a task"):
            await dispatcher.attach("a task")
        with trio.CancelScope() as scope:
            scope.cancel()
            await dispatcher.attach("t1")
        assert dispatcher.statistics().outstanding == 0
    with pytest.raises(ClosedError):
        await dispatcher.attach("t1")


@within(20)
async def test_forgotten_task_goes_on(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message(id="mine"))
        assert await dispatcher.attach("mine") is future
        dispatcher.forget(future)
        assert dispatcher.statistics().outstanding == 1
        dispatcher.forget(future)
        assert dispatcher.statistics().outstanding == 0
        dispatcher.forget(future)  # nothing is left to forget
        with pytest.raises(ClosedError, match="task mine was forgotten"):
            await future.wait()
        await worker.handle("coder", echo)
        await swarm.wait_until_empty()
        assert worker.statistics().succeeded == 1
