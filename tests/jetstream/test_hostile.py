"""Input that nobody should send: one test for each that once did harm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.attack import MIB, BrokenServer, open_broken, open_siege
from tests._helpers.brokers import NATSSwarm, echo, within
from tests._helpers.hostile_bytes import GREETINGS
from tests._helpers.hostile_messages import Case
from tests._helpers.nats_servers import listening
from tests._helpers.plain_nats import open_plain_client
from trio_swarmtask import BrokerError, Message, Result, RetryTask, Status, open_dispatcher
from trio_swarmtask._jetstream._delivery import NATSDelivery

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask.server import Server


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
@within(60)
async def test_something_else_has_the_port(server: Server, greeting: bytes) -> None:
    """It is tried again, until a NATS server is there."""
    async with open_broken(server) as (proxy, siege):
        proxy.greetings = [greeting] * 2  # one for the worker, one for the dispatcher
        proxy.cut()
        assert not await siege.serve(20)
        assert not proxy.greetings


@within(20)
async def test_note_of_a_pause_that_no_worker_makes(nats_swarm: NATSSwarm) -> None:
    """It is passed over: the task would be handed out again and again, or never."""
    calls = 0

    async def handle(message: Message) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RetryTask(delay=0)
        return calls

    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.worker() as worker,
        nats_swarm.raw() as raw,
    ):
        # The worker makes the stream of notes when it first needs one.
        await worker.handle("coder", handle)
        await raw.store("work.coder.bad", b"")
        assert (await (await dispatcher.attach("bad")).wait()).status == Status.FAILED
        for until in ("9" * 19, "9" * 18, "1" + "0" * 16, "9" * 30, "-1", "x"):
            await raw.store(f"back.coder.t-1.retry.{until}", b"")
        result = await dispatcher.run("coder", Message(id="t-1", max_attempts=2))
        assert (result.outputs, worker.statistics().given_back) == (2, 0)


@within(60)
async def test_results_that_are_refused(server: Server) -> None:
    """A hint starts no more look-ups than there are tasks."""
    async with open_siege(server.port) as siege, open_plain_client(server.port) as spy:
        gets = await spy.subscribe("$JS.API.DIRECT.GET.>")
        await spy.flush()
        await siege.dispatcher.start(
            "nobody", Message(id="--")
        )  # of no subject that is republished
        before = gets.statistics().current_buffer_used
        refused = b"NATS/1.0\r\nNats-Expected-Stream: OTHER\r\n\r\n"
        await siege.attack([Case(b"done.--", b"bad", refused)] * 500)
        await siege.attack([Case(b"done.--", b"bad")])
        with trio.fail_after(5):
            await (await siege.dispatcher.start("nobody", Message(id="--"))).wait()
        assert gets.statistics().current_buffer_used - before < 100


@within(60)
async def test_flush_is_cancelled(server: Server) -> None:
    """The PONG of a flush that nobody waits for any more does not end the reading."""
    big = Message(inputs={"text": "x" * (MIB - 1000)})
    async with open_broken(server) as (proxy, siege):
        proxy.freeze()
        async with trio.open_nursery() as nursery:
            for _ in range(40):  # more than the buffers of both sockets and the client's own limit
                nursery.start_soon(siege.dispatcher.start, "nobody", big)
            nursery.cancel_scope.deadline = trio.current_time() + 1
        proxy.thaw()
        assert not await siege.find_harm("a flush", 5)


@pytest.mark.parametrize("ids", [(b"a*", b"a>"), (b"same", b"same"), (b"x" * 129, b"x" * 130)])
@within(30)
async def test_bad_tasks_with_one_token(server: Server, ids: tuple[bytes, bytes]) -> None:
    """Each is a dead letter of its own."""
    async with open_siege(server.port) as siege:
        cases = [Case(b"work.work." + task_id, b"bad") for task_id in ids]
        assert not await siege.wait_buried(await siege.attack(cases), 5)


@pytest.mark.parametrize("pending", ["²", "9" * 5000], ids=["superscript", "long"])
@within(30)
async def test_status_with_an_odd_number(server: Server, pending: str) -> None:
    async with open_siege(server.port) as siege:
        block = f"NATS/1.0 408\r\nNats-Pending-Messages: {pending}\r\n\r\n".encode()
        await siege.attack([Case(siege.targets.pulls[-1].encode(), b"", block)])
        assert not await siege.find_harm("a status", 5)
        assert not siege.log.tracebacks


@pytest.mark.parametrize("answer", [b'{"stream":"TASK_DEAD"', b'{"stream":"TASK_RESULTS"'])
@within(60)
async def test_answer_to_a_worker_is_garbage(server: Server, answer: bytes) -> None:
    async with open_broken(server) as (proxy, siege):
        proxy.garbled = answer
        assert not await siege.wait_buried(await siege.attack([Case(b"work.work.1", b"bad")]), 15)
        assert not await siege.find_harm("an answer", 5)
        assert not proxy.garbled


@within(60)
async def test_answer_to_a_dispatcher_is_garbage(server: Server) -> None:
    async with open_broken(server) as (proxy, siege):
        proxy.garbled = b'{"stream":"TASKS"'
        assert not await siege.find_harm("an answer", 5)
        assert not proxy.garbled


# What a server says, and what a broken one says in its place, of the same length. What is no JSON
# is above; this is JSON, or would be if it were UTF-8.
ODD_ACKS = {
    "not UTF-8": (b'{"stream":"%b"', lambda name: b'{"stream":"%b"' % (b"\xff" * len(name))),
    "no stream": (b'{"stream":"%b"', lambda name: b'{"strawm":"%b"' % name),
    "a list for an error": (b'{"stream":"%b"', lambda name: b'{"error":[%b]' % (b"1" * len(name))),
    "a text for an error": (b'{"stream":"%b"', lambda name: b'{"error":"%b" ' % name),
}


@pytest.mark.parametrize("odd", ODD_ACKS.values(), ids=ODD_ACKS)
@pytest.mark.parametrize("stream", [b"TASKS", b"TASK_RESULTS", b"TASK_DEAD"])
@within(60)
async def test_acknowledgement_is_odd(
    server: Server, odd: tuple[bytes, Callable[[bytes], bytes]], stream: bytes
) -> None:
    """It confirms nothing: whoever waits for it asks again, and nothing is raised or left open."""
    said, make_odd = odd
    async with open_broken(server) as (proxy, siege):
        proxy.garbled = said % stream
        proxy.garbled_to = make_odd(stream).ljust(len(proxy.garbled))
        if stream == b"TASK_DEAD":
            attack = await siege.attack([Case(b"work.work.1", b"bad")])
            assert not await siege.wait_buried(attack, 15)
        assert not await siege.find_harm("an acknowledgement", 5)
        assert not proxy.garbled
        assert await siege.wait_left(0) == 0
        assert not siege.log.tracebacks, siege.log.tracebacks[0]


ODD_ANSWERS = {
    "a consumer without settings": (b'"config":{"durable', b'"confug":{"durable'),
    "a consumer that is not UTF-8": (b'"stream_name":"TASKS"', b'"stream_name":"TA\xffKS"'),
    "a stream without settings": (b'"config":{"name":"TASKS"', b'"confug":{"name":"TASKS"'),
    "a stream without a state": (b'"state":{"messages"', b'"stite":{"messages"'),
    "a stream with odd subjects": (b'"subjects":["work', b'"subjects":[5,"or'),
    "a stream with an odd time": (b'"ts":"20', b'"ts":"x0'),
    "names that are none": (b'"streams":["TASKS"]', b'"streams":"[TASKS]"'),
    "a list for an error": (b'"type":"io.nats.jetstream.', b'"error":[1],"y":"jetstrea.'),
}


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
@within(60)
async def test_answer_of_the_api_is_odd(server: Server, odd: tuple[bytes, bytes]) -> None:
    """It is asked for again: no block ends, and nothing is raised."""
    async with open_broken(server) as (proxy, siege):
        proxy.garbled, proxy.garbled_to = odd
        proxy.cut()  # the worker looks for its stream and its durable
        assert not await siege.find_harm("an answer", 5)
        assert not proxy.garbled
        assert not siege.log.tracebacks, siege.log.tracebacks[0]


@within(60)
async def test_look_up_of_a_task_is_odd(server: Server) -> None:
    """Of whoever cancels a task that was started elsewhere, and of a task with an ID of its own."""
    async with open_broken(server) as (proxy, siege):
        await siege.dispatcher.start("nobody", Message(id="mine"))
        future = await siege.dispatcher.attach("mine")
        proxy.garbled, proxy.garbled_to = b'"subject":"work.nobody', b'"subject":"work.somebo'
        await future.cancel()
        assert not proxy.garbled
        assert await siege.wait_left(0) == 0
        proxy.garbled, proxy.garbled_to = b"Nats-Subject: done.mine", b"Nats-Subject: done.mina"
        await siege.dispatcher.attach("mine")
        assert not proxy.garbled


@within(60)
async def test_server_of_an_odd_version(server: Server) -> None:
    """It is taken for one that can do nothing which is new."""
    proxy = BrokenServer(server.port)
    async with listening(proxy.serve) as port:
        proxy.garbled, proxy.garbled_to = b'"version":"2.', b'"version":"x.'
        async with open_dispatcher(f"nats://127.0.0.1:{port}") as dispatcher:
            assert not proxy.garbled
            later = datetime.now(UTC) + timedelta(hours=1)
            with pytest.raises(BrokerError, match=r"runs nats-server 0\.0, and not_before needs"):
                await dispatcher.start("nobody", Message(), not_before=later)
            await dispatcher.start("nobody", Message())


@within(60)
async def test_answer_of_the_api_is_garbage(server: Server) -> None:
    async with open_broken(server) as (proxy, siege):
        proxy.garbled = b'{"type":"io.nats.jetstream.api.v1.consumer_info_response"'
        proxy.cut()  # the worker looks for its durable
        assert not await siege.find_harm("an answer", 5)
        assert not proxy.garbled


@pytest.mark.parametrize("block", [b"NATS/1.0 404XY", b"NATS/1.0 503XY"])
@within(30)
async def test_result_that_looks_like_a_status(server: Server, block: bytes) -> None:
    """The server cuts two bytes off a stored block, and puts headers of its own there."""
    async with open_siege(server.port) as siege:
        await siege.attack([Case(b"done.hidden", b"", block)])
        with trio.fail_after(5):
            result = await siege.dispatcher.run("work", Message(id="hidden"))
        assert result.status == Status.FAILED


@within(30)
async def test_result_of_another_task(server: Server) -> None:
    """Whoever waits is told that it is not the result."""
    async with open_siege(server.port) as siege:
        future = await siege.dispatcher.start("nobody", Message())
        other = Result(id="other", status=Status.SUCCESS, outputs=1)
        await siege.attack([Case(b"done." + future.id.encode(), other.encode())])
        assert (await future.wait()).id == future.id


@within(30)
async def test_pattern_for_an_id_that_is_cancelled(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it becomes a dead letter: some result is no reason to let it go unseen."""
    bury, burying = NATSDelivery.bury, trio.Event()

    async def hang_once(delivery: NATSDelivery, reason: str, result: bytes | None) -> bool:
        if not burying.is_set():
            burying.set()
            await trio.sleep_forever()
        return await bury(delivery, reason, result)

    monkeypatch.setattr(NATSDelivery, "bury", hang_once)
    nats_swarm.configure(ack_wait=1)
    async with (
        nats_swarm.dispatcher() as dispatcher,
        nats_swarm.raw() as raw,
        nats_swarm.worker() as worker,
    ):
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message())
        await raw.store("work.coder.*", b"no JSON")
        await burying.wait()
        raw.connection.publish("cancel.coder.*", b"")
        await nats_swarm.wait_until_empty()
        assert worker.statistics().dead_letters == 1
