"""Much that comes over a link that is slow, or breaks: all of it arrives, at the link's pace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from tests._helpers.slow_link import open_link
from tests._helpers.stream_setup import make
from tests.jetstream.test_results import ONE_EACH, result_bytes
from trio_swarmtask import Message, NATSConfig, Status, open_broker, open_dispatcher, open_worker
from trio_swarmtask._jetstream import _intake, _outbox, _portions
from trio_swarmtask._jetstream._portions import Portions
from trio_swarmtask._nats import _client, _requests
from trio_swarmtask._nats._connection import open_connection
from trio_swarmtask._nats._protocol import Incoming
from trio_swarmtask._nats._requests import NoAnswer, NoResponders

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask.server import Server


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may pass because of a slow sweep alone."""
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)


STREAMS = [{"allow_direct": True, **ONE_EACH}, {"allow_direct": True}, ONE_EACH, {}]


@pytest.mark.parametrize("settings", STREAMS, ids=["direct", "history", "leader", "neither"])
@within(20)
async def test_results_that_came_before_a_break_are_kept(
    server: Server, settings: dict[str, Any]
) -> None:
    """No connection lives long enough for all of them, nor for half."""
    swarm = NATSSwarm(server.url)
    async with swarm.raw() as raw, open_link(server.port) as link:
        await make(raw, "ANSWERS", "done.>", **settings)
        async with open_dispatcher(link.url) as dispatcher:
            futures = [await dispatcher.start("coder", Message()) for _ in range(10)]
            link.cut(for_good=True)
            for future in futures:
                await raw.store(f"done.{future.id}", result_bytes(future.id, "x" * 100_000))
            link.allowance = 300_000
            link.mend()
            for future in futures:
                assert (await future.wait()).outputs == "x" * 100_000
        assert link.connections > 3


@within(20)
async def test_answer_that_is_cut_short_is_gone_on_with_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends as many bytes as it is asked for; near 64 MiB it would in any case."""
    monkeypatch.setattr(_portions, "_MOST", 1000)
    monkeypatch.setattr(_portions, "_FIRST", 1000)
    swarm = NATSSwarm(server.url)
    async with open_link(server.port) as link, open_dispatcher(link.url) as dispatcher:
        futures = [await dispatcher.start("coder", Message()) for _ in range(9)]
        other = await dispatcher.start("coder", Message())
        link.cut(for_good=True)
        async with swarm.raw() as raw:
            for future in futures:
                await raw.store(f"done.{future.id}", result_bytes(future.id, "x" * 900))
        link.mend()
        for future in futures:
            await future.wait()
        assert "waiting" in repr(other)


@within(20)
async def test_worker_finds_all_that_is_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several answers; of what is not there it says nothing."""
    monkeypatch.setattr(_portions, "_FIRST", 1000)
    monkeypatch.setattr(_portions, "_MOST", 1000)
    swarm = NATSSwarm(server.url)
    names = [f"t{number}" for number in range(600)]
    async with swarm.open() as broker, broker.open_intake("coder", each(print)) as intake:
        for name in names[::100]:
            await swarm.store_result(name, result_bytes(name, "x" * 900))
        found = await intake.find_done(names)
        assert set(found) == set(names[::100])
        assert all(len(data) > 900 for data in found.values())
        assert await intake.find_done([]) == {}


