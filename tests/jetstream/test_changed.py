"""What an operator changes on a live server: noticed, told once, and lived with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import Deaf, NATSSwarm, echo, until, within
from tests._helpers.proxy import open_proxy
from tests._helpers.stream_setup import REPUBLISH, config_of, make
from tests.jetstream.test_results import ONE_EACH, result_bytes
from tests.nats.test_permissions import permitting
from trio_swarmtask import (
    BrokerError,
    Message,
    NATSConfig,
    Status,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._jetstream import _intake as _lease_terms, _outbox, _streams
from trio_swarmtask._jetstream._intake import LeaseTerms
from trio_swarmtask._jetstream._outbox import NATSOutbox
from trio_swarmtask._jetstream._streams import Durable

if TYPE_CHECKING:
    from pathlib import Path

    from nats.aio.subscription import Subscription

    from tests._helpers.api_client import Raw
    from trio_swarmtask.server import Server

SECOND = 1_000_000_000


async def change_durable(raw: Raw, capability: str = "coder", **settings: Any) -> None:
    """As an operator does with `nats consumer edit`."""
    name = f"work-{capability}"
    config = (await raw.api(f"CONSUMER.INFO.TASKS.{name}"))["config"]
    config = {**config, **settings}
    await raw.api(
        f"CONSUMER.CREATE.TASKS.{name}", stream_name="TASKS", config=config, action="update"
    )


async def change_stream(raw: Raw, name: str, **settings: Any) -> None:
    config = {**await config_of(raw, name), **settings}
    await raw.api(f"STREAM.UPDATE.{name}", **config)


def told(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    messages = (record.getMessage() for record in caplog.records)
    return [message for message in messages if part in message]


# Leases of tasks


@within(30)
async def test_ack_wait_is_lowered(nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture) -> None:
    """No healthy task is run twice, though the server hands all of them out again."""
    runs: Counter[str] = Counter()

    async def long(message: Message) -> None:
        runs[message.id] += 1
        await trio.sleep(5)

    nats_swarm.configure(ack_wait=4)
    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as busy,
        nats_swarm.worker() as free,
    ):
        await busy.handle("coder", long, max_in_flight=5)
        futures = [await dispatcher.start("coder", Message()) for _ in range(5)]
        await until(lambda: len(runs) == 5)
        await free.handle("coder", long)
        await trio.sleep(1.1)  # longer than the lease will be
        await change_durable(raw, ack_wait=SECOND)
        for future in futures:
            assert (await future.wait()).attempt == 1
        await nats_swarm.wait_until_empty()
        # Put back, and noted as that: to be handed out again is no failure of theirs.
        assert free.statistics().given_back >= 5
        assert free.statistics().dead_letters == 0
    assert runs == dict.fromkeys(runs, 1)
    changed = (
        "the durable work-coder of stream TASKS was changed: its ack_wait was 4 seconds, and is "
        "1; leases are renewed by that from now on, and what is delivered again in the next "
        "2 seconds is put back, for another worker may run it"
    )
    assert told(caplog, "the durable work-coder") == [changed, changed]  # one for each worker


@within(30)
async def test_ack_wait_is_lowered_while_the_worker_is_idle(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks as the next task arrives: no worker that knew of it before gets that as well."""
    runs: Counter[str] = Counter()

    async def long(message: Message) -> None:
        runs[message.id] += 1
        await trio.sleep(2.5)

    nats_swarm.configure(ack_wait=3)
    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as idle,
    ):
        await idle.handle("coder", long)
        await change_durable(raw, ack_wait=SECOND)
        await trio.sleep(1.1)  # longer than a round
        future = await dispatcher.start("coder", Message())
        await until(lambda: runs)
        async with nats_swarm.worker() as newer:
            await newer.handle("coder", long)
            await future.wait()
            await nats_swarm.wait_until_empty()
    assert list(runs.values()) == [1]
    assert len(told(caplog, "its ack_wait was 3 seconds, and is 1")) == 1


