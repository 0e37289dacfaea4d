# What every runner's two roles have in common: arguments, orders, and figures of this process
#
# A role is started as `python FILE ROLE URL NAME OPTIONS`. It writes `ready` once it can work, then
# answers each line of JSON on its standard input with one on its standard output, and ends when
# the input is closed. ../README.md lists the orders and the answers.

from __future__ import annotations

import os
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

SENDS_AT_ONCE: Final = 100  # of an order to enqueue

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")  # bytes


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver asks of a role; the ones that a runner has no use for, it ignores."""

    concurrency: int = 100
    """Handlers that a worker runs at once, of each capability."""

    sleep: float = 0.0
    """Seconds that the handler waits."""

    echo: bool = False
    """Whether the handler returns the text it was given. Otherwise it returns nothing."""

    capabilities: int = 1
    """How many there are; a dispatcher uses them in turn."""

    uvloop: bool = False
    lean: bool = False
    public_api: bool = False

    group: bool = False
    """Whether the tasks are those of a group."""

    start: bool = False
    """Whether each one is started, and then waited for, in two calls."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One line from the driver to a dispatcher."""

    do: str
    """``run``: await each task's result. ``enqueue``: only send."""

    tasks: int
    in_flight: int = SENDS_AT_ONCE
    payload: int = 0
    """Bytes of the text that a task carries. 0: a few."""

    @property
    def text(self) -> str:
        return "x" * self.payload or "main.py"


def read_arguments() -> tuple[str, str, str, Options]:
    """The role, the server's URL, the capability, and the options."""
    role, url, name, options = sys.argv[1:]
    return role, url, name, msgspec.json.decode(options, type=Options)


def read_order(line: str) -> Order:
    return msgspec.json.decode(line, type=Order)


def capabilities(name: str, count: int) -> list[str]:
    """``count`` names, of which a worker handles all and a dispatcher uses each in turn."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(count)]


def in_turn(name: str, options: Options) -> Iterator[str]:
    return cycle(capabilities(name, options.capabilities))


def say_ready() -> None:
    print("ready", flush=True)


def answer(figures: dict[str, object]) -> None:
    print(msgspec.json.encode(figures).decode(), flush=True)


class Meter:
    """Counts handlers that have ended, and tells what this process has used."""

    served = 0

    def answer(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        answer({"cpu": time.process_time(), "rss": pages * _PAGE, "served": self.served})


class Stopwatch:
    """Times one order of a dispatcher."""

    def __init__(self, order: Order) -> None:
        self._keeps_latencies = order.do == "run" and order.in_flight == 1
        self._latencies: list[float] = []
        self._cpu = time.process_time()
        self._started = time.perf_counter()

    def took(self, since: float) -> None:
        """Note that a task sent at ``since`` has its result."""
        if self._keeps_latencies:
            self._latencies.append(time.perf_counter() - since)

    def answer(self) -> None:
        seconds = time.perf_counter() - self._started
        cpu = time.process_time() - self._cpu
        answer({"seconds": seconds, "cpu": cpu, "latencies": self._latencies})
