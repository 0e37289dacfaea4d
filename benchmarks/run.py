# The benchmark: the library against the same algorithm written by hand, on one nats-server
#
# It starts a server and, in every round, four fresh processes: a dispatcher and a worker of each
# variant (bare.py, ours.py). Only the pair that is being measured has work to do. The pairs take
# many short turns in the order a, b, b, a, so that a drift, or what slows the machine down for a
# while, meets both. A ratio is taken within a round; what is printed is the median of the rounds'
# ratios, with the lowest and the highest.
#
# A role process writes "ready" to its standard output once it can work. Then it answers each
# line of its standard input by one line of JSON: a dispatcher gets an order (how many tasks, how
# many in flight) and answers with the figures, a worker answers any line with the CPU time that it
# has used. It ends when its standard input is closed.

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_swarmtask.server import open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HERE: Final = Path(__file__).parent
VARIANTS: Final = {"bare": "bare.py", "ours": "ours.py"}
TURNS: Final = ("bare", "ours", "ours", "bare")
CYCLES: Final = 3  # how often a round goes through the turns
SHARES: Final = {100: 1.0, 10: 0.5, 1: 0.1}  # in flight: part of --tasks, for like durations
WARM_UP: Final = 500  # tasks a pair and round that are not counted
RATE_TARGET: Final = 0.70  # of bare's tasks per second, at 100 in flight
LATENCY_TARGET: Final = 1.50  # times bare's median, one task at a time
ANSWER_SECONDS: Final = 120.0  # a role that says nothing for so long is stuck


class Role:
    """A dispatcher or a worker in a process of its own."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = bytearray()

    async def read_line(self) -> str:
        assert self._process.stdout is not None
        with trio.fail_after(ANSWER_SECONDS):
            while b"\n" not in self._received:
                data = await self._process.stdout.receive_some()
                if not data:
                    raise RuntimeError(f"{self._process.args!r} ended; see its traceback above")
                self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return bytes(line).decode()

    async def ask(self, **order: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(order).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await self.read_line())
        return answer


@asynccontextmanager
async def open_role(variant: str, role: str, url: str) -> AsyncIterator[Role]:
    """Start one role of one variant; its capability has the variant's name."""
    command = [sys.executable, str(HERE / VARIANTS[variant]), role, url, variant]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        started = Role(process)
        if await started.read_line() != "ready":
            raise RuntimeError(f"{command} did not say that it is ready")
        yield started
        assert process.stdin is not None
        await process.stdin.aclose()
        with trio.fail_after(ANSWER_SECONDS):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