@within(30)
async def test_ack_wait_is_raised(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[float] = []

    async def long(message: Message) -> None:
        await until(lambda: told(caplog, "was changed"))
        del renewed[:]
        await trio.sleep(1)

    nats_swarm.configure(ack_wait=0.3)
    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", long)
        intake = worker._services["coder"].intake
        future = await dispatcher.start("coder", Message())
        await until(lambda: worker.statistics().in_flight)
        (job,) = worker._services["coder"].jobs.values()
        renew = type(job.delivery).renew

        def note(delivery: Any) -> None:  # noqa: ANN401 - any
            renewed.append(trio.current_time())
            renew(delivery)

        monkeypatch.setattr(type(job.delivery), "renew", note)
        await change_durable(raw, ack_wait=30 * SECOND)
        await future.wait()
        assert intake.ack_wait == 30
    assert len(renewed) <= 1
    (changed,) = told(caplog, "was changed")
    assert changed.endswith("0.3 seconds, and is 30; leases are renewed by that from now on")


@within(30)
async def test_ack_wait_is_changed_in_an_outage(
    server: Server, nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """It is known with the connection; and counts for what was in hand before, too."""
    began, done = trio.Event(), trio.Event()

    async def long(message: Message) -> None:
        began.set()
        await done.wait()

    nats_swarm.configure(ack_wait=20)
    async with (
        open_proxy(server.port) as proxy,
        nats_swarm.dispatcher() as dispatcher,
        open_worker(NATSConfig(proxy.url, ack_wait=20)) as worker,
        nats_swarm.raw() as raw,
    ):
        await worker.handle("coder", long)
        future = await dispatcher.start("coder", Message())
        await began.wait()
        proxy.cut(for_good=True)
        await change_durable(raw, ack_wait=3 * SECOND)
        proxy.mend()
        await until(lambda: told(caplog, "its ack_wait was 20 seconds, and is 3"))
        (job,) = worker._services["coder"].jobs.values()
        await until(lambda: job.delivery.lease_until < trio.current_time() + 3.1)
        done.set()
        assert (await future.wait()).attempt == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"filter_subject": "work.other.*"},
        {"max_deliver": 3},
    ],
)
@within(30)
async def test_durable_that_cannot_be_used_any_more(
    nats_swarm: NATSSwarm, settings: dict[str, Any]
) -> None:
    """As one that was so before: the worker ends, and says what to do."""
    nats_swarm.configure(ack_wait=0.5)
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        with pytest.raises(BrokerError, match="delete it to have it made anew"):
            async with nats_swarm.worker() as worker:
                began = trio.Event()

                async def long(message: Message) -> None:
                    began.set()
                    await trio.sleep_forever()

                await worker.handle("coder", long)
                await dispatcher.start("coder", Message())
                await began.wait()
                await change_durable(raw, **settings)
                await trio.sleep_forever()


