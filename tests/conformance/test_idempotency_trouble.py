"""What an idempotency bucket may refuse or leave open, on both brokers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest
import trio

from tests._helpers.brokers import Swarm, until, within
from tests._helpers.malformed import ZOO
from tests.conformance.test_idempotency import HASH, KEY, Payer, outcome_of, paying, waiting
from trio_swarmtask import (
    BrokerError,
    Idempotency,
    Message,
    Result,
    Status,
    open_idempotency,
)
from trio_swarmtask._abc import Bucket, Entry, Refused, Watch
from trio_swarmtask._idempotency import Claim, _hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask import Handler


@within(20)
async def test_first_outcome_counts(swarm: Swarm) -> None:
    """A handler that was not cancelled in time ends with its own value, and the key keeps its."""
    payer = Payer()
    async with paying(swarm, payer) as (dispatcher, idempotent, _):
        future = await dispatcher.start("payer", waiting())
        await until(lambda: payer.running)
        entry = await idempotent._outcomes.get(HASH)
        assert entry is not None
        await idempotent._outcomes.put(HASH, outcome_of("first", b"1"), entry.revision)
        payer.go_on.set()
        assert (await future.wait()).outputs == {"run": 1}
        assert (await dispatcher.run("payer", KEY)).outputs == 1


@within(20)
async def test_outputs_that_are_too_large_are_not_remembered(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    """The task's result is as it was."""
    payer = Payer()
    async with paying(swarm, payer) as (dispatcher, idempotent, _):
        _, outcomes = break_(idempotent)
        outcomes.max_size = 1000  # type: ignore[attr-defined]  # replaced for the test
        payer.value = lambda: f"{payer.began}{'x' * 1000}"
        for number in "12":
            result = await dispatcher.run("payer", KEY)
            assert result.outputs == f"{number}{'x' * 1000}"
            assert f"the outputs of task {result.id} are not remembered" in caplog.text


ODD = {name: data for name, data in ZOO.items() if data}  # nothing is what a deletion leaves


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
@within(20)
async def test_entry_that_can_not_be_read_is_replaced(
    swarm: Swarm,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether it is there before, or put over the claim that another task waits for."""
    payer = Payer()
    claim, told = Claim(HASH, "elsewhere"), trio.Event()
    async with paying(swarm, payer) as (dispatcher, idempotent, _):
        await idempotent._outcomes.put(HASH, data, 0)
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}

        watch = idempotent._outcomes.watch

        def watch_and_tell(key: str, on_entry: Callable[[Entry], None]) -> Watch:
            def hear(entry: Entry) -> None:
                on_entry(entry)
                told.set()

            return watch(key, hear)

        monkeypatch.setattr(idempotent._outcomes, "watch", watch_and_tell)
        entry = await idempotent._outcomes.get(HASH)
        assert entry is not None
        await idempotent._claims.put(HASH, claim.data, entry.revision)
        future = await dispatcher.start("payer", KEY)
        await told.wait()
        entry = await idempotent._outcomes.get(HASH)
        assert entry is not None
        await idempotent._outcomes.put(HASH, data, entry.revision)
        assert (await future.wait()).outputs == {"run": 2}
    assert "is no claim and no outcome" in caplog.text


class Broken:
    """A bucket that does what the test says, once, instead of a put or a remove."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.instead: list[Callable[[], object]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.bucket, name)

    async def put(self, key: str, data: bytes, revision: int) -> None:
        if self.instead:
            self.instead.pop(0)()
        await self.bucket.put(key, data, revision)

    async def remove(self, key: str, revision: int) -> None:
        if self.instead:
            self.instead.pop(0)()
        await self.bucket.remove(key, revision)


def refuse(*, unsure: bool = False) -> Callable[[], None]:
    def act() -> None:
        raise Refused(unsure=unsure)

    return act


def fail() -> None:
    raise BrokerError("not now")


def break_(idempotent: Idempotency) -> tuple[Broken, Broken]:
    claims, outcomes = Broken(idempotent._claims), Broken(idempotent._outcomes)
    idempotent._claims, idempotent._outcomes = claims, outcomes  # type: ignore[assignment]  # replaced for the test
    return claims, outcomes


@within(20)
async def test_conflicts_and_lost_answers(swarm: Swarm) -> None:
    payer = Payer()
    async with paying(swarm, payer, lease=1) as (dispatcher, idempotent, _):
        claims, outcomes = break_(idempotent)
        claims.instead = [refuse(), refuse(unsure=True)]
        outcomes.instead = [refuse()]
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}
        assert not claims.instead
        assert not outcomes.instead
        # A renewal, and a claim that is given up, meet one as well.
        payer.value = lambda: Result(status=Status.FAILED)
        again = Message(idempotency="again", inputs={"wait": ""})
        future = await dispatcher.start("payer", again)
        await until(lambda: payer.running)
        claims.instead, outcomes.instead = [refuse()], [refuse()]
        await until(lambda: not claims.instead)
        payer.go_on.set()
        assert (await future.wait()).status == Status.FAILED
        assert not outcomes.instead
        assert await idempotent._claim(_hash("payer", "again"), "next")