@dataclass
class Pair:
    """A dispatcher, its worker, and what one round measured of them, by tasks in flight."""

    dispatcher: Role
    worker: Role
    tasks: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    seconds: dict[int, float] = field(default_factory=lambda: dict.fromkeys(SHARES, 0.0))
    dispatcher_cpu: dict[int, float] = field(default_factory=lambda: dict.fromkeys(SHARES, 0.0))
    worker_cpu: dict[int, float] = field(default_factory=lambda: dict.fromkeys(SHARES, 0.0))
    latencies: list[float] = field(default_factory=list)

    async def take_turn(self, tasks: int, in_flight: int) -> None:
        cpu_before = (await self.worker.ask())["cpu"]
        figures = await self.dispatcher.ask(tasks=tasks, in_flight=in_flight)
        cpu_after = (await self.worker.ask())["cpu"]
        self.tasks[in_flight] += tasks
        self.seconds[in_flight] += figures["seconds"]
        self.dispatcher_cpu[in_flight] += figures["cpu"]
        self.worker_cpu[in_flight] += cpu_after - cpu_before
        self.latencies += figures["latencies"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    figure: Callable[[Pair], float]
    target: str = ""


def rate(in_flight: int) -> Callable[[Pair], float]:
    return lambda pair: pair.tasks[in_flight] / pair.seconds[in_flight]


ROWS: Final = {
    "rate_100": Row("tasks/s, 100 in flight", rate(100), f">= {RATE_TARGET:.2f}"),
    "rate_10": Row("tasks/s, 10 in flight", rate(10)),
    "rate_1": Row("tasks/s, 1 in flight", rate(1)),
    "latency_median": Row(
        "latency, median, µs",
        lambda pair: statistics.median(pair.latencies) * 1e6,
        f"<= {LATENCY_TARGET:.2f}",
    ),
    "latency_p99": Row(
        "latency, 99th percentile, µs",
        lambda pair: statistics.quantiles(pair.latencies, n=100)[98] * 1e6,
    ),
    "cpu_dispatcher": Row(
        "CPU a task, dispatcher, µs",
        lambda pair: pair.dispatcher_cpu[100] / pair.tasks[100] * 1e6,
    ),
    "cpu_worker": Row(
        "CPU a task, worker, µs",
        lambda pair: pair.worker_cpu[100] / pair.tasks[100] * 1e6,
    ),
}


async def measure_round(url: str, tasks: int) -> dict[str, Pair]:
    async with AsyncExitStack() as stack:
        pairs: dict[str, Pair] = {}
        for variant in VARIANTS:
            # bare comes first: it makes the streams, and both use the same.
            worker = await stack.enter_async_context(open_role(variant, "worker", url))
            dispatcher = await stack.enter_async_context(open_role(variant, "dispatcher", url))
            await dispatcher.ask(tasks=WARM_UP, in_flight=100)
            pairs[variant] = Pair(dispatcher, worker)
        for _ in range(CYCLES):
            for in_flight, share in SHARES.items():
                for variant in TURNS:
                    await pairs[variant].take_turn(max(100, int(tasks * share)), in_flight)
        return pairs


def summarise(rounds: list[dict[str, Pair]]) -> dict[str, dict[str, float]]:
    """Both figures (medians over the rounds) and the ratio of each row of the table."""
    summary: dict[str, dict[str, float]] = {}
    for name, row in ROWS.items():
        figures = {v: [row.figure(pairs[v]) for pairs in rounds] for v in VARIANTS}
        ratios = [ours / bare for bare, ours in zip(figures["bare"], figures["ours"], strict=True)]
        summary[name] = {
            "bare": statistics.median(figures["bare"]),
            "ours": statistics.median(figures["ours"]),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return summary


def format_table(summary: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':<30}{'bare':>9}{'ours':>9}   ours/bare (min to max)    target"]
    for name, row in ROWS.items():
        cell = summary[name]
        spread = f"({cell['ratio_min']:.2f} to {cell['ratio_max']:.2f})"
        lines.append(
            f"{row.title:<30}{cell['bare']:>9,.0f}{cell['ours']:>9,.0f}"
            f"{cell['ratio']:>8.2f} {spread:<18}{row.target}".rstrip()
        )
    return "\n".join(lines)


async def run(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    rounds = []
    async with open_server() as server:
        for number in range(1, arguments.rounds + 1):
            rounds.append(await measure_round(server.url, arguments.tasks))
            so_far = summarise(rounds)["rate_100"]["ratio"]
            print(f"round {number} of {arguments.rounds}: {so_far:.2f} at 100 in flight so far")
    return summarise(rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description="This library against plain asyncio and nats-py.")
    parser.add_argument("--tasks", type=int, help="tasks a turn at 100 in flight (1000)")
    parser.add_argument("--rounds", type=int, help="how often everything is repeated (5)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 600 tasks a turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--minimum-ratio",
        type=float,
        metavar="X",
        help="exit with status 1 if the ratio of the rates at 100 in flight is lower",
    )
    arguments = parser.parse_args()
    arguments.tasks = arguments.tasks or (600 if arguments.quick else 1000)
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)

    summary = trio.run(run, arguments)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    print(f"\nPython {machine['python']}, {machine['cores']} cores, {arguments.rounds} rounds")
    print(format_table(summary))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**machine, "figures": summary}, indent=2) + "\n")
    ratio = summary["rate_100"]["ratio"]
    if arguments.minimum_ratio is not None and ratio < arguments.minimum_ratio:
        print(f"the ratio at 100 in flight, {ratio:.3f}, is below {arguments.minimum_ratio}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
