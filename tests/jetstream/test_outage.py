"""A server that is killed and comes back: nothing is lost, and everything goes on."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.nats_servers import kill, restarted
from tests._helpers.proxy import open_proxy
from trio_swarmtask import (
    BrokerError,
    ClosedError,
    Dispatcher,
    Message,
    NATSConfig,
    Result,
    RetryTask,
    Status,
    Worker,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._jetstream import _outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of the slow sweep alone."""
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)


@within(30)
async def test_start_waits_through_an_outage(server: Server) -> None:
    started, done = trio.Event(), trio.Event()

    async def start() -> None:
        future = await dispatcher.start("coder", Message(inputs={"a": "b"}))
        started.set()
        async with open_worker(server.url) as worker:
            await worker.handle("coder", echo)
            assert (await future.wait()).outputs == {"a": "b"}
        done.set()

    async with open_dispatcher(server.url) as dispatcher:
        kill(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            with trio.move_on_after(0.5):
                await started.wait()
            assert not started.is_set()
            with pytest.raises(trio.TooSlowError):
                with trio.fail_after(0.1):
                    await dispatcher.run("coder", Message())
            async with restarted(server):
                await started.wait()
                await done.wait()


@within(20)
@pytest.mark.parametrize("task_id", ["", "of-the-caller"])
async def test_closing_a_dispatcher_ends_starts_that_wait(server: Server, task_id: str) -> None:
    """Also with a connection that is shared and so stays, waiting for the server."""

    async def start() -> None:
        with pytest.raises(ClosedError):
            await dispatcher.start("coder", Message(id=task_id))

    async with open_broker(server.url) as broker, open_dispatcher(broker) as dispatcher:
        kill(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await until(lambda: dispatcher.statistics().outstanding)
            await trio.testing.wait_all_tasks_blocked()
            await dispatcher.aclose()


@within(30)
async def test_outstanding_future_gets_its_result(server: Server) -> None:
    """The worker stored it while the dispatcher was away, or after both came back."""
    running, go_on, ended = trio.Event(), trio.Event(), trio.Event()

    async def slow(message: Message) -> str:
        running.set()
        await go_on.wait()
        ended.set()
        return "done"

    async with open_dispatcher(server.url) as dispatcher, open_worker(server.url) as worker:
        await worker.handle("coder", slow)
        future = await dispatcher.start("coder", Message())
        await running.wait()
        kill(server)
        go_on.set()  # the handler ends during the outage
        await ended.wait()
        async with restarted(server):
            assert (await future.wait()).outputs == "done"
            # And it takes new tasks, one after another.
            for _ in range(3):
                assert (await dispatcher.run("coder", Message())).outputs == "done"
            await until(lambda: worker.statistics().succeeded == 4)


@within(30)
async def test_result_stored_while_away_is_looked_up(server: Server) -> None:
    """By a dispatcher behind a network that was cut; nobody tells it."""
    async with open_proxy(server.port) as proxy, open_dispatcher(proxy.url) as dispatcher:
        own = await dispatcher.start("coder", Message())
        named = await dispatcher.start("coder", Message(id="mine"))
        proxy.cut(for_good=True)
        async with open_worker(server.url) as worker:
            await worker.handle("coder", echo)
            await NATSSwarm(server.url).wait_until_empty()
        assert dispatcher.statistics().outstanding == 2
        proxy.mend()
        assert (await own.wait()).status == Status.SUCCESS
        assert (await named.wait()).status == Status.SUCCESS


@asynccontextmanager
async def roles(server: Server, **settings: Any) -> AsyncIterator[tuple[Dispatcher, Worker]]:
    config = NATSConfig(server.url, **settings)
    async with open_dispatcher(config) as dispatcher, open_worker(config) as worker:
        yield dispatcher, worker


@within(30)
async def test_task_that_a_killed_server_offers_as_new_is_looked_up(server: Server) -> None:
    """It forgets its last deliveries, and the last acks: the number of the delivery is 1 again."""
    ran: list[str] = []
    began, done = trio.Event(), trio.Event()

    async def handler(message: Message) -> None:
        ran.append(message.id)
        began.set()
        await done.wait()

    async with open_dispatcher(server.url) as dispatcher, open_worker(server.url) as worker:
        await worker.handle("coder", handler, max_in_flight=1)
        first = await dispatcher.start("coder", Message(id="first"))
        await began.wait()
        # Behind the first one, never delivered: as good as delivered and forgotten.
        second = await dispatcher.start("coder", Message(id="second"))
        await NATSSwarm(server.url).store_result("second", Result(status=Status.SUCCESS).encode())
        kill(server)
        async with restarted(server):
            third = await dispatcher.start("coder", Message(id="third"))
            done.set()
            for future in (first, second, third):
                await future.wait()
            await NATSSwarm(server.url).wait_until_empty()
    assert ran in (["first", "third"], ["first", "first", "third"])


@within(30)
async def test_lost_for_good_every_waiter_hears(server: Server) -> None:
    heard: list[str] = []

    async def expect_lost(act: Callable[[], Any]) -> None:
        with pytest.raises(BrokerError, match=r"for good: no server for 0\.5 seconds"):
            await act()
        heard.append("lost")

    config = NATSConfig(server.url, reconnect_timeout=0.5)
    with pytest.raises(BrokerError, match=r"for good: no server for 0\.5 seconds"):
        async with open_dispatcher(config) as dispatcher:
            future = await dispatcher.start("coder", Message())
            named = await dispatcher.start("coder", Message(id="mine"))
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(expect_lost, future.wait)
                    nursery.start_soon(expect_lost, future.wait)
                    nursery.start_soon(expect_lost, named.wait)
                    kill(server)
                    nursery.start_soon(expect_lost, lambda: dispatcher.start("coder", Message()))
                with pytest.raises(BrokerError, match="for good"):
                    await dispatcher.start("coder", Message())
                with pytest.raises(BrokerError, match="for good"):
                    await future.wait()
    assert heard == ["lost"] * 4


@pytest.mark.parametrize("kind", ["dispatcher", "worker", "broker", "both"])
@within(30)
async def test_block_that_only_sleeps_is_left_by_a_bare_error(server: Server, kind: str) -> None:
    config = NATSConfig(server.url, reconnect_timeout=0.3)
    with pytest.raises(BrokerError, match=r"lost .* for good: no server for 0\.3 seconds"):
        if kind == "dispatcher":
            async with open_dispatcher(config):
                kill(server)
                await trio.sleep_forever()
        elif kind == "worker":
            async with open_worker(config) as worker:
                await worker.handle("coder", echo)
                kill(server)
                await trio.sleep_forever()
        elif kind == "broker":
            async with open_broker(config):
                kill(server)
                await trio.sleep_forever()
        else:
            async with (
                open_broker(config) as broker,
                open_dispatcher(broker) as dispatcher,
                open_worker(broker) as worker,
            ):
                await worker.handle("coder", echo)
                await dispatcher.start("nobody", Message())
                kill(server)
                await trio.sleep_forever()


@within(30)
async def test_worker_with_a_handler_is_left_when_lost(server: Server) -> None:
    """The handler is cancelled; it can't be given back, and that does not hold up the end."""
    cancelled: list[str] = []
    running = trio.Event()

    async def stick(message: Message) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(message.id)

    with pytest.raises(BrokerError, match="for good"):
        async with roles(server, reconnect_timeout=0.3) as (dispatcher, worker):
            await worker.handle("coder", stick)
            future = await dispatcher.start("coder", Message())
            await running.wait()
            kill(server)
            await trio.sleep_forever()
    assert cancelled == [future.id]


@pytest.mark.parametrize("way", ["leave", "aclose", "shutdown", "raise", "cancel"])
@within(60)
async def test_closing_while_the_server_is_gone_is_bounded(server: Server, way: str) -> None:
    running = trio.Event()
    seen: Counter[str] = Counter()

    async def ends_soon(message: Message) -> None:
        seen[message.id] += 1
        running.set()
        await trio.sleep(0.2)

    began = 0.0
    with trio.CancelScope() as scope:
        try:
            async with roles(server, ack_wait=2) as (dispatcher, worker):
                await worker.handle("coder", ends_soon)
                future = await dispatcher.start("coder", Message())
                await running.wait()
                kill(server)
                began = trio.current_time()
                if way == "aclose":
                    await worker.aclose()
                    await dispatcher.aclose()
                elif way == "shutdown":
                    with pytest.raises(trio.TooSlowError):
                        await worker.shutdown(0.1)
                    with pytest.raises(trio.TooSlowError):
                        await dispatcher.shutdown(0.1)
                elif way == "raise":
                    raise LookupError("mine")
                elif way == "cancel":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
        except LookupError:
            assert way == "raise"
    assert trio.current_time() - began < 15
    with pytest.raises(ClosedError):
        await future.wait()


@within(60)
async def test_attempt_is_never_early(server: Server) -> None:
    """The server is killed in the pause before, and forgets how long that was to be."""
    times: list[float] = []

    async def fail_once(message: Message) -> None:
        times.append(trio.current_time())
        if len(times) == 1:
            raise RetryTask(delay=2.5)

    async with open_worker(server.url) as worker, open_dispatcher(server.url) as dispatcher:
        await worker.handle("coder", fail_once)
        future = await dispatcher.start("coder", Message(max_attempts=2))
        await until(lambda: worker.statistics().retried)
        kill(server)
        async with restarted(server):
            await future.wait()
    first, second = times
    assert second - first >= 2.5