@within(20)
async def test_claim_whose_answer_was_lost_is_found(swarm: Swarm) -> None:
    async with open_idempotency(swarm.broker) as idempotent:
        claims, _ = break_(idempotent)

        async def put(key: str, data: bytes, revision: int) -> None:
            await claims.bucket.put(key, data, revision)
            del claims.put  # type: ignore[method-assign]  # the one that was replaced for the test
            raise Refused(unsure=True)

        claims.put = put  # type: ignore[method-assign]  # replaced for the test
        with trio.fail_after(5):
            claim = await idempotent._claim(HASH, "mine")
            assert isinstance(claim, Claim)
            assert await idempotent._find(claim)


@within(20)
async def test_bucket_that_refuses(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    """A result stays what it is; a claim that can't be renewed ends the handler in time."""
    payer = Payer()
    async with paying(swarm, payer, lease=1) as (dispatcher, idempotent, _):
        claims, outcomes = break_(idempotent)
        outcomes.instead = [fail, fail]  # to remember, and to give up the claim
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}
        assert "may not be remembered: not now" in caplog.text
        assert "has to expire: not now" in caplog.text
        future = await dispatcher.start("payer", waiting())
        await until(lambda: payer.running)
        claims.instead = [fail]
        await until(lambda: not payer.running)
        assert "can't be renewed, and will be lost: not now" in caplog.text
        payer.go_on.set()
        assert (await future.wait()).outputs == {"run": 3}


@within(20)
async def test_bucket_that_does_not_answer(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    """The task's result does not wait for ever for what is to be remembered."""
    payer = Payer()
    async with paying(swarm, payer, lease=1) as (dispatcher, idempotent, _):
        _, outcomes = break_(idempotent)

        async def hang(*_: object) -> None:
            await trio.sleep_forever()

        outcomes.put = outcomes.remove = hang  # type: ignore[method-assign,assignment]  # replaced for the test
        assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}
    assert "are not remembered yet: no answer in time" in caplog.text


@within(20)
async def test_outcome_is_kept_once_the_bucket_answers_again(swarm: Swarm) -> None:
    """Its task was cancelled meanwhile; its effect is not had a second time."""
    payer = Payer()
    async with paying(swarm, payer, lease=1000, ttl=1000) as (dispatcher, idempotent, worker):
        _, outcomes = break_(idempotent)
        back = trio.Event()

        async def put_late(key: str, data: bytes, revision: int) -> None:
            await back.wait()
            await outcomes.bucket.put(key, data, revision)

        outcomes.put = put_late  # type: ignore[method-assign]  # replaced for the test
        future = await dispatcher.start("payer", KEY)
        await until(lambda: payer.began and not payer.running)
        await future.cancel()
        await until(lambda: not worker.statistics().in_flight)
        back.set()
        with trio.fail_after(5):
            assert (await dispatcher.run("payer", KEY)).outputs == {"run": 1}


