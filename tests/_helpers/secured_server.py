# A server with the permissions of docs/security.md, and what each role of it does, for tests.

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo
from tests._helpers.nats_servers import configured
from tests._helpers.proxy import Proxy, open_proxy
from trio_swarmtask import (
    Message,
    NATSConfig,
    Result,
    Status,
    current_task,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask._jetstream import _bucket as _watch, _outbox
from trio_swarmtask._nats import _client
from trio_swarmtask._nats._connection import open_connection
from trio_swarmtask.results import (
    Result as Record,
    ResultExistsError,
    ResultNotFoundError,
    ResultStatus,
    open_kv_publisher,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask._nats._protocol import Incoming
    from trio_swarmtask.server import Server


DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")

REFUSED: Final = r"does not permit this user to (publish|subscribe) to (\S+)"


def fenced(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(text)


BLOCK: Final = fenced("conf")
ROLES: Final = ("dispatcher", "canceller", "scheduler", "worker", "reader", "publisher")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects at once, and looks up what was missed after an outage alone."""
    monkeypatch.setattr(_client, "_RECONNECT_WAIT", 0.01)
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)
    monkeypatch.setattr(_watch, "SWEEP_SECONDS", 3600)
    for role in ("admin", *ROLES):
        monkeypatch.setenv(f"{role.upper()}_PASSWORD", f"s3cret-{role}")


class Site:
    """A server with the block's users, where the administrator has been."""

    def __init__(self, server: Server, proxy: Proxy) -> None:
        self.proxy = proxy
        self.admin = NATSConfig(server.url, user="admin", password="s3cret-admin", ack_wait=1)
        self.swarm = NATSSwarm(f"nats://admin:s3cret-admin@127.0.0.1:{server.port}")

    def config(self, role: str) -> NATSConfig:
        """A login that can be cut off, of somebody who makes nothing on the server."""
        return NATSConfig(
            self.proxy.url,
            user=role,
            password=f"s3cret-{role}",
            connect_timeout=2,
            manage_streams=False,
        )


@asynccontextmanager
async def open_site(directory: Path, block: str = BLOCK) -> AsyncIterator[Site]:
    async with configured(directory, block) as server, open_proxy(server.port) as proxy:
        site = Site(server, proxy)
        program: dict[str, Any] = {}
        exec(fenced("python"), program)
        await program["prepare"](site.admin)
        yield site


# What each role does


async def dispatch(site: Site) -> None:
    """Tasks of both kinds of IDs, one that is known or followed; results that come in an outage."""
    async with open_dispatcher(site.config("dispatcher")) as dispatcher:
        async with open_worker(site.admin) as worker:
            await worker.handle("coder", echo)
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
            for value in ("a", "b"):
                result = await dispatcher.run("coder", Message(id="mine", inputs={"is": value}))
                assert result.outputs == {"is": "a"}
        async with site.swarm.outbox() as outbox:
            await outbox.store(NewTask("coder", "queued", Message(id="queued").encode()))
        futures = [await dispatcher.start("coder", Message(id=name)) for name in ("", "queued")]
        async with futures[0].updates(), dispatcher.open_group(orphans="cancel"):
            pass
        site.proxy.cut(for_good=True)
        for future in futures:
            result = Result(id=future.id, status=Status.SUCCESS)
            await site.swarm.store_result(future.id, result.encode())
        site.proxy.mend()
        for future in futures:
            assert (await future.wait()).status == Status.SUCCESS


async def cancel(site: Site) -> None:
    """A task that waits, one that runs, and one that has ended."""
    started = trio.Event()

    async def handle(message: Message) -> None:
        if message.id == "runs":
            started.set()
            await trio.sleep_forever()

    async with (
        open_dispatcher(site.config("canceller")) as canceller,
        site.swarm.outbox() as outbox,
    ):
        await outbox.store(NewTask("coder", "waits", Message(id="waits").encode()))
        waits = await canceller.attach("waits")
        await waits.cancel()
        assert (await waits.wait()).cancelled_by
        async with open_worker(site.admin) as worker, open_dispatcher(site.admin) as dispatcher:
            await worker.handle("coder", handle)
            future = await dispatcher.start("coder", Message(id="runs"))
            await started.wait()
            runs = await canceller.attach("runs")
            assert await canceller._core.futures.cancel(runs, 5)
            assert (await future.wait()).cancelled_by
            done = await dispatcher.run("coder", Message(id="done"))
        future = await canceller.attach("done")
        await future.cancel()
        assert await future.wait() == done


async def schedule(site: Site) -> None:
    """A task for later, of an ID of its own; and a schedule, from its beginning to its end."""
    async with (
        open_dispatcher(site.config("scheduler")) as scheduler,
        open_worker(site.admin) as worker,
    ):
        await worker.handle("coder", echo)
        due = datetime.now(UTC) + timedelta(seconds=0.2)
        future = await scheduler.start("coder", Message(id="later"), not_before=due)
        assert (await future.wait()).status == Status.SUCCESS
        await scheduler.schedule("tick", "coder", Message(), every=3600)
        assert [schedule.name for schedule in await scheduler.schedules()] == ["tick"]
        assert await scheduler.unschedule("tick")


async def work(site: Site) -> None:
    """Tasks that end in each way, a lease that is renewed, and one that is given back."""
    config = site.config("worker")
    handled, renewed = trio.Event(), trio.Event()
    renewals: list[Incoming] = []

    async def handle(message: Message) -> str:
        await current_task().report(0.5)
        if message.id == "fails":
            raise ValueError("no luck")
        if message.id == "given-back" and not handled.is_set():
            handled.set()
            await trio.sleep_forever()
        return "done"

    def on_ack(ack: Incoming) -> None:
        if ack.data == b"+WPI":
            renewals.append(ack)
            if len(renewals) > 2:  # it has looked whether the task was cancelled, by then
                renewed.set()

    async with open_connection(site.admin) as admin, open_dispatcher(site.admin) as dispatcher:
        admin.subscribe("$JS.ACK.>", on_ack)
        with trio.CancelScope() as scope:
            async with open_worker(config, max_deliveries=1) as worker:
                await worker.handle("coder", handle)
                future = await dispatcher.start("coder", Message(id="given-back"))
                await handled.wait()
                await renewed.wait()
                scope.cancel()
        async with open_worker(config, max_deliveries=1) as worker:
            await worker.handle("coder", handle)
            again = await future.wait()
            assert (again.status, again.attempt) == (Status.SUCCESS, 2)
            assert (await dispatcher.run("coder", Message(id="fails"))).error == "no luck"
            async with site.swarm.outbox() as outbox:
                await outbox.renew_group_lease("group-1")
                data = Message(id="leased").encode()
                await outbox.store(NewTask("coder", "leased", data, group_lease="group-1"))
                leased = await dispatcher.run("coder", Message(id="leased"))
                assert leased.status == Status.SUCCESS
                await outbox.store(NewTask("coder", "bad", b"no JSON"))
            assert (await dispatcher.run("coder", Message(id="bad"))).status == Status.FAILED
    await site.swarm.wait_until_empty()
    assert "bad" in await site.swarm.dead_letters()


async def read(site: Site) -> None:
    """Get, list and follow; and an end that is published in an outage."""
    end = Record(status=ResultStatus.SUCCESS, output=b"end")
    async with (
        open_kv_publisher(site.admin) as publisher,
        open_kv_publisher(site.config("reader")) as reader,
    ):
        with pytest.raises(ResultNotFoundError):
            await reader.get("t1")
        assert await reader.list() == []
        await publisher.publish("t1", Record(status=ResultStatus.PENDING))
        async with reader.subscribe("t1") as updates:
            assert (await anext(updates)).status == ResultStatus.PENDING
            site.proxy.cut(for_good=True)
            await publisher.publish("t1", end)
            site.proxy.mend()
            assert (await anext(updates)).output == b"end"
        async with reader.subscribe("t2") as updates:
            await publisher.publish("t2", end)
            assert (await anext(updates)).output == b"end"
        assert (await reader.get("t1")).output == b"end"
        assert [result.task_id for result in await reader.list()] == ["t1", "t2"]


async def publish(site: Site) -> None:
    """Publish, update and delete, and go on after an outage."""
    async with open_kv_publisher(site.config("publisher")) as publisher:
        await publisher.publish("t1", Record(status=ResultStatus.PENDING))
        site.proxy.cut()
        await publisher.publish("t1", Record(status=ResultStatus.SUCCESS))
        with pytest.raises(ResultExistsError):
            await publisher.publish("t1", Record(status=ResultStatus.PENDING))
        await publisher.delete("t1")
        with pytest.raises(ResultNotFoundError):
            await publisher.get("t1")
