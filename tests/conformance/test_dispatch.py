"""Sending a task and getting its result back, on both brokers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import (
    ClosedError,
    Future,
    InvalidCapabilityError,
    InvalidMessageError,
    Message,
    Status,
    UnsupportedVersionError,
    open_broker,
)


@within(20)
async def test_run_gives_the_stored_result(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker(name="w1") as worker:
        await worker.handle("coder", echo)
        message = Message(inputs={"goal": "fix it"}, correlation_id="c-1")
        result = await dispatcher.run("coder", message)
        assert (result.status, result.outputs) == (Status.SUCCESS, {"goal": "fix it"})
        assert (result.agent, result.attempt, result.correlation_id) == ("w1", 1, "c-1")
        assert result.completed_at is not None
        assert result.completed_at.tzinfo is not None
        assert message.id == ""  # the caller's is not changed
        await swarm.wait_until_empty()


@within(20)
async def test_start_fills_blanks_and_keeps_what_is_given(swarm: Swarm) -> None:
    seen: list[Message] = []

    async def remember(message: Message) -> None:
        seen.append(message)

    async with swarm.dispatcher(name="planner") as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", remember)
        result = await dispatcher.run("coder", Message())
        then = datetime(2026, 4, 19, tzinfo=UTC)
        message = Message(
            id="mine", submitted_by="somebody", tags=["a"], created_at=then, submitted_at=then
        )
        await dispatcher.run("coder", message)
    blank, given = seen
    assert blank.id == result.id
    assert blank.submitted_by == "planner"
    assert blank.created_at == blank.submitted_at is not None
    assert given == message
    assert result.outputs is None


@within(20)
async def test_task_waits_for_a_worker(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        assert dispatcher.statistics().outstanding == 1
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_wait_again_and_from_many_tasks_gives_the_same_result(swarm: Swarm) -> None:
    results = []

    async def wait(future: Future) -> None:
        results.append(await future.wait())

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message())
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait, future)
            await worker.handle("coder", echo)
    results.append(await future.wait())  # also after the dispatcher was closed
    assert len({id(result) for result in results}) == 1


@within(20)
async def test_result_that_came_while_nobody_waited_is_there(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        first = await dispatcher.start("coder", Message())
        await dispatcher.run("coder", Message())
        while dispatcher.statistics().outstanding:
            await dispatcher.run("coder", Message())
        assert (await first.wait()).status == Status.SUCCESS


@within(30)
async def test_callers_deadline_loses_nothing(swarm: Swarm) -> None:
    go_on = trio.Event()

    async def slow(message: Message) -> str:
        await go_on.wait()
        return "done"

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", slow)
        future = await dispatcher.start("coder", Message())
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(0.1):
                await future.wait()
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(0.3):
                await dispatcher.run("coder", Message(id="forgotten"))
        assert dispatcher.statistics().outstanding == 1  # run's future is given up
        go_on.set()
        assert (await future.wait()).outputs == "done"
        again = await dispatcher.run("coder", Message(id="forgotten"))
        assert again.outputs == "done"


@within(60)
async def test_thousand_starts_at_once(swarm: Swarm) -> None:
    futures = []

    async def start(number: int) -> None:
        futures.append(await dispatcher.start("coder", Message(inputs={"n": str(number)})))

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(start, number)
        results = [await future.wait() for future in futures]
    assert len({result.id for result in results}) == 1000
    assert {result.outputs["n"] for result in results} == {str(n) for n in range(1000)}


@within(60)
async def test_fifty_dispatchers_see_their_own_results_only(swarm: Swarm) -> None:
    async def dispatch(number: int) -> None:
        async with swarm.dispatcher(name=f"d{number}") as dispatcher:
            for _ in range(3):
                result = await dispatcher.run("coder", Message(inputs={"n": str(number)}))
                assert result.outputs == {"n": str(number)}
            assert dispatcher.statistics().resolved == 3

    async with swarm.worker() as worker:
        await worker.handle("coder", echo)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(dispatch, number)


@within(20)
async def test_roles_share_one_open_broker(swarm: Swarm) -> None:
    async with swarm.open() as broker:
        swarm.broker = broker
        async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
        async with swarm.dispatcher() as dispatcher:
            await dispatcher.start("coder", Message())


@pytest.mark.parametrize(
    "capability", ["", "a.b", "a b", "*", ">", "a\n", "ü", "x" * 65, "\x00", 7, None]
)
@within(20)
async def test_capability_of_another_form_is_refused(swarm: Swarm, capability: str) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        with pytest.raises(InvalidCapabilityError, match="1 to 64 letters") as raised:
            await dispatcher.run(capability, Message())
        assert repr(capability)[:60] in str(raised.value)
        with pytest.raises(InvalidCapabilityError, match="1 to 64 letters"):
            await worker.handle(capability, echo)


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (Message(id="a.b"), "a.b"),
        (Message(id="a b"), "a b"),
        (Message(id="*"), "*"),
        (Message(id="x" * 129), "x" * 100),
        (Message(id=7), "7"),  # type: ignore[arg-type]  # wrong on purpose
        (Message(id=None), "None"),  # type: ignore[arg-type]  # wrong on purpose
        (Message(inputs={"a": 1}), "inputs"),  # type: ignore[dict-item]  # wrong on purpose
        (Message(timeout=-1), "timeout"),
        (Message(submitted_by=None), "submitted_by"),  # type: ignore[arg-type]  # wrong on purpose
        ({"inputs": {}}, "inputs"),
    ],
)
@within(20)
async def test_invalid_message_is_refused_by_its_value(
    swarm: Swarm, message: Message, value: str
) -> None:
    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(InvalidMessageError) as raised:
            await dispatcher.start("coder", message)
        assert value in str(raised.value)
        assert dispatcher.statistics().outstanding == 0


@within(20)
async def test_message_larger_than_the_broker_takes_is_refused(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        with pytest.raises(InvalidMessageError, match=r"larger than the \d+ that the"):
            await dispatcher.run("coder", Message(inputs={"a": "x" * 1024 * 1024}))
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@within(20)
async def test_unreadable_and_newer_results_leave_no_waiter(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        broken = await dispatcher.start("coder", Message())
        newer = await dispatcher.start("coder", Message())
        await swarm.store_result(broken.id, b"\xff not JSON")
        await swarm.store_result(newer.id, b'{"version":2}')
        result = await broken.wait()
        assert result.status == Status.FAILED
        assert "can't be read" in result.error
        for _ in range(2):
            with pytest.raises(UnsupportedVersionError, match="version 2"):
                await newer.wait()


@within(20)
async def test_closed_dispatcher_refuses_work(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher:
        await dispatcher.aclose()
        with pytest.raises(ClosedError, match="the dispatcher is closed"):
            await dispatcher.run("coder", Message())


async def test_open_broker_is_for_servers() -> None:
    with pytest.raises(TypeError, match="can't be a broker"):
        async with open_broker(7):  # type: ignore[arg-type]  # wrong on purpose
            pass
