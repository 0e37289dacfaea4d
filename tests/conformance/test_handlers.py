"""What a handler returns or raises, and what becomes of it, on both brokers."""

from __future__ import annotations

import contextvars
import math
from typing import Any, NoReturn

import msgspec
import pytest
import trio

from tests._helpers.brokers import Swarm, echo, until, within
from trio_swarmtask import Handler, Message, Result, Status


async def ask(swarm: Swarm, handler: Handler, message: Message, **settings: Any) -> Result:
    """What one run of ``handler`` gives; then sees that the worker lives on."""
    async with swarm.dispatcher() as dispatcher, swarm.worker(**settings) as worker:
        await worker.handle("coder", handler)
        await worker.handle("echo", echo)
        result = await dispatcher.run("coder", message)
        assert (await dispatcher.run("echo", Message())).status == Status.SUCCESS
        await swarm.wait_until_empty()
        return result


@pytest.mark.parametrize(
    ("value", "outputs"),
    [
        (None, None),
        ("text", "text"),
        ({"a": [1, 2.5, None]}, {"a": [1, 2.5, None]}),
        (0, 0),
        ({}, {}),
        (b"abc", "YWJj"),
        (math.nan, None),
        ({1}, [1]),
        (Status.TIMEOUT, "timeout"),
    ],
)
@within(20)
async def test_what_json_carries_becomes_outputs(
    swarm: Swarm, value: object, outputs: object
) -> None:
    async def give(message: Message) -> object:
        return value

    result = await ask(swarm, give, Message())
    assert (result.status, result.outputs) == (Status.SUCCESS, outputs)


@within(20)
async def test_result_is_published_with_its_blanks_filled(swarm: Swarm) -> None:
    async def give(message: Message) -> Result:
        return Result(status=Status.FAILED, error="no tokens left", metadata={"model": "m"})

    result = await ask(swarm, give, Message(correlation_id="c", attempt=2), name="w1")
    assert (result.status, result.error) == (Status.FAILED, "no tokens left")
    assert result.metadata == {"model": "m"}
    assert (result.agent, result.attempt, result.correlation_id) == ("w1", 2, "c")


@within(20)
async def test_results_own_fields_are_kept(swarm: Swarm) -> None:
    async def give(message: Message) -> Result:
        return Result(
            id=message.id, status=Status.SUCCESS, agent="me", attempt=9, duration=7, outputs=1
        )

    result = await ask(swarm, give, Message())
    assert (result.agent, result.attempt, result.duration) == ("me", 9, 7)


@within(20)
async def test_result_of_another_task_is_a_failure(swarm: Swarm) -> None:
    async def give(message: Message) -> Result:
        return Result(id="another", status=Status.SUCCESS)

    result = await ask(swarm, give, Message())
    assert result.status == Status.FAILED
    assert "returned a Result of task 'another'" in result.error


@within(20)
async def test_attempt_of_any_size_is_bounded(swarm: Swarm) -> None:
    """A redelivery counts up from it, and Go's integers end."""

    async def stick(message: Message) -> None:
        await trio.sleep_forever()

    async with swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message(attempt=2**63 - 1))
        async with swarm.worker() as worker:
            await worker.handle("coder", stick)
            await until(lambda: worker.statistics().in_flight)
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        async with swarm.worker() as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).attempt == 2**63 - 1


