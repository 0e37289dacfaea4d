"""What users connect to: accounts with limits, clusters behind a login, servers that are silent."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.faults.clusters import open_cluster
from tests._helpers.faults.deployment import Arena, open_arena, open_arena_on
from tests._helpers.nats_servers import listening
from tests._helpers.plain_nats import LOGIN
from tests._helpers.proxy import HOST, open_proxy
from trio_swarmtask import InvalidMessageError, Status

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row

LARGE = 50_000


def write_account(file: Path, limit: int) -> None:
    user = "users: [{user: a, password: a}]"
    file.write_text(
        f"accounts {{ A {{ jetstream: enabled, {user}, limits: {{max_payload: {limit}}} }} }}\n"
        "no_auth_user: a\n"
    )


async def send_large_ones(arena: Arena, stopping: trio.Event) -> None:
    """Tasks that are too large for the account, or whose outputs are, each second time."""
    while not stopping.is_set():
        size = arena.rng.choice([100, LARGE])
        if arena.rng.random() < 0.5:
            result = await arena.run(output=f"{size}")
            assert result.status is Status.SUCCESS or "bytes" in result.error
            continue
        try:
            await arena.run(a="x" * size)
        except InvalidMessageError:
            assert size == LARGE


@pytest.mark.fault("an account's max_payload is lowered and raised", full=100, short=6)
@within(600)
async def test_limits_of_an_account(
    tmp_path: Path, row: Row, rng: random.Random, times: int
) -> None:
    """What is larger is its sender's error, or its handler's failure; all else goes on."""
    config = tmp_path / "account.conf"
    write_account(config, 1 << 20)
    async with open_arena(
        tmp_path, row, rng, arguments=("--jetstream", "-c", str(config)), ack_wait=2
    ) as arena:
        await arena.add_workers(2)
        stopping = trio.Event()
        async with arena.load(), trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(send_large_ones, arena, stopping)
            for number in range(times):
                await trio.sleep(rng.uniform(0, 0.5))
                write_account(config, 8192 if number % 2 == 0 else 1 << 20)
                os.kill(arena.server.process.pid, signal.SIGHUP)
                await arena.ledger.wait_result()
            stopping.set()
        await arena.check(leases_may_lapse=True)


@pytest.mark.parametrize("kind", ["user", "token"])
@pytest.mark.fault("cluster of three, the login in one URL", full=10, short=1)
@within(900)
async def test_cluster_behind_a_login(
    tmp_path: Path, row: Row, rng: random.Random, times: int, kind: str
) -> None:
    """The server that the URL names is killed; the others were announced by it."""
    row.fault = f"cluster of three, its {kind} in one URL, is killed there"
    if kind == "user":
        login, in_url = "user: svc, password: p@w", "svc:p%40w"
        LOGIN.set({"user": "svc", "pass": "p@w"})
    else:
        login, in_url = "token: s3cr3t", "s3cr3t"
        LOGIN.set({"auth_token": "s3cr3t"})
    async with open_cluster(tmp_path, more=f"authorization {{ {login} }}\n") as cluster:
        first = cluster.nodes["node-1"]
        url = f"nats://{in_url}@{HOST}:{first.port}"
        settings = {"ack_wait": 5, "replicas": 3, "connect_timeout": 20}
        async with open_arena_on(url, tmp_path, row, rng, **settings) as arena:
            await arena.add_workers(2)
            async with arena.load():
                for _ in range(times):
                    await arena.ledger.wait_result()
                    await cluster.wait_settled("TASKS", "TASK_RESULTS")
                    await cluster.kill("node-1")
                    killed_at = trio.current_time()
                    with trio.fail_after(60):
                        await arena.run()
                    row.recoveries.append(trio.current_time() - killed_at)
                    await cluster.start("node-1")
                    await cluster.wait_settled("TASKS", "TASK_RESULTS")
                    await cluster.kill("node-2", "node-3")  # it is the first one's turn again
                    await cluster.start("node-2", "node-3")
            await cluster.wait_settled("TASKS", "TASK_RESULTS")
            await arena.ledger.check(first.port, leases_may_lapse=True)


async def say_nothing(client: trio.SocketStream, connected: list[float]) -> None:
    connected.append(trio.current_time())
    await client.receive_some()
    await trio.sleep_forever()


@pytest.mark.fault("a silent server in the list, connections are cut", full=50, short=4)
@within(900)
async def test_silent_server(tmp_path: Path, row: Row, rng: random.Random, times: int) -> None:
    """It accepts and says nothing: it has two seconds, and the next server its turn."""
    connected: list[float] = []
    async with AsyncExitStack() as stack:
        arena = await stack.enter_async_context(open_arena(tmp_path, row, rng, ack_wait=2))
        proxy = await stack.enter_async_context(open_proxy(arena.server.port))
        silent = await stack.enter_async_context(
            listening(partial(say_nothing, connected=connected))
        )
        url = f"{proxy.url},nats://{HOST}:{silent}"
        await arena.add_workers(2, url=url, connect_timeout=60)
        async with arena.load():
            for _ in range(times):
                await arena.ledger.wait_result()
                proxy.cut()
                cut_at = trio.current_time()
                await arena.run()
                row.recoveries.append(trio.current_time() - cut_at)
        await arena.check(leases_may_lapse=True)
    assert connected, "the silent server was never tried"
    assert max(row.recoveries) < 15