@within(20)
async def test_end_of_an_answer_that_is_lost(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All has come: there is nothing to ask for again."""
    asked: list[int] = []
    find = Portions.find

    async def lose_the_end(self: Portions, *args: Any) -> list[str]:
        asked.append(len(args[2]))
        await find(self, *args)
        raise NoAnswer("the connection was lost")

    monkeypatch.setattr(Portions, "find", lose_the_end)
    swarm = NATSSwarm(server.url)
    async with swarm.open() as broker, broker.open_intake("coder", each(print)) as intake:
        await swarm.store_result("t1", b"data")
        assert await intake.find_done(["t1"]) == {"t1": b"data"}
    assert asked == [1]


@within(20)
async def test_results_heard_meanwhile_are_not_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the notices of others that come in while the rest is looked up."""
    monkeypatch.setattr(_portions, "_FIRST", 1)
    monkeypatch.setattr(_portions, "_MOST", 1)
    asked: list[int] = []
    fetch = Portions.fetch

    async def note(self: Portions, stream: str, take: Any, **which: Any) -> bool:  # noqa: ANN401 - any
        asked.append(len(which["multi_last"]))
        more = await fetch(self, stream, take, **which)
        if len(asked) == 1:
            for future in futures[1:]:
                await raw.store(f"done.{future.id}", result_bytes(future.id, "x"))
            await until(lambda: dispatcher.statistics().outstanding == 1)
        return more

    async with (
        NATSSwarm(server.url).raw() as raw,
        open_link(server.port) as link,
        open_dispatcher(link.url) as dispatcher,
    ):
        futures = [await dispatcher.start("coder", Message()) for _ in range(5)]
        link.cut(for_good=True)
        for future in futures[:2]:
            await raw.store(f"done.{future.id}", result_bytes(future.id, "x"))
        del futures[1]
        monkeypatch.setattr(Portions, "fetch", note)
        link.mend()
        await until(lambda: dispatcher.statistics().outstanding == 0)
        await trio.testing.wait_all_tasks_blocked()
    assert asked == [5, 1]


@pytest.mark.parametrize("how", ["missed", "looked up", "heard"])
@within(20)
async def test_bytes_that_trickle_are_a_sign_of_life(
    server: Server, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One message takes longer than a PONG may, and than a reply."""
    monkeypatch.setattr(_client, "_PING_INTERVAL", 0.1)
    monkeypatch.setattr(_requests, "REQUEST_SECONDS", 0.2)
    swarm = NATSSwarm(server.url)
    async with open_link(server.port) as link, open_dispatcher(link.url) as dispatcher:
        future = await dispatcher.start("coder", Message(id="large"))
        if how == "missed":
            link.cut(for_good=True)
        elif how == "looked up":
            dispatcher.forget(future)
        link.rate = 300_000
        await swarm.store_result("large", result_bytes("large", "x" * 500_000))
        link.mend()
        before = link.connections
        if how == "looked up":
            future = await dispatcher.attach("large")
        assert (await future.wait()).outputs == "x" * 500_000
        assert link.connections - before == (how == "missed")


@within(20)
async def test_heartbeat_that_is_late_behind_much_else(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pull stands as it is: what is under way to it is not lost."""
    monkeypatch.setattr(_intake, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(_intake, "_HEARTBEAT", 0.2)
    swarm = NATSSwarm(server.url)
    async with (
        open_link(server.port) as link,
        open_broker(link.url) as broker,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        await worker.handle("coder", echo)
        future = await dispatcher.start("nobody", Message())
        link.rate = 300_000
        await swarm.store_result(future.id, result_bytes(future.id, "x" * 500_000))
        await future.wait()
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    assert "no heartbeat" not in caplog.text


@within(10)
async def test_catching_up_with_a_connection_that_goes(server: Server) -> None:
    async with open_link(server.port) as link:
        config = NATSConfig(link.url)
        async with open_connection(config) as connection, trio.open_nursery() as nursery:
            link.freeze()
            nursery.start_soon(connection.catch_up)
            await trio.testing.wait_all_tasks_blocked()
            link.cut(for_good=True)
            await until(lambda: not nursery.child_tasks)
            await connection.catch_up()


# The portions themselves, on virtual time


def message(name: str) -> Incoming:
    head = f"NATS/1.0\r\nNats-Subject: s.{name}\r\nNats-Sequence: 1\r\n\r\n"
    return Incoming(b"inbox", None, head.encode(), b"data")


def end(status: str, pending: int = 0) -> Incoming:
    head = f"NATS/1.0 {status}\r\nNats-Num-Pending: {pending}\r\n\r\n"
    return Incoming(b"inbox", None, head.encode(), b"")


class Answers:
    """Stands for the requests: answers each as it is told, after so many seconds."""

    def __init__(self, *answers: tuple[float, list[Incoming], Incoming | Exception]) -> None:
        self._answers = list(answers)
        self.sizes: list[int] = []

    async def collect(
        self, subject: str, data: bytes, take: Callable[[Incoming], None]
    ) -> Incoming:
        assert subject == "$JS.API.DIRECT.GET.S"
        self.sizes.append(msgspec.json.decode(data)["max_bytes"])
        seconds, messages, last = self._answers.pop(0)
        await trio.sleep(seconds)
        for one in messages:
            take(one)
        if isinstance(last, Exception):
            raise last
        return last


def on_virtual_time(test: Callable[..., Any], *args: object) -> None:
    trio.run(test, *args, clock=MockClock(autojump_threshold=0))


def test_portions_fit_the_link() -> None:
    async def main() -> None:
        more, all_of_it = end("204", pending=5), end("204")
        answers = Answers(
            *[(0.1, [message("a")], more)] * 6,  # a fast one
            (0.1, [message("a")], all_of_it),  # which says nothing of more
            (3.0, [message("a")], more),  # a slow one
            (9.0, [message("a")], NoAnswer("it broke")),
            *[(9.0, [message("a")], more)] * 30,
        )
        portions = Portions(answers)  # type: ignore[arg-type]  # a stand-in
        for number in range(39):
            if number == 8:
                with pytest.raises(NoAnswer):
                    await portions.fetch("S", lambda _: None)
            else:
                assert await portions.fetch("S", lambda _: None) == (number != 6)
        kib = [size / 1024 for size in answers.sizes[:12]]
        assert kib == [256, 512, 1024, 2048, 4096, 4096, 4096, 4096, 2048, 512, 256, 128]
        assert answers.sizes[-1] == 1

    on_virtual_time(main)


@pytest.mark.parametrize(
    ("answer", "missing", "gone"),
    [
        ((0, [message("a")], end("204", pending=1)), ["b", "c"], []),
        ((0, [message("a")], end("404")), ["b", "c"], []),  # one was deleted meanwhile
        ((0, [message("a")], end("204")), [], ["b", "c"]),
        ((0, [], end("404")), [], ["a", "b", "c"]),
        ((0, [message("other")], end("204", pending=1)), [], ["a", "b", "c"]),
        ((0, [], end("204", pending=1)), [], ["a", "b", "c"]),
    ],
)
def test_what_an_answer_says_of_the_rest(answer: Any, missing: list[str], gone: list[str]) -> None:  # noqa: ANN401 - any
    """Where nothing of use came, it is not asked for again and again."""

    async def main() -> None:
        wanted = dict.fromkeys(["a", "b", "c"])
        came: list[str] = []
        portions = Portions(Answers(answer))  # type: ignore[arg-type]  # a stand-in
        found = await portions.find("S", "s.", wanted, lambda name, _: came.append(name))
        assert (list(wanted), found) == (missing, gone)
        assert set(came) == {"a", "b", "c"} - {*missing, *gone}

    on_virtual_time(main)


def test_answer_of_another_kind() -> None:
    async def main() -> None:
        portions = Portions(Answers((0, [], end("503"))))  # type: ignore[arg-type]  # a stand-in
        with pytest.raises(NoResponders, match="a direct get of S"):
            await portions.fetch("S", lambda _: None)

    on_virtual_time(main)
