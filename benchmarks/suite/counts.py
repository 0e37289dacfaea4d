# What a task costs in numbers that do not depend on the machine: calls, and instructions
#
# A role's process is counted from its start to its end, once with few tasks and once with many:
# the slope between the two is what a task adds. The seed of Python's hashes is fixed.

from __future__ import annotations

import pstats
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from .roles import RoleError, open_role
from .runners import BARE, OURS, python_of
from .turns import new_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .figures import Figures
    from .runners import Runner
    from .servers import Servers

ROLES: Final = ("dispatcher", "worker")
IN_FLIGHT: Final = 100
_SUMMARY: Final = re.compile(r"^summary: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Counter:
    """One way to count what a process does."""

    metric: str
    few: int
    many: int
    """Tasks of the two runs."""
    scale: float
    command: Callable[[Path], Sequence[str]]
    """What a role's Python is started with, so that the count is written to a file."""
    read: Callable[[Path], float]
    """The count, from that file."""


def read_calls(file: Path) -> float:
    """All calls that cProfile has seen: of functions in Python, and of those in C from there."""
    stats = pstats.Stats(str(file))
    return float(stats.total_calls)  # type: ignore[attr-defined]  # typeshed lacks it


def read_own_calls(file: Path) -> float:
    """Of these, the calls of the library's own functions, whatever the version of the others."""
    functions = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]  # as above
    return float(
        sum(counts[1] for (path, *_), counts in functions.items() if "/trio_swarmtask/" in path)
    )


def read_instructions(file: Path) -> float:
    found = _SUMMARY.search(file.read_text())
    if found is None:
        raise RoleError(f"{file.name} has no summary")
    return float(found[1])


CALLS: Final = Counter(
    "calls", 500, 2500, 1.0, lambda file: ("-P", "-m", "cProfile", "-o", str(file)), read_calls
)
OWN_CALLS: Final = Counter("own calls", 500, 2500, 1.0, CALLS.command, read_own_calls)
INSTRUCTIONS: Final = Counter("instructions", 400, 2400, 1e-3, lambda _: (), read_instructions)


def prefix(counter: Counter, runner: Runner, file: Path) -> list[str]:
    """The command that runs a role's file, and counts."""
    python = str(python_of(runner.environment))
    seeded = ["env", "PYTHONHASHSEED=0"]
    if counter is INSTRUCTIONS:
        seeded += ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--quiet"]
        seeded.append(f"--cachegrind-out-file={file}")
    return [*seeded, python, *counter.command(file)]


async def count(
    counter: Counter, servers: Servers, runner: Runner, tasks: int, folder: Path
) -> dict[str, float]:
    """What each role counts, in processes of their own that do so many tasks."""
    server = await servers.get(runner.server)
    name = new_name()
    files = {role: folder / f"{name}-{role}" for role in ROLES}
    commands = {role: prefix(counter, runner, files[role]) for role in ROLES}
    async with open_role(runner, "worker", server.url, name, python=commands["worker"]) as worker:
        await worker.wait_ready()
        async with open_role(
            runner, "dispatcher", server.url, name, python=commands["dispatcher"]
        ) as dispatcher:
            await dispatcher.wait_ready()
            await dispatcher.ask(do="run", tasks=tasks, in_flight=IN_FLIGHT, payload=0)
    return {role: counter.read(files[role]) for role in ROLES}


async def count_slope(counter: Counter, servers: Servers, runner: Runner) -> dict[str, float]:
    """What a task adds, by role."""
    with TemporaryDirectory() as folder:
        few = await count(counter, servers, runner, counter.few, Path(folder))
        many = await count(counter, servers, runner, counter.many, Path(folder))
    more = (counter.many - counter.few) / counter.scale
    return {role: (many[role] - few[role]) / more for role in ROLES}


async def measure_counts(servers: Servers, figures: Figures) -> None:
    """Calls three times, for they depend a little on how tasks fall together; instructions once."""
    for runner in (BARE, OURS):
        for _ in range(3):
            add(figures, CALLS, runner, await count_slope(CALLS, servers, runner))
        if shutil.which("valgrind") is None:
            figures.problems["counts", f"{runner.name}, {INSTRUCTIONS.metric}"] = "no valgrind here"
        else:
            add(figures, INSTRUCTIONS, runner, await count_slope(INSTRUCTIONS, servers, runner))


def add(figures: Figures, counter: Counter, runner: Runner, slope: dict[str, float]) -> None:
    for role, value in slope.items():
        figures.add("counts", role, runner.name, {counter.metric: value})
