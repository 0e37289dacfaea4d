# Other Python libraries, each beside this one, at what both can do
#
# One peer at a time, so that idle ones, some of which poll, are in nobody's way. A slow one gets
# fewer tasks, so that no turn lasts long, and so does this library where it drains beside it. One
# that can't run here is listed with the reason.

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from .drain import drain, find_size
from .roles import RoleError
from .runners import OURS, PEERS
from .turns import Contest, Entrant, Workload

if TYPE_CHECKING:
    from .figures import Figures
    from .runners import Runner
    from .servers import Servers

SECTION: Final = "peers"
ROUNDS: Final = 2
DRAIN_TASKS: Final = 20_000
DRAIN_SECONDS: Final = 6.0  # about, for the slower of the two
CONCURRENCY: Final = 32
AWAITED: Final = Workload("100 in flight", 100)


async def measure_peers(servers: Servers, figures: Figures) -> None:
    for peer in PEERS:
        started = time.monotonic()
        try:
            await measure_peer(peer, servers, figures)
        except* RoleError as group:
            figures.problems[SECTION, peer.name] = first_reason(group)
        print(f"  {peer.name}: {time.monotonic() - started:.0f} s", flush=True)


async def measure_peer(peer: Runner, servers: Servers, figures: Figures) -> None:
    prefix = f"{peer.name}: "
    entrants = [Entrant("ours", OURS), Entrant(peer.name, peer)]
    workloads = [AWAITED, Workload("1 in flight", 1)]
    await Contest(SECTION, entrants, workloads, ROUNDS, 1.0, prefix=prefix).run(servers, figures)

    options = {"sleep": 0.01}
    entrants = [Entrant("ours", OURS, 1, options), Entrant(peer.name, peer, 1, options)]
    workloads = [Workload("10 ms, 100 awaited", 100)]
    await Contest(SECTION, entrants, workloads, ROUNDS, 1.0, prefix=prefix).run(servers, figures)

    server = await servers.get(peer.server)
    tasks = await find_size(server, peer, DRAIN_TASKS, DRAIN_SECONDS, CONCURRENCY)
    for _ in range(ROUNDS):
        for count in (1, 4):
            for runner in (OURS, peer):
                server = await servers.get(runner.server)
                drained = await drain(server, runner, tasks, count, CONCURRENCY)
                name = f"{prefix}drain, {count} worker{'s' * (count > 1)}"
                figures.add(SECTION, name, runner.name, drained.values())


def first_reason(group: BaseExceptionGroup[BaseException]) -> str:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return str(exc)
