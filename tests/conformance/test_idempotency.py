"""One effect for each key: what a second task of a key is given, on both brokers."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from trio_swarmtask import (
    ClosedError,
    Dispatcher,
    Idempotency,
    Message,
    Result,
    Status,
    Worker,
    open_idempotency,
)
from trio_swarmtask._idempotency import Claim, Record, _hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEY = Message(idempotency="order-17")
HASH = _hash("payer", "order-17")


class Payer:
    """A handler that counts how often it ran, and does what the message says."""

    def __init__(self) -> None:
        self.began = self.running = self.most = 0
        self.go_on = trio.Event()
        self.value: Callable[[], object] = lambda: {"run": self.began}

    async def __call__(self, message: Message) -> object:
        self.began += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if "wait" in message.inputs:
                await self.go_on.wait()
            if "fail" in message.inputs:
                raise ValueError("no money")
        finally:
            self.running -= 1
        return self.value()


@asynccontextmanager
async def paying(
    swarm: Swarm, payer: Payer, **settings: Any
) -> AsyncIterator[tuple[Dispatcher, Idempotency, Worker]]:
    async with (
        swarm.dispatcher() as dispatcher,
        open_idempotency(swarm.broker, **settings) as idempotent,
        swarm.worker() as worker,
    ):
        await worker.handle("payer", idempotent(payer))
        yield dispatcher, idempotent, worker


def waiting(**inputs: str) -> Message:
    return msgspec.structs.replace(KEY, inputs={"wait": "", **inputs})


def outcome_of(task_id: str, outputs: bytes) -> bytes:
    return msgspec.json.encode(Record(task_id, outputs=msgspec.Raw(outputs)))


@within(20)
async def test_second_task_of_a_key_is_given_the_first_ones_outputs(swarm: Swarm) -> None:
    payer = Payer()
    async with paying(swarm, payer) as (dispatcher, _, _):
        first, second = [await dispatcher.run("payer", KEY) for _ in range(2)]
        assert first.outputs == second.outputs == {"run": 1}
        assert first.id != second.id
        other = await dispatcher.run("payer", Message(idempotency="order-18"))
        assert other.outputs == {"run": 2}


@within(20)
async def test_task_without_a_key_runs_as_usual(swarm: Swarm) -> None:
    payer = Payer()
    async with paying(swarm, payer) as (dispatcher, _, _):
        assert [(await dispatcher.run("payer", Message())).outputs for _ in range(2)] == [
            {"run": 1},
            {"run": 2},
        ]


@within(20)
@pytest.mark.parametrize("value", [None, 7, "text", {"a": [1, None]}, msgspec.Raw(b'{"a": 1e3}')])
async def test_any_value_is_remembered(swarm: Swarm, value: object) -> None:
    payer = Payer()
    for payer.value in (lambda: value, lambda: Result(status=Status.SUCCESS, outputs=value)):
        payer.began = 0
        key = Message(idempotency=f"any key: {id(payer.value)} \u20ac\n*.>")
        async with paying(swarm, payer) as (dispatcher, _, _):
            first, second = [await dispatcher.run("payer", key) for _ in range(2)]
            assert first.outputs == second.outputs
            assert first.raise_for_status().id != second.raise_for_status().id
        assert payer.began == 1


@within(20)
async def test_scopes_keep_keys_apart(swarm: Swarm) -> None:
    payer = Payer()
    async with paying(swarm, payer) as (dispatcher, idempotent, worker):
        await worker.handle("other", idempotent(payer))
        await worker.handle("same", idempotent(payer, scope="payer"))
        outputs = [(await dispatcher.run(name, KEY)).outputs for name in ("payer", "other", "same")]
        assert outputs == [{"run": 1}, {"run": 2}, {"run": 1}]


@within(20)
async def test_second_task_waits_for_the_first_one_at_another_worker(swarm: Swarm) -> None:
    """For longer than a lease: the claim is renewed."""
    payer = Payer()
    async with (
        paying(swarm, payer, lease=1) as (dispatcher, _, one),
        paying(swarm, payer, lease=1) as (_, _, two),
    ):
        futures = [await dispatcher.start("payer", waiting()) for _ in range(6)]
        await until(lambda: one.statistics().in_flight + two.statistics().in_flight == 6)
        await trio.sleep(2.5)
        payer.go_on.set()
        assert [(await future.wait()).outputs for future in futures] == [{"run": 1}] * 6
    assert payer.began == 1


@within(20)
@pytest.mark.parametrize("failing", ["raises", "returns", "can't be sent", "another task's"])
async def test_failure_is_not_remembered(swarm: Swarm, failing: str) -> None:
    payer = Payer()
    values: dict[str, object] = {
        "returns": Result(status=Status.FAILED, error="no money"),
        "can't be sent": object(),
        "another task's": Result(id="other", status=Status.SUCCESS),
    }
    async with paying(swarm, payer) as (dispatcher, _, _):
        good, payer.value = payer.value, lambda: values.get(failing)
        bad = KEY if failing in values else msgspec.structs.replace(KEY, inputs={"fail": ""})
        assert (await dispatcher.run("payer", bad)).status == Status.FAILED
        payer.value = good
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 2}
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 2}


@within(20)
async def test_those_who_wait_run_one_by_one_while_each_fails(swarm: Swarm) -> None:
    payer = Payer()
    async with paying(swarm, payer) as (dispatcher, _, worker):
        futures = [await dispatcher.start("payer", waiting(fail="")) for _ in range(4)]
        await until(lambda: worker.statistics().in_flight == 4 and payer.running)
        payer.go_on.set()
        errors = [(await future.wait()).error for future in futures]
        assert errors == ["no money"] * 4
    assert (payer.began, payer.most) == (4, 1)


@within(20)
async def test_timeout_lets_the_next_one_run(swarm: Swarm) -> None:
    """Also for the one that waits: its time is its own."""
    payer = Payer()
    async with paying(swarm, payer) as (dispatcher, _, _):
        first = await dispatcher.start("payer", waiting())
        await until(lambda: payer.running)
        short = msgspec.structs.replace(KEY, timeout=1)
        assert (await dispatcher.run("payer", short)).status == Status.TIMEOUT
        await first.cancel()
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 2}


@within(20)
async def test_claim_of_a_worker_that_has_died_expires(swarm: Swarm) -> None:
    payer = Payer()
    async with paying(swarm, payer, lease=1) as (dispatcher, idempotent, _):
        dead = await idempotent._claim(HASH, "dead")
        assert isinstance(dead, Claim)
        future = await dispatcher.start("payer", KEY)
        with trio.move_on_after(0.3):
            await future.wait()
        assert payer.began == 0
        assert (await future.wait()).outputs == {"run": 1}
        await idempotent._release(dead)  # does no harm
        await idempotent._wait_unclaimed(_hash("payer", "never"))  # nor does a claim that is gone
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}


@within(20)
async def test_claim_that_is_lost_cancels_the_handler(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task is given what the other one came to."""
    payer = Payer()
    async with paying(swarm, payer, lease=1) as (dispatcher, idempotent, _):
        future = await dispatcher.start("payer", waiting())
        await until(lambda: payer.running)
        entry = await idempotent._outcomes.get(HASH)
        assert entry is not None
        theirs = Claim(HASH, "theirs")
        await idempotent._outcomes.put(HASH, theirs.data, entry.revision)
        await until(lambda: not payer.running)
        await idempotent._put(theirs, outcome_of("theirs", b'"paid"'))
        assert (await future.wait()).outputs == "paid"
    assert "lost the claim to the key" in caplog.text
    assert payer.began == 1