@within(30)
async def test_durable_that_is_paused(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs is finished; what waits comes when that is over."""
    began, go_on = trio.Event(), trio.Event()

    async def wait(message: Message) -> None:
        began.set()
        await go_on.wait()

    nats_swarm.configure(ack_wait=1)
    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", wait)
        first = await dispatcher.start("coder", Message())
        await began.wait()
        pause = "CONSUMER.PAUSE.TASKS.work-coder"
        await raw.api(pause, pause_until="2100-01-01T00:00:00Z")
        second = await dispatcher.start("coder", Message())
        go_on.set()
        await first.wait()
        await raw.api(pause)
        await second.wait()
    assert told(caplog, "changed") == []


# What is known of the durable


class Looks:
    """A worker's terms, and what they tell."""

    def __init__(self, raw: Raw, ack_wait: float = 30.0) -> None:
        self.changes: list[float] = []
        self.ends: list[BrokerError] = []
        durable = Durable("TASKS", "work-coder", ack_wait)
        self.terms = LeaseTerms(
            raw.requests, "coder", durable, self.changes.append, self.ends.append
        )


@within(20)
async def test_looks_where_there_is_no_answer(nats_swarm: NATSSwarm) -> None:
    """The stream is gone, or the connection: nothing has changed as far as is known."""
    async with nats_swarm.raw() as raw:
        looks = Looks(raw)
        await looks.terms.look()
        assert await looks.terms.doubt() == 0
    assert (looks.changes, looks.ends) == ([], [])


@within(20)
async def test_answer_that_does_not_come_holds_up_no_task(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(_lease_terms, "_PATIENCE", 0.1)
    monkeypatch.setattr(_lease_terms, "call", never)
    async with nats_swarm.raw() as raw:
        assert await Looks(raw).terms.doubt() == 0


@within(20)
async def test_one_answer_for_all_that_come_at_once(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    call = _lease_terms.call

    async def count(*args: Any) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return await call(*args)

    async with nats_swarm.worker() as worker, nats_swarm.raw() as raw:
        await worker.handle("coder", echo)
        monkeypatch.setattr(_lease_terms, "call", count)
        looks = Looks(raw, ack_wait=40)
        monkeypatch.setattr(_lease_terms, "_GRACE", -1.0)  # nothing known is good enough
        now = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(looks.terms.look, now)
        await looks.terms.doubt()
    assert asked == 2
    assert looks.changes == [30]
    assert 19 < looks.terms._doubt_until - trio.current_time() < 20


# Results


@pytest.fixture
def quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(_streams, "_SEEN_SECONDS", 0)


@pytest.mark.usefixtures("quick_sweep")
@within(30)
async def test_republish_is_taken_away_and_given_back(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are heard in the other way, and no sweep is waited for."""
    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        outbox = dispatcher._core.outbox
        assert isinstance(outbox, NATSOutbox)

        async def change(*, republishes: bool) -> None:
            monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 0.1)
            outbox.on_down()  # as after an outage: it looks at once
            republish = REPUBLISH if republishes else None
            await change_stream(raw, "TASK_RESULTS", republish=republish)
            await until(lambda: outbox.hears_own_ids is republishes)
            monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)

        waiting = [await dispatcher.start("coder", Message(id=name)) for name in ("", "mine")]
        await change(republishes=False)
        for future in waiting:
            await raw.store(f"done.{future.id}", result_bytes(future.id, "x"))
            assert (await future.wait()).outputs == "x"
        waiting = [await dispatcher.start("coder", Message(id=name)) for name in ("", "other")]
        await change(republishes=True)
        await worker.handle("coder", echo)
        for future in waiting:
            assert (await future.wait()).status == Status.SUCCESS
        for name in ("", "another"):
            assert (await dispatcher.run("coder", Message(id=name))).status == Status.SUCCESS
    assert told(caplog, "the stream of results was changed") == [
        f"the stream of results was changed: its republish of results was {was}, and is {not was}"
        for was in (True, False)
    ]


@pytest.mark.usefixtures("quick_sweep")
@within(30)
async def test_republish_is_taken_away_and_hints_are_not_permitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are looked up every second."""
    monkeypatch.setattr(_outbox, "_LAST_LOOK", 0.05)
    async with (
        permitting(tmp_path, 'subscribe: {deny: ["done.>"]}') as (config, url),
        NATSSwarm(url).raw() as raw,
        open_dispatcher(config) as dispatcher,
        open_worker(url) as worker,
    ):
        await worker.handle("coder", echo)
        await change_stream(raw, "TASK_RESULTS", republish=None)
        await until(lambda: told(caplog, "results are not heard, and looked up every second"))
        monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)
        for name in ("", "mine", ""):
            assert (await dispatcher.run("coder", Message(id=name))).status == Status.SUCCESS
        await change_stream(raw, "TASK_RESULTS", republish=REPUBLISH)
        await until(lambda: not dispatcher._core.outbox._no_hints)  # type: ignore[attr-defined]  # it is the NATS one's
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS


@pytest.mark.usefixtures("quick_sweep")
@within(30)
async def test_republish_is_given_and_notices_are_not_permitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are heard as before."""
    async with (
        permitting(tmp_path, 'subscribe: {deny: ["notify.>"]}') as (config, url),
        NATSSwarm(url).raw() as raw,
        open_worker(url) as worker,
    ):
        await worker.handle("coder", echo)
        await change_stream(raw, "TASK_RESULTS", republish=None)
        async with open_dispatcher(config) as dispatcher:
            await change_stream(raw, "TASK_RESULTS", republish=REPUBLISH)
            await until(lambda: told(caplog, "republish of results was False, and is True"))
            for name in ("", "mine", ""):
                assert (await dispatcher.run("coder", Message(id=name))).status == Status.SUCCESS
    assert told(caplog, "results are not heard") == []


@within(20)
async def test_dispatcher_is_closed_while_it_turns_to_the_other_way(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of that stays behind."""
    subscribe = NATSOutbox._subscribe

    async def end_meanwhile(self: NATSOutbox, *, notifies: bool) -> Subscription:
        subscription = await subscribe(self, notifies=notifies)
        self.end()
        return subscription

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.open() as broker,
        broker.open_outbox("key", lambda _: Deaf()) as outbox,
    ):
        assert isinstance(outbox, NATSOutbox)
        monkeypatch.setattr(_streams, "_SEEN_SECONDS", 0)
        monkeypatch.setattr(NATSOutbox, "_subscribe", end_meanwhile)
        await change_stream(raw, "TASK_RESULTS", republish=None)
        subscriptions = outbox._connection.client._subs
        before = len(subscriptions)
        assert not await outbox._hear_otherwise()
        assert len(subscriptions) == before - 1


@within(20)
async def test_connection_is_lost_while_a_dispatcher_turns_to_the_other_way(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object, **__: object) -> None:
        raise BrokerError("lost for good")

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.open() as broker,
        broker.open_outbox("key", lambda _: Deaf()) as outbox,
    ):
        assert isinstance(outbox, NATSOutbox)
        await change_stream(raw, "TASK_RESULTS", republish=None)
        with monkeypatch.context() as patch:
            patch.setattr(_streams, "_SEEN_SECONDS", 0)
            patch.setattr(NATSOutbox, "_subscribe", lost)
            patch.setattr(outbox._connection, "lost", BrokerError("lost for good"))
            with pytest.raises(BrokerError, match="lost for good"):
                await outbox._hear_otherwise()


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"allow_direct": False}, "allow_direct was True, and is False"),
        (
            {"discard_new_per_subject": False, "max_msgs_per_subject": 5},
            "max_msgs_per_subject 1 with discard_new_per_subject was True, and is False",
        ),
        ({"subjects": ["other.>"]}, "name was TASK_RESULTS, and is RESULTS"),
    ],
)
@pytest.mark.usefixtures("quick_sweep")
@within(30)
async def test_other_settings_of_the_results(
    nats_swarm: NATSSwarm,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    setting: str,
) -> None:
    """The first result is the one, and found by its ID, and after an outage."""
    async with nats_swarm.raw() as raw, nats_swarm.dispatcher() as dispatcher:
        await dispatcher.start("coder", Message())
        await change_stream(raw, "TASK_RESULTS", **settings)
        if "subjects" in settings:
            await make(raw, "RESULTS", "done.>", republish=REPUBLISH, allow_direct=True, **ONE_EACH)
        await until(lambda: told(caplog, f"its {setting}"))
        for text in ("first", "second"):
            if text == "first" or "discard_new_per_subject" in settings:
                await raw.store("done.mine", result_bytes("mine", text))
        assert (await dispatcher.run("coder", Message(id="mine"))).outputs == "first"
    assert len(told(caplog, "was changed")) == 1


@pytest.mark.usefixtures("quick_sweep")
@within(30)
async def test_stream_is_not_looked_at_while_it_has_no_leader(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep has looked up what was missed by then, and goes on the next time."""
    rounds = 0

    async def fail(*_: object) -> None:
        nonlocal rounds
        rounds += 1
        raise _streams.NoResponders("no leader")

    async with nats_swarm.dispatcher() as dispatcher:
        monkeypatch.setattr(_streams.Streams, "look_at_results", fail)
        await until(lambda: rounds == 3)
        await dispatcher.start("coder", Message())


@within(30)
async def test_worker_looks_at_the_results_too(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_streams, "_SEEN_SECONDS", 0)
    nats_swarm.configure(ack_wait=0.5)

    async def wait(message: Message) -> None:
        await until(lambda: told(caplog, "allow_direct was True, and is False"))

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", wait)
        future = await dispatcher.start("coder", Message())
        await change_stream(raw, "TASK_RESULTS", allow_direct=False)
        assert (await future.wait()).status == Status.SUCCESS


# Leases of groups


@within(30)
async def test_leases_of_groups_are_made_shorter(
    nats_swarm: NATSSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    """No task of a group that lives is cancelled: the group finds out within a third of it."""
    await nats_swarm.shorten_leases(6)
    nats_swarm.configure(ack_wait=1)
    ended: list[str] = []
    began = trio.Event()

    async def long(message: Message) -> None:
        began.set()
        await trio.sleep(5)
        ended.append(message.id)

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", long)
        async with dispatcher.open_group(orphans="cancel") as group:
            future = await group.start("coder", Message())
            await began.wait()
            await trio.sleep(1.6)  # longer than the lease will be
            settings = {"max_age": 3 * SECOND // 2, "duplicate_window": SECOND}
            await change_stream(raw, "SHORT", **settings)
        assert ended == [future.id]
    # By the group; by the worker as well, if it looked before the group had renewed the lease.
    assert told(caplog, "the stream of leases was changed: its max_age in seconds was 6")


@within(30)
async def test_stream_of_leases_is_deleted_under_a_group(nats_swarm: NATSSwarm) -> None:
    """It is made anew with the next renewal."""
    await nats_swarm.shorten_leases(0.6)
    began, done = trio.Event(), trio.Event()

    async def wait(message: Message) -> None:
        began.set()
        await done.wait()

    async with (
        nats_swarm.raw() as raw,
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", wait)
        async with dispatcher.open_group(orphans="cancel") as group:
            await group.start("coder", Message())
            await began.wait()
            await raw.api("STREAM.DELETE.SHORT")
            while "TASK_LEASES" not in (await raw.api("STREAM.NAMES"))["streams"]:  # noqa: ASYNC110 - no event
                await trio.sleep(0.05)
            done.set()
