# The sections of the benchmark: which runners do which workloads
#
# Each is measured on servers of its own. `SECTIONS` has them in the order in which they run.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .backlog import measure_backlog
from .counts import measure_counts
from .drain import drain
from .peers import measure_peers
from .runners import BARE, LEAN, MEMORY, NAIVE, OURS, PUBLIC, UVLOOP
from .start import measure_first_task, measure_imports
from .turns import Contest, Entrant, Workload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .figures import Figures
    from .servers import Servers

BARE_ENTRANT: Final = Entrant("bare", BARE)
OURS_ENTRANT: Final = Entrant("ours", OURS)
ALL_ENTRANTS: Final = (
    BARE_ENTRANT,
    Entrant("bare-uvloop", UVLOOP, optional=True),
    Entrant("lean", LEAN),
    OURS_ENTRANT,
    Entrant("ours-public", PUBLIC, optional=True),
    Entrant("ours-memory", MEMORY),
)
# A worker has 100 places of 10 ms each. A dispatcher that awaits 100 results at a time leaves them
# empty for as long as results and tasks travel; one that awaits 400 does not.
SLEEP: Final = 0.01  # seconds
IDEAL: Final = 100 / SLEEP


async def quick(servers: Servers, figures: Figures) -> None:
    workloads = [Workload("100 in flight", 100), Workload("1 in flight", 1)]
    await Contest("quick", [BARE_ENTRANT, OURS_ENTRANT], workloads, 4, 0.5, 3).run(servers, figures)


async def no_op(servers: Servers, figures: Figures) -> None:
    workloads = [
        Workload("1 in flight", 1, share=2),  # the 99.9th percentile needs many
        Workload("10 in flight", 10),
        Workload("100 in flight", 100),
        Workload("1,000 in flight", 1000),
    ]
    await Contest("no-op", ALL_ENTRANTS, workloads, 5, 0.6).run(servers, figures)


async def naive(servers: Servers, figures: Figures) -> None:
    # Apart from the others: it is slow, and with 1,000 in flight it came to a halt.
    workloads = [Workload("1 in flight", 1), Workload("100 in flight", 100)]
    entrants = [OURS_ENTRANT, Entrant("naive", NAIVE)]
    await Contest("naive", entrants, workloads, 4, 0.6).run(servers, figures)


async def payload(servers: Servers, figures: Figures) -> None:
    entrants = [
        Entrant("bare", BARE, options={"echo": True}),
        Entrant("ours", OURS, options={"echo": True}),
    ]
    workloads = [
        Workload("1 KB, 100 in flight", 100, payload=1_000),
        Workload("100 KB, 100 in flight", 100, payload=100_000),
    ]
    await Contest("payload", entrants, workloads, 5, 0.6).run(servers, figures)


async def sleep(servers: Servers, figures: Figures) -> None:
    entrants = [
        Entrant(entrant.name, entrant.runner, options={"sleep": SLEEP}, optional=entrant.optional)
        for entrant in ALL_ENTRANTS
    ]
    workloads = [
        Workload("10 ms, 100 awaited", 100, ideal=IDEAL),
        Workload("10 ms, 400 awaited", 400, ideal=IDEAL),
    ]
    await Contest("sleep", entrants, workloads, 4, 0.6).run(servers, figures)


async def workers(servers: Servers, figures: Figures) -> None:
    entrants = [
        Entrant(f"{runner.name}, {count} worker{'s' * (count > 1)}", runner, workers=count)
        for count in (1, 2, 4)
        for runner in (BARE, OURS)
    ]
    await Contest("workers", entrants, [Workload("400 in flight", 400)], 4, 0.8).run(
        servers, figures
    )


async def capabilities(servers: Servers, figures: Figures) -> None:
    entrants = [
        Entrant(f"{runner.name}, {count}", runner, options={"capabilities": count})
        for count in (1, 5, 20, 50)
        for runner in (BARE, OURS)
    ]
    await Contest("capabilities", entrants, [Workload("100 in flight", 100)], 4, 0.8).run(
        servers, figures
    )


async def groups(servers: Servers, figures: Figures) -> None:
    entrants = [
        Entrant(f"{name}{', in a group' * group}", OURS, options={"start": start, "group": group})
        for name, start in (("run", False), ("start and wait", True))
        for group in (False, True)
    ]
    await Contest("groups", entrants, [Workload("100 in flight", 100)], 5, 0.8).run(
        servers, figures
    )


async def drain_all(servers: Servers, figures: Figures) -> None:
    server = await servers.get("nats")
    for _ in range(3):
        for count in (1, 4):
            for runner in (BARE, OURS):
                drained = await drain(server, runner, 20_000, count, 32)
                name = f"20,000 tasks, {count} worker{'s' * (count > 1)}"
                figures.add("drain", name, runner.name, drained.values())


@dataclass(frozen=True)
class Section:
    """One part of the benchmark."""

    title: str
    measure: Callable[[Servers, Figures], Awaitable[None]]


QUICK: Final = {"quick": Section("A handler that does nothing", quick)}
SECTIONS: Final = {
    "no-op": Section("A handler that does nothing", no_op),
    "naive": Section("A handler that does nothing, beside `aio_as_trio` round every call", naive),
    "payload": Section("A handler that returns its input", payload),
    "sleep": Section("A handler that waits 10 ms, one worker with 100 places", sleep),
    "workers": Section("One to four worker processes", workers),
    "capabilities": Section("One to fifty capabilities on one worker", capabilities),
    "groups": Section("A task of a group, beside one without", groups),
    "drain": Section("Enqueued first, then drained, 32 at once at each worker", drain_all),
    "backlog": Section("A backlog of 100,000, drained by one worker", measure_backlog),
    "counts": Section("What a task costs, wherever it runs", measure_counts),
    "imports": Section("Import, in a fresh process", measure_imports),
    "first task": Section("From the start of a process to the first result", measure_first_task),
    "peers": Section("Other Python libraries, each beside this one", measure_peers),
}