@within(20)
async def test_worker_that_is_stopped_gives_up_its_claim(swarm: Swarm) -> None:
    payer = Payer()
    async with swarm.dispatcher() as dispatcher:
        async with paying(swarm, payer) as (_, _, worker):
            future = await dispatcher.start("payer", waiting())
            await until(lambda: payer.running)
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        payer.go_on.set()
        async with paying(swarm, payer):
            with trio.fail_after(5):  # no lease is waited for
                assert (await future.wait()).outputs == {"run": 2}


@within(20)
async def test_effect_is_remembered_though_all_is_being_cancelled(swarm: Swarm) -> None:
    async with open_idempotency(swarm.broker) as idempotent:
        with trio.CancelScope() as scope:

            async def pay(message: Message) -> str:
                scope.cancel()
                return "paid"

            assert await idempotent(pay, scope="payer")(KEY) == "paid"
        found = await idempotent._claim(HASH, "next")
        assert isinstance(found, Record)
        assert bytes(found.outputs) == b'"paid"'


@within(20)
async def test_outputs_are_forgotten_after_the_ttl(swarm: Swarm) -> None:
    payer = Payer()
    async with paying(swarm, payer, ttl=1, lease=1) as (dispatcher, idempotent, _):
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}
        await idempotent._wait_unclaimed(HASH)
        gone = trio.Event()
        async with idempotent._outcomes.watch(HASH, lambda entry: entry.data or gone.set()):
            await gone.wait()
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 2}


@within(20)
async def test_handler_that_outlives_the_block(swarm: Swarm) -> None:
    payer = Payer()
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        async with open_idempotency(swarm.broker) as idempotent:
            await worker.handle("payer", idempotent(payer))
        result = await dispatcher.run("payer", KEY)
        assert result.error == "the block of open_idempotency was left; leave it after the worker's"
    assert payer.began == 0


@within(20)
async def test_settings_that_can_not_be(swarm: Swarm) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"bucket": "a.b"}, ValueError, "bucket 'a.b' must be"),
        ({"ttl": "day"}, TypeError, "ttl must be a number"),
        ({"ttl": 0}, ValueError, "ttl must be from 1"),
        ({"lease": "day"}, TypeError, "lease must be a number"),
        ({"lease": 0.5}, ValueError, "lease must be from 1 second to the ttl"),
        ({"ttl": 10, "lease": 11}, ValueError, "to the ttl of 10, not 11"),
    ]
    for settings, error, text in wrong:
        with pytest.raises(error, match=text):
            async with open_idempotency(swarm.broker, **settings):
                pass
    async with open_idempotency(swarm.broker, ttl=math.inf) as idempotent:
        with pytest.raises(TypeError, match="scope must be a string"):
            idempotent(Payer(), scope=7)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(TypeError, match="must be an async function"):
            idempotent(len)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ClosedError, match="was left"):
        await idempotent(Payer(), scope="payer")(KEY)


# A bucket whose answers are late, wrong, or lost