class Unwritable:
    pass


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (Unwritable(), "Unwritable"),
        (Result(status="odd"), "status"),  # type: ignore[arg-type]  # wrong on purpose
        (Result(status=Status.SUCCESS, duration=-1), "duration"),
        ("\ud800", "surrogate"),
        ("x" * 1024 * 1024, "larger than"),
    ],
)
@within(20)
async def test_what_cannot_be_stored_is_a_failure(swarm: Swarm, value: object, error: str) -> None:
    async def give(message: Message) -> object:
        return value

    result = await ask(swarm, give, Message())
    assert result.status == Status.FAILED
    assert error in result.error


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (ValueError("bad goal"), "bad goal"),
        (ValueError(), "ValueError"),
        (trio.TooSlowError(), "TooSlowError"),
        (ExceptionGroup("group", [ValueError("one")]), "one"),
        (ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [KeyError()])]), "a; KeyError"),
        (ValueError("x" * 2_000_000), "x… (2000000 characters)"),
    ],
)
@within(20)
async def test_exception_is_a_failure_with_its_text(
    swarm: Swarm, raised: Exception, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(message: Message) -> NoReturn:
        raise raised

    result = await ask(swarm, fail, Message())
    assert result.status == Status.FAILED
    assert result.error.endswith(error)
    assert "Traceback" not in result.error
    assert caplog.records[0].exc_info is not None


@within(20)
async def test_message_timeout_ends_the_handler(swarm: Swarm) -> None:
    ended = trio.Event()

    async def overrun(message: Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    result = await ask(swarm, overrun, Message(timeout=1))
    assert result.status == Status.TIMEOUT
    assert "1 seconds" in result.error
    assert 1000 <= result.duration < 3000
    assert ended.is_set()


@within(20)
async def test_default_timeout_where_the_message_says_nothing(swarm: Swarm) -> None:
    async def overrun(message: Message) -> None:
        await trio.sleep(0.6 if message.timeout else math.inf)

    assert (await ask(swarm, overrun, Message(), default_timeout=0.2)).status == Status.TIMEOUT
    longer = await ask(swarm, overrun, Message(timeout=5), default_timeout=0.2)
    assert longer.status == Status.SUCCESS


@within(20)
async def test_group_that_leaves_at_the_deadline_is_a_timeout(swarm: Swarm) -> None:
    async def stumble() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("clean-up stumbled")

    async def overrun(message: Message) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stumble)
            nursery.start_soon(trio.sleep_forever)

    result = await ask(swarm, overrun, Message(timeout=1))
    assert result.status == Status.TIMEOUT
    assert result.error.endswith("and raised: clean-up stumbled")


@within(20)
async def test_handler_that_ends_well_at_its_deadline_is_a_success(swarm: Swarm) -> None:
    async def just_in_time(message: Message) -> str:
        with trio.CancelScope() as scope:
            await trio.sleep_forever()
        assert not scope.cancelled_caught
        return "never"

    async def swallow(message: Message) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(1.1)
        return "made it"

    assert (await ask(swarm, just_in_time, Message(timeout=1))).status == Status.TIMEOUT
    result = await ask(swarm, swallow, Message(timeout=1))
    assert (result.status, result.outputs) == (Status.SUCCESS, "made it")


@within(20)
async def test_one_place_serves_one_handler_after_another(swarm: Swarm) -> None:
    """What ended one, its deadline above all, does not reach the next."""

    async def as_told(message: Message) -> str:
        if message.inputs["do"] == "overrun":
            await trio.sleep_forever()
        if message.inputs["do"] == "fail":
            raise ValueError("as told")
        await trio.sleep(0.01)
        return "done"

    orders = ["end", "overrun", "end", "fail", "overrun", "overrun", "end"]
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", as_told, max_in_flight=1)
        ended = [
            (await dispatcher.run("coder", Message(inputs={"do": do}, timeout=1))).status
            for do in orders
        ]
        untimed = await dispatcher.run("coder", Message(inputs={"do": "end"}))
    kinds = {"end": Status.SUCCESS, "overrun": Status.TIMEOUT, "fail": Status.FAILED}
    assert ended == [kinds[do] for do in orders]
    assert untimed.status == Status.SUCCESS


@pytest.mark.parametrize("in_group", [False, True])
@within(20)
async def test_interrupt_leaves_the_block_as_itself(swarm: Swarm, in_group: bool) -> None:
    async def interrupted(message: Message) -> NoReturn:
        error = KeyboardInterrupt()
        if in_group:
            raise BaseExceptionGroup("group", [ValueError(), error])
        raise error

    async with swarm.dispatcher() as dispatcher:
        with pytest.raises(KeyboardInterrupt):
            async with swarm.worker() as worker:
                await worker.handle("coder", interrupted)
                future = await dispatcher.start("coder", Message())
                await trio.sleep_forever()
        async with swarm.worker() as worker:  # the task was given back
            await worker.handle("coder", echo)
            assert (await future.wait()).status == Status.SUCCESS


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@within(20)
async def test_handlers_have_the_context_of_handle_each_a_copy(swarm: Swarm) -> None:
    async def look(message: Message) -> str:
        before = variable.get()
        variable.set("leaked")
        return before

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        variable.set("of handle")
        await worker.handle("coder", look)
        variable.set("later")
        outputs = [(await dispatcher.run("coder", Message())).outputs for _ in range(3)]
    assert outputs == ["of handle"] * 3


@within(20)
async def test_chain_carries_prior_results(swarm: Swarm) -> None:
    class Plan(msgspec.Struct):
        steps: list[str]

    async def plan(message: Message) -> Plan:
        return Plan(["read", "write"])

    async def write(message: Message) -> int:
        assert isinstance(message.prior[message.parent], msgspec.Raw)
        return len(message.prior_as(message.parent, Plan).steps)

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("planner", plan)
        await worker.handle("writer", write)
        first = await dispatcher.run("planner", Message())
        assert first.outputs_as(Plan).steps == ["read", "write"]
        message = Message(parent=first.id, root=first.id, prior={first.id: first.outputs})
        assert (await dispatcher.run("writer", message)).outputs == 2