@within(20)
async def test_outcome_that_can_not_be_kept_late_either(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the key is free, at least."""
    payer = Payer()
    async with paying(swarm, payer, lease=1000, ttl=1000) as (dispatcher, idempotent, worker):
        _, outcomes = break_(idempotent)
        back = trio.Event()

        async def refuse_late(key: str, data: bytes, revision: int) -> None:
            await back.wait()
            del outcomes.put  # type: ignore[method-assign]  # the one that was replaced for the test
            fail()

        outcomes.put = refuse_late  # type: ignore[method-assign]  # replaced for the test
        future = await dispatcher.start("payer", KEY)
        await until(lambda: payer.began and not payer.running)
        await future.cancel()
        await until(lambda: not worker.statistics().in_flight)
        back.set()
        with trio.fail_after(5):
            assert (await dispatcher.run("payer", KEY)).outputs == {"run": 2}
    assert "may not be remembered: not now" in caplog.text


@within(20)
async def test_claim_that_is_cancelled_while_it_is_stored_holds_up_nobody(swarm: Swarm) -> None:
    async with open_idempotency(swarm.broker, lease=1000, ttl=1000) as idempotent:
        claims, _ = break_(idempotent)
        stored = trio.Event()

        async def put(key: str, data: bytes, revision: int) -> None:
            await claims.bucket.put(key, data, revision)
            del claims.put  # type: ignore[method-assign]  # the one that was replaced for the test
            stored.set()
            await trio.sleep_forever()  # the answer does not come

        claims.put = put  # type: ignore[method-assign]  # replaced for the test
        async with trio.open_nursery() as nursery:
            nursery.start_soon(idempotent._claim, HASH, "mine")
            await stored.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            assert isinstance(await idempotent._claim(HASH, "another"), Claim)


@within(20)
async def test_claim_that_is_cancelled_while_nothing_answers(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    """Then it has to expire."""
    async with open_idempotency(swarm.broker) as idempotent:
        claims, _ = break_(idempotent)
        began = trio.Event()
        claims.instead = [began.set, fail]

        async def put(key: str, data: bytes, revision: int) -> None:
            claims.instead.pop(0)()
            await trio.sleep_forever()

        claims.put = put  # type: ignore[method-assign]  # replaced for the test
        async with trio.open_nursery() as nursery:
            nursery.start_soon(idempotent._claim, HASH, "mine")
            await began.wait()
            nursery.cancel_scope.cancel()
    assert "a claim could not be given up, and has to expire: not now" in caplog.text


@within(20)
async def test_claim_is_given_up_once_the_bucket_answers_again(swarm: Swarm) -> None:
    """It could not be reached when the handler was cancelled."""
    payer = Payer()
    async with paying(swarm, payer, lease=1000, ttl=1000) as (dispatcher, idempotent, worker):
        _, outcomes = break_(idempotent)
        asked, back = trio.Event(), trio.Event()

        async def remove_late(key: str, revision: int) -> None:
            asked.set()
            await back.wait()
            await outcomes.bucket.remove(key, revision)

        outcomes.remove = remove_late  # type: ignore[method-assign]  # replaced for the test
        future = await dispatcher.start("payer", waiting())
        await until(lambda: payer.running)
        await future.cancel()
        await until(lambda: not worker.statistics().in_flight)
        assert asked.is_set()
        back.set()
        payer.go_on.set()
        with trio.fail_after(5):
            assert (await dispatcher.run("payer", KEY)).outputs == {"run": 2}


@within(20)
async def test_claim_that_can_not_be_given_up_holds_up_no_leaving(swarm: Swarm) -> None:
    payer = Payer()
    with trio.fail_after(10):
        async with paying(swarm, payer, lease=1000, ttl=1000) as (dispatcher, idempotent, worker):
            _, outcomes = break_(idempotent)

            async def hang(*_: object) -> None:
                await trio.sleep_forever()

            outcomes.remove = hang  # type: ignore[method-assign]  # replaced for the test
            future = await dispatcher.start("payer", waiting())
            await until(lambda: payer.running)
            await future.cancel()
            await until(lambda: not worker.statistics().in_flight)


# A handler that would wait for itself


@within(20)
async def test_idempotent_twice_is_refused(swarm: Swarm) -> None:
    """Through decorators and partials, too; not in another scope, where it waits for nobody."""

    async def pay(message: Message) -> str:
        return "paid"

    def decorated(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def call(message: Message) -> object:
            return await handler(message)

        return call

    async with (
        swarm.dispatcher() as dispatcher,
        open_idempotency(swarm.broker) as idempotent,
        swarm.worker() as worker,
    ):
        once = idempotent(pay)
        for again in (once, functools.partial(once), decorated(once), decorated(decorated(once))):
            with pytest.raises(ValueError, match=r"pay.* is idempotent already, in this scope"):
                idempotent(again)
        named = idempotent(once, scope="b")
        with pytest.raises(ValueError, match="is idempotent already"):
            idempotent(named)
        await worker.handle("payer", named)
        await worker.handle("mock", idempotent(AsyncMock(return_value=5)))
        assert (await dispatcher.run("payer", KEY)).outputs == "paid"
        assert (await dispatcher.run("mock", KEY)).outputs == 5


@within(20)
async def test_idempotent_handler_that_is_called_by_another(swarm: Swarm) -> None:
    """In the same scope it would wait for the claim of its caller: it says so."""

    async def pay(message: Message) -> str:
        return "paid"

    async with (
        swarm.dispatcher() as dispatcher,
        open_idempotency(swarm.broker) as first,
        open_idempotency(swarm.broker) as second,
        swarm.worker() as worker,
    ):
        paying = second(pay)

        async def order(message: Message) -> object:
            return await paying(message)

        await worker.handle("payer", first(order))
        for _ in range(2):  # the claim is given up, too
            result = await dispatcher.run("payer", KEY)
            assert result.status == Status.FAILED
            assert result.error.startswith(f"task {result.id} waits for its own claim of its key")
