"""Closing and shutting down, in every state, on both brokers."""

from __future__ import annotations

import math

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import ClosedError, Message, Status

LONG_BEFORE_THE_LEASE = 5  # seconds; ack_wait is 30


@within(20)
async def test_dispatcher_shutdown_waits_for_what_is_outstanding(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        futures = [await dispatcher.start("coder", Message()) for _ in range(5)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher.shutdown, 10)
            await worker.handle("coder", echo)
        for future in futures:
            assert (await future.wait()).status == Status.SUCCESS
        await dispatcher.shutdown(1)
        await dispatcher.aclose()
        with pytest.raises(ClosedError, match="dispatcher is closed"):
            await dispatcher.start("coder", Message())


@within(20)
async def test_every_shutdown_of_a_dispatcher_ends_with_the_last_result(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
        future = await dispatcher.start("later", Message())
        async with trio.open_nursery() as nursery:
            for patience in (10, 15, math.inf):
                nursery.start_soon(dispatcher.shutdown, patience)
            await trio.testing.wait_all_tasks_blocked()
            await worker.handle("later", echo)
        assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_aclose_ends_a_shutdown(swarm: Swarm) -> None:
    async def shut_down() -> None:
        with pytest.raises(trio.TooSlowError, match="1 tasks were outstanding"):
            await dispatcher.shutdown(math.inf)

    async with swarm.dispatcher() as dispatcher, trio.open_nursery() as nursery:
        await dispatcher.start("coder", Message())
        nursery.start_soon(shut_down)
        await trio.testing.wait_all_tasks_blocked()
        await dispatcher.aclose()


@within(20)
async def test_dispatcher_shutdown_aborts_what_is_left(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        with pytest.raises(trio.TooSlowError, match="1 tasks were outstanding"):
            await dispatcher.shutdown(0.2)
        for _ in range(2):
            with pytest.raises(ClosedError, match="before the result came"):
                await future.wait()
        await dispatcher.shutdown(0.2)  # nothing is left


@within(20)
async def test_leaving_the_dispatchers_block_ends_every_wait(swarm: Swarm) -> None:
    async def wait() -> None:
        with pytest.raises(ClosedError, match="before the result came"):
            await future.wait()

    async with trio.open_nursery() as nursery, swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()


@within(20)
async def test_dispatcher_shutdown_in_a_cancelled_scope_closes(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        with trio.CancelScope() as scope:
            scope.cancel()
            await dispatcher.shutdown(math.inf)
        with pytest.raises(ClosedError, match="before the result came"):
            await future.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await dispatcher.aclose()
        assert scope.cancelled_caught


@within(20)
async def test_idle_worker_closes_at_once_and_again(swarm: Swarm) -> None:
    async with swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.aclose)
            nursery.start_soon(worker.shutdown, 5)
            nursery.start_soon(worker.aclose)
        await worker.shutdown(5)
        await worker.aclose()
        await worker.shutdown(0)
        with pytest.raises(ClosedError, match="worker is closed"):
            await worker.handle("other", echo)


@within(20)
async def test_shutdown_at_once_of_an_idle_worker_cuts_nothing_short(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
        await swarm.wait_until_empty()
        await worker.shutdown(0)
        await worker.shutdown(-1)


@within(20)
async def test_leaving_the_workers_block_lets_handlers_finish(swarm: Swarm) -> None:
    started = trio.Event()

    async def slow(message: Message) -> str:
        started.set()
        await trio.sleep(0.3)
        return "finished"

    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", slow, max_in_flight=1)
            future = await dispatcher.start("coder", Message())
            await dispatcher.start("coder", Message())
            await started.wait()
        assert worker.statistics().succeeded == 1
        assert worker.statistics().in_flight == 0
        assert (await future.wait()).outputs == "finished"
        assert await swarm.count_tasks() == 1  # it asked for no more


@within(30)
async def test_shutdown_gives_back_what_is_left(swarm: Swarm) -> None:
    started = trio.Event()
    cleaned_up = []

    async def endless(message: Message) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(0.2, shield=True):
                await trio.sleep(0.1)
                cleaned_up.append(message.id)

    async with swarm.dispatcher() as dispatcher, swarm.worker(name="a") as worker:
        await worker.handle("coder", endless)
        future = await dispatcher.start("coder", Message())
        await started.wait()
        with pytest.raises(trio.TooSlowError, match=r"after 0\.2 seconds"):
            await worker.shutdown(0.2)
        assert cleaned_up == [future.id]
        assert worker.statistics().given_back == 1
        await worker.shutdown(0.2)
        async with swarm.worker(name="b") as other:
            await other.handle("coder", echo)
            with trio.fail_after(LONG_BEFORE_THE_LEASE):
                result = await future.wait()
    assert (result.agent, result.attempt) == ("b", 2)


@pytest.mark.parametrize("way", ["exception", "cancellation", "cancelled aclose"])
@within(30)
async def test_worker_that_is_cut_short_gives_back_at_once(swarm: Swarm, way: str) -> None:
    started = trio.Event()
    error = RuntimeError("boom")

    async def endless(message: Message) -> None:
        started.set()
        await trio.sleep_forever()

    async def cut() -> None:
        with trio.CancelScope() as scope:
            async with swarm.worker() as worker:
                await worker.handle("coder", endless)
                await started.wait()
                if way == "exception":
                    raise error
                scope.cancel()
                if way == "cancellation":
                    await trio.sleep_forever()
                await worker.aclose()

    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        if way == "exception":
            with pytest.raises(RuntimeError, match="boom") as raised:
                await cut()
            assert raised.value is error
            assert error.__context__ is None
        else:
            await cut()
        async with swarm.worker() as other:
            await other.handle("coder", echo)
            with trio.fail_after(LONG_BEFORE_THE_LEASE):
                assert (await future.wait()).attempt == 2


@within(30)
async def test_exceptions_leave_both_blocks_as_they_were(swarm: Swarm) -> None:
    group = ExceptionGroup("mine", [ValueError("one"), KeyError("two")])
    with pytest.RaisesGroup(ValueError, KeyError) as raised:
        async with swarm.dispatcher(), swarm.worker() as worker:
            await worker.handle("coder", echo)
            raise group
    assert raised.value is group
    with trio.CancelScope() as scope:
        async with swarm.dispatcher(), swarm.worker() as worker:
            await worker.handle("coder", echo)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


@within(60)
async def test_eight_clean_shutdowns_make_no_dead_letter(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        for _ in range(8):
            started = trio.Event()

            async def endless(message: Message, started: trio.Event = started) -> None:
                started.set()
                await trio.sleep_forever()

            async with swarm.worker(max_deliveries=5) as worker:
                await worker.handle("coder", endless)
                with trio.fail_after(LONG_BEFORE_THE_LEASE):
                    await started.wait()
                with pytest.raises(trio.TooSlowError):
                    await worker.shutdown(0)
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            result = await future.wait()
    assert (result.status, result.attempt) == (Status.SUCCESS, 9)
    assert await swarm.dead_letters() == {}


@within(20)
async def test_handler_that_stumbles_when_cut_short_is_given_back(swarm: Swarm) -> None:
    started = trio.Event()

    async def stumble(message: Message) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("could not clean up")

    async with swarm.dispatcher() as dispatcher:
        async with swarm.worker() as worker:
            await worker.handle("coder", stumble)
            future = await dispatcher.start("coder", Message())
            await started.wait()
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0.1)
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS
