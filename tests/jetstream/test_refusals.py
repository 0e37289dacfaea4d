"""What a server refuses in the middle of work: streams that are gone, too small, or not allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import Deaf, NATSSwarm, echo, until, within
from tests._helpers.nats_servers import configured
from tests._helpers.proxy import open_proxy
from tests._helpers.stream_setup import make
from tests.jetstream.test_results import ONE_EACH, result_bytes
from trio_swarmtask import (
    BrokerError,
    InvalidMessageError,
    Message,
    Status,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._jetstream import _outbox

if TYPE_CHECKING:
    from pathlib import Path

    from trio_swarmtask.server import Server


@within(20)
async def test_task_larger_than_its_stream_takes(nats_swarm: NATSSwarm) -> None:
    async with nats_swarm.raw() as raw:
        await make(raw, "TASKS", "work.>", max_msg_size=400)
        async with nats_swarm.dispatcher() as dispatcher:
            for message in (Message(inputs={"a": "x" * 500}), Message(id="b", tags=["x" * 500])):
                with pytest.raises(InvalidMessageError, match="larger than the stream of 'coder'"):
                    await dispatcher.run("coder", message)
            await dispatcher.start("coder", Message())


@within(20)
async def test_result_larger_than_its_stream_takes(nats_swarm: NATSSwarm) -> None:
    async def big(message: Message) -> str:
        return "x" * 900

    async with nats_swarm.raw() as raw:
        await make(raw, "ANSWERS", "done.>", max_msg_size=800)
        async with nats_swarm.dispatcher() as dispatcher, nats_swarm.worker() as worker:
            await worker.handle("coder", big)
            result = await dispatcher.run("coder", Message(id="mine"))
    assert result.status == Status.FAILED
    assert "larger than the stream of results takes" in result.error


@within(20)
async def test_sealed_streams(nats_swarm: NATSSwarm) -> None:
    """No waiting opens them again."""
    async with nats_swarm.raw() as raw:
        config = await make(raw, "TASKS", "work.>")
        await raw.api("STREAM.UPDATE.TASKS", **{**config, "sealed": True})
        async with nats_swarm.dispatcher() as dispatcher:
            with pytest.raises(BrokerError, match=r"refuses to store task .*sealed"):
                await dispatcher.run("coder", Message())


@within(20)
async def test_sealed_stream_of_results(nats_swarm: NATSSwarm) -> None:
    """The worker ends with the reason; the task stays."""
    async with nats_swarm.raw() as raw:
        config = await make(raw, "ANSWERS", "done.>")
        await raw.api("STREAM.UPDATE.ANSWERS", **{**config, "sealed": True})
        async with nats_swarm.dispatcher() as dispatcher:
            await dispatcher.start("coder", Message())
            with pytest.raises(BrokerError, match=r"refuses to store the result of task .*sealed"):
                async with nats_swarm.worker() as worker:
                    await worker.handle("coder", echo)
                    await trio.sleep_forever()
        assert await nats_swarm.count_tasks() == 1


@within(20)
async def test_account_that_may_have_no_more_streams(tmp_path: Path) -> None:
    text = """
    jetstream { }
    accounts { A { jetstream: { max_streams: 1 }, users: [{user: a, password: a}] } }
    """
    async with configured(tmp_path, text) as server:
        url = f"nats://a:a@127.0.0.1:{server.port}"
        async with open_dispatcher(url) as dispatcher:
            with pytest.raises(BrokerError, match=r"refuses to give a stream that holds work\."):
                await dispatcher.run("coder", Message())


@within(20)
async def test_account_that_may_have_no_more_durables(tmp_path: Path) -> None:
    text = """
    accounts { A { jetstream: { max_consumers: 1 }, users: [{user: a, password: a}] } }
    """
    async with (
        configured(tmp_path, text) as server,
        open_worker(f"nats://a:a@127.0.0.1:{server.port}") as worker,
    ):
        await worker.handle("coder", echo)
        with pytest.raises(BrokerError, match=r"refuses to give the durable work-other"):
            await worker.handle("other", echo)


@pytest.mark.parametrize("settings", [{"allow_direct": True}, {}, ONE_EACH])
@within(20)
async def test_results_missed_are_found_in_any_stream(
    server: Server, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reconnect, whatever the stream can do."""
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)
    async with NATSSwarm(server.url).raw() as raw:
        await make(raw, "ANSWERS", "done.>", **settings)
        async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
            future = await dispatcher.start("coder", Message(id="mine"))
            other = await dispatcher.start("coder", Message(id="not-yet"))
            proxy.cut(for_good=True)
            await raw.store("done.mine", result_bytes("mine", "first"))
            proxy.mend()
            assert (await future.wait()).outputs == "first"
            assert "waiting" in repr(other)


@pytest.mark.parametrize("settings", [{"allow_direct": True, **ONE_EACH}, {}])
@within(10)
async def test_stream_of_results_is_deleted_while_looked_into(
    server: Server, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made anew, and looked into."""
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 0.1)
    swarm = NATSSwarm(server.url)
    async with swarm.raw() as raw:
        await make(raw, "ANSWERS", "done.>", **settings)
        async with swarm.dispatcher() as dispatcher, swarm.outbox() as outbox:
            future = await dispatcher.start("coder", Message(id="mine"))
            await raw.api("STREAM.DELETE.ANSWERS")
            assert await outbox.fetch("mine") is None
            async with swarm.worker() as worker:
                await worker.handle("coder", echo)
                assert (await future.wait()).status == Status.SUCCESS


@within(20)
async def test_sweep_finds_what_nobody_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result stored in a moment when the stream did not republish, say."""
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 0.1)
    swarm = NATSSwarm(server.url)
    async with swarm.raw() as raw, swarm.dispatcher() as dispatcher:
        future = await dispatcher.start("coder", Message())
        await raw.api("STREAM.DELETE.TASK_RESULTS")
        await make(raw, "QUIET", "done.>", allow_direct=True)
        await raw.store(f"done.{future.id}", result_bytes(future.id, "x"))
        assert (await future.wait()).outputs == "x"


@within(20)
async def test_stream_that_was_known_is_gone(server: Server) -> None:
    async with (
        open_broker(server.url) as broker,
        NATSSwarm(server.url).raw() as raw,
        open_dispatcher(broker) as dispatcher,
        open_worker(broker) as worker,
    ):
        await dispatcher.start("coder", Message())
        await raw.api("STREAM.DELETE.TASKS")
        await worker.handle("coder", echo)


@within(20)
async def test_give_backs_cannot_be_counted(server: Server) -> None:
    """Their stream was deleted: then none is known."""
    swarm = NATSSwarm(server.url)
    running = trio.Event()

    async def stick(message: Message) -> None:
        running.set()
        await trio.sleep_forever()

    async with swarm.dispatcher() as dispatcher, swarm.raw() as raw:
        future = await dispatcher.start("coder", Message())
        async with swarm.worker() as worker, swarm.worker(max_deliveries=1) as other:
            await other.handle("first", echo)
            await worker.handle("coder", stick)
            await running.wait()
            await other.handle("coder", echo, max_in_flight=1)
            await raw.api("STREAM.DELETE.TASK_DEAD")
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
            await future.wait()


@within(20)
async def test_hints_of_what_is_never_stored(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked for a few times, then left to the sweep."""
    monkeypatch.setattr(_outbox, "_LAST_LOOK", 0.02)
    looks = 0

    class Watching(Deaf):
        def outstanding(self) -> list[str]:
            nonlocal looks
            looks += 1
            return ["mine"]

    async with nats_swarm.raw() as raw:
        await make(raw, "ANSWERS", "done.>", max_msg_size=10)
        async with (
            nats_swarm.open() as broker,
            broker.open_outbox("k", lambda _: Watching()) as outbox,
        ):
            outbox.expect("mine")
            assert await outbox.fetch("mine") is None  # behind it: the server listens by then
            raw.connection.publish("done.mine", b"x" * 20)
            await until(lambda: looks >= 3)
            assert await outbox.fetch("mine") is None
