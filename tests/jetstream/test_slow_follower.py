"""Following a task whose reports come without pause, by others than a worker, over a slow link."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.attack import logged
from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.nats_servers import configured, listening
from tests._helpers.plain_nats import PlainClient, Received, open_plain_client
from tests._helpers.proxy import HOST, OneWay, Proxy, open_proxy
from trio_swarmtask import BrokerError, Message, open_dispatcher, open_worker
from trio_swarmtask._nats import _client, _requests
from trio_swarmtask._nats._protocol import Incoming
from trio_swarmtask._record import encode
from trio_swarmtask.results import Result, ResultStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio_swarmtask import Dispatcher, Future
    from trio_swarmtask.server import Server


class SlowLink(Proxy):
    """So many bytes a second to the client."""

    bytes_a_second = 1_000_000

    async def _answer(self, client: trio.SocketStream, data: bytes) -> None:
        await super()._answer(client, data)
        await trio.sleep(len(data) / self.bytes_a_second)


@asynccontextmanager
async def slow_dispatcher(server: Server) -> AsyncIterator[Dispatcher]:
    link = SlowLink(server.port)
    async with listening(link.serve) as port, open_dispatcher(f"nats://{HOST}:{port}") as opened:
        yield opened


def report(task_id: str, number: int, size: int = 0) -> bytes:
    metadata = {"note": f"{number}", "more": "x" * size}
    return encode(Result(task_id=task_id, status=ResultStatus.PENDING, metadata=metadata))


async def flood(client: PlainClient, task_id: str, size: int, pause: float = 0.005) -> None:
    """Without end, faster than the link."""
    data = report(task_id, 0, size)
    line = f"PUB results.{task_id} {len(data)}\r\n".encode()
    while True:
        await client.send((line + data + b"\r\n") * max(1, 100_000 // size))
        await trio.sleep(pause)


async def follow(future: Future, heard: list[str], *, task_status: trio.TaskStatus[None]) -> None:
    async with future.updates() as updates:
        task_status.started()
        async for update in updates:
            heard += [(update.metadata or {})["note"]]


@pytest.mark.parametrize(("followers", "size"), [(1, 1000), (10, 1000), (1, 50_000), (5, 20_000)])
@within(60)
async def test_other_tasks_are_not_held_up(server: Server, size: int, followers: int) -> None:
    """The follower loses reports, and nothing else; when it can keep up again, it hears all."""
    heard: list[str] = []
    took: list[float] = []
    with logged() as log:
        async with (
            open_plain_client(server.port) as client,
            open_worker(server.url) as worker,
            slow_dispatcher(server) as dispatcher,
            trio.open_nursery() as nursery,
        ):
            await worker.handle("quick", echo)
            futures = [await dispatcher.start("nobody", Message()) for _ in range(followers)]
            async with trio.open_nursery() as flooding:
                for future in futures:
                    await nursery.start(follow, future, heard)
                    before = len(heard)
                    flooding.start_soon(flood, client, future.id, size, 0.01 * followers)
                    await until(lambda: len(heard) > before)  # noqa: B023 - of this round
                for _ in range(5):
                    began = trio.current_time()
                    await dispatcher.run("quick", Message())
                    took.append(trio.current_time() - began)
                flooding.cancel_scope.cancel()
            await client.flush()
            for _ in range(2):  # behind what is left of the flood, and what is asked for after it
                await dispatcher.run("quick", Message())
            before = len(heard)
            for number in (1, 2, 3):
                await client.publish(f"results.{futures[0].id}", report(futures[0].id, number))
            await until(lambda: heard[-3:] == ["1", "2", "3"])
            assert before > 0
            nursery.cancel_scope.cancel()
    assert max(took) < 8, took  # of a second or two, where nothing else keeps the machine busy
    assert not [line for line in log.lines if "lost the connection" in line]


@within(20)
async def test_who_keeps_up_hears_all(server: Server) -> None:
    """In order, and each once, however many there are in the long run."""
    heard: list[str] = []
    async with (
        open_plain_client(server.port) as client,
        open_dispatcher(server.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        future = await dispatcher.start("nobody", Message())
        await nursery.start(follow, future, heard)
        for first in range(0, 640, 16):
            for number in range(first, first + 16):
                await client.publish(f"results.{future.id}", report(future.id, number))
            await until(lambda: len(heard) == first + 16)  # noqa: B023 - of this round
            await dispatcher.start("nobody", Message())  # behind what is asked for
        assert heard == [f"{number}" for number in range(640)]
        nursery.cancel_scope.cancel()


@within(20)
async def test_reports_that_grow_and_shrink(server: Server) -> None:
    """What is asked for at a time goes with their size."""
    heard: list[str] = []
    async with (
        open_plain_client(server.port) as client,
        open_dispatcher(server.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        future = await dispatcher.start("nobody", Message())
        await nursery.start(follow, future, heard)
        for number in range(600):
            size = 200_000 if 200 <= number < 300 else 0
            await client.publish(f"results.{future.id}", report(future.id, number, size))
            await until(lambda: len(heard) == number + 1)  # noqa: B023 - of this round
            await dispatcher.start("nobody", Message())  # behind what is asked for
        assert heard == [f"{number}" for number in range(600)]
        nursery.cancel_scope.cancel()


@within(20)
async def test_flood_while_it_begins(server: Server) -> None:
    """More has come than was asked for before the subscription was known to stand."""
    heard: list[str] = []
    async with (
        open_plain_client(server.port) as client,
        open_dispatcher(server.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        for number in range(20):
            future = await dispatcher.start("nobody", Message(id=f"t-{number}"))
            nursery.start_soon(flood, client, future.id, 300)
            await nursery.start(follow, future, heard)
            before = len(heard)
            await until(lambda: len(heard) > before + 200)  # noqa: B023 - of this round
            dispatcher.forget(future)
        nursery.cancel_scope.cancel()


@within(20)
async def test_outages_leave_nothing_behind(
    server: Server, nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at the server nor here: of what was asked for before them."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    heard: list[str] = []
    async with (
        open_plain_client(server.port) as client,
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        future = await dispatcher.start("nobody", Message())
        connection = dispatcher._core.outbox._connection  # type: ignore[attr-defined]  # the one of a server
        subscriptions = len(connection.client._subs)
        await nursery.start(follow, future, heard)
        for _ in range(5):
            before = len(heard)
            nursery.start_soon(flood, client, future.id, 300)
            await until(lambda: len(heard) > before + 100)  # noqa: B023 - of this round
            proxy.cut()
            await until(lambda: not connection.is_up)
            await connection.wait_up()
        before = len(heard)
        await until(lambda: len(heard) > before + 100)
        assert len(connection.client._subs) <= subscriptions + 2
        nursery.cancel_scope.cancel()
    assert connection.followed == 0


async def tell(client: PlainClient, task_id: str, numbers: range) -> None:
    for number in numbers:
        await client.publish(f"results.{task_id}", report(task_id, number))
    await client.flush()


@within(20)
async def test_nothing_is_heard_twice_after_an_outage(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is there too little asked for: what had been heard before does not count."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    heard: list[str] = []
    async with (
        open_plain_client(server.port) as client,
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        future = await dispatcher.start("nobody", Message())
        connection = dispatcher._core.outbox._connection  # type: ignore[attr-defined]  # the one of a server
        await nursery.start(follow, future, heard)
        for first in range(0, 96, 16):  # as many as make it ask again, and the server end the last
            await tell(client, future.id, range(first, first + 16))
            await until(lambda: len(heard) == first + 16)  # noqa: B023 - of this round
            proxy.cut()
            await until(lambda: not connection.is_up)
            await connection.wait_up()
            await dispatcher.start("nobody", Message())  # behind what is asked for
        assert heard == [f"{number}" for number in range(96)]
        nursery.cancel_scope.cancel()


@within(20)
async def test_echo_that_comes_late_or_not_at_all(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then just as many may have come as were asked for before, though more were to come."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    echoes: list[Callable[[Incoming | None], None]] = []
    monkeypatch.setattr(
        _requests.Requests, "echo_soon", lambda _, callback: echoes.append(callback)
    )
    heard: list[str] = []
    link = OneWay(server.port)
    async with (
        open_plain_client(server.port) as client,
        listening(link.serve) as port,
        open_dispatcher(f"nats://{HOST}:{port}") as dispatcher,
        trio.open_nursery() as nursery,
    ):
        future = await dispatcher.start("nobody", Message())
        connection = dispatcher._core.outbox._connection  # type: ignore[attr-defined]  # the one of a server
        await nursery.start(follow, future, heard)
        for number in range(32):
            await tell(client, future.id, range(number, number + 1))
            await until(lambda: len(heard) == number + 1)  # noqa: B023 - of this round
        [late] = echoes
        link.free = trio.Event()
        await tell(client, future.id, range(32, 33))
        late(Incoming(b"", None, b"", b""))  # it takes what has not come for dropped
        link.free.set()
        await until(lambda: heard[-1] == "32")
        await dispatcher.start("nobody", Message())  # behind what is asked for
        for number in range(33, 200):
            await tell(client, future.id, range(number, number + 1))
            await until(lambda: len(heard) == number + 1)  # noqa: B023 - of this round
        [_, missing] = echoes
        link.cut()
        await until(lambda: not connection.is_up)
        missing(None)
        await connection.wait_up()
        missing(None)  # of a subscription that is gone
        await dispatcher.start("nobody", Message())
        await tell(client, future.id, range(200, 216))
        await until(lambda: len(heard) == 216)
        assert heard == [f"{number}" for number in range(216)]
        nursery.cancel_scope.cancel()


@within(20)
async def test_begin_in_an_outage(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    heard: list[str] = []
    async with (
        open_plain_client(server.port) as client,
        open_proxy(server.port) as proxy,
        open_dispatcher(proxy.url) as dispatcher,
        trio.open_nursery() as nursery,
    ):
        future = await dispatcher.start("nobody", Message())
        connection = dispatcher._core.outbox._connection  # type: ignore[attr-defined]  # the one of a server
        proxy.cut(for_good=True)
        await until(lambda: not connection.is_up)
        async with trio.open_nursery() as beginning:
            beginning.start_soon(nursery.start, follow, future, heard)
            await until(lambda: connection.followed == 1)
            proxy.mend()
        await tell(client, future.id, range(16))
        await until(lambda: heard == [f"{number}" for number in range(16)])
        nursery.cancel_scope.cancel()


async def free_behind(echoes: trio.MemoryReceiveChannel[Received], link: OneWay) -> None:
    await echoes.receive()  # it comes behind the subscription
    link.free.set()


@within(20)
async def test_place_that_another_subscription_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has ended ours, and takes no more: there are no reports until there is room."""
    monkeypatch.setattr(_requests, "REQUEST_SECONDS", 2)
    heard: list[str] = []
    with logged() as log:
        async with configured(tmp_path, "max_subscriptions: 4") as server:
            link = OneWay(server.port)
            async with (
                open_plain_client(server.port) as client,
                listening(link.serve) as port,
                open_dispatcher(f"nats://{HOST}:{port}") as dispatcher,
                trio.open_nursery() as nursery,
            ):
                future = await dispatcher.start("nobody", Message())
                await nursery.start(follow, future, heard)
                link.free = trio.Event()
                await tell(client, future.id, range(40))
                echoes = await client.subscribe("_INBOX.>")
                async with trio.open_nursery() as freeing:
                    freeing.start_soon(free_behind, echoes, link)
                    other = await dispatcher.attach("other")  # which has the place now
                await until(lambda: any("maximum subscriptions" in line for line in log.lines))
                await until(lambda: heard[-1:] == ["31"])  # and no more
                dispatcher.forget(other)
                while heard[-1] != "50":
                    await tell(client, future.id, range(50, 51))
                    with trio.move_on_after(0.1):
                        await until(lambda: heard[-1] == "50")
                with pytest.raises(BrokerError, match="maximum subscriptions exceeded"):
                    await dispatcher.attach("another")
                await tell(client, future.id, range(51, 52))
                await until(lambda: heard[-1] == "51")
                nursery.cancel_scope.cancel()
    assert not [line for line in log.lines if "lost the connection" in line]
