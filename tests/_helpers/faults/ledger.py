# The ledger: what was sent, what each handler began and ended, what each waiter got; and the
# invariant that all of it, and what is on the server, must keep after every run.
#
# It shares nothing with the product. Worker processes append a line to a file of their own for each
# event, with one write: that survives their death. The server is looked at by a plain client.

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import trio

from tests._helpers.plain_nats import PlainClient, Received, open_plain_client

if TYPE_CHECKING:
    from pathlib import Path

    from tests._helpers.faults.table import Row
    from trio_swarmtask import Result

# Seconds between a look-up and what follows it, and between the clocks of two processes.
SLACK = 0.25


class BrokenInvariant(AssertionError):
    """The product broke a promise."""


@dataclass
class Run:
    """One call of a handler."""

    worker: str
    began: float  # seconds of the wall clock
    ended: float | None = None
    outcome: str = ""  # "ended", "cut"; "" if the process died in it


@dataclass
class Stored:
    """What the server holds after a run."""

    tasks_left: int
    tasks_ever: int
    """How many tasks the stream has taken: a publish that came twice counts twice."""
    results: dict[str, list[Received]] = field(default_factory=lambda: defaultdict(list))
    dead: set[str] = field(default_factory=set)


class Ledger:
    def __init__(self, directory: Path, row: Row) -> None:
        self.directory = directory
        self._row = row
        self.sent: set[str] = set()  # `start` returned
        self.poison: set[str] = set()  # what must become a dead letter
        self.leftover: set[str] = set()  # `start` was cancelled: stored or not
        self._past: set[str] = set()
        self._ever_before = 0
        self.waiting: set[str] = set()
        self.got: dict[str, list[Result]] = defaultdict(list)
        self.runs: dict[str, list[Run]] = {}
        self.stored: Stored
        self._next_result = trio.Event()

    def note_result(self, task_id: str, result: Result) -> None:
        self.got[task_id].append(result)
        self._next_result.set()
        self._next_result = trio.Event()

    async def wait_result(self) -> None:
        """Wait until somebody gets a result."""
        await self._next_result.wait()

    # After the run

    def stored_at(self, task_id: str) -> float:
        """When the task's result was stored: seconds of the wall clock."""
        stamp = self.stored.results[task_id][0].headers["Nats-Time-Stamp"]
        return datetime.fromisoformat(stamp).timestamp()

    async def check(
        self, port: int, *, leases_may_lapse: bool = False, held_up: bool = False
    ) -> None:
        """Raise BrokenInvariant if a promise was broken; fill the row of the table.

        Args:
          leases_may_lapse: The faults of this run let leases lapse: a handler may run on after its
            task's result was stored. It is counted as doubled.
          held_up: Threads were held up: time passes between the look for a result and the begin.
        """
        runs = read_runs(self.directory)
        self.runs = {task: runs[task] for task in runs if task not in self._past}
        self.stored = await look(port)
        missing = [task for task in self.sent if not self.stored.results.get(task)]
        unheard = [task for task in self.waiting if not self.got.get(task)]
        self._row.tasks += len(self.sent)
        self._row.lost += len({*missing, *unheard})
        self._row.doubled += sum(len(runs) > 1 for runs in self.runs.values())
        demand(not missing, f"tasks without a result: {missing[:5]} of {len(missing)}")
        demand(not unheard, f"waiters without a result: {unheard[:5]} of {len(unheard)}")
        demand(self.stored.tasks_left == 0, f"{self.stored.tasks_left} tasks left in the queue")
        self._check_copies()
        self._check_waiters()
        self._check_runs(leases_may_lapse=leases_may_lapse, held_up=held_up)
        dead = self.stored.dead - self._past
        demand(dead == self.poison, f"dead letters {dead}, poison {self.poison}")

    def begin_anew(self, *, queue_deleted: bool) -> None:
        """Leave what was checked: what comes now has a page of its own."""
        self._past |= self.sent | self.poison | self.leftover
        self._ever_before = 0 if queue_deleted else self.stored.tasks_ever
        for tasks in (self.sent, self.poison, self.leftover, self.waiting, self.got):
            tasks.clear()

    def _check_copies(self) -> None:
        several = {task: len(found) for task, found in self.stored.results.items() if found[1:]}
        demand(not several, f"tasks with several results: {several}")
        known = self.sent | self.poison
        strangers = set(self.stored.results) - known - self.leftover - self._past
        demand(not strangers, f"results of tasks that nobody sent: {strangers}")
        ever = self.stored.tasks_ever - self._ever_before
        least, most = len(known), len(known | self.leftover)
        demand(least <= ever <= most, f"{ever} copies of {least} to {most} tasks were stored")

    def _check_waiters(self) -> None:
        for task, results in self.got.items():
            stored = json.loads(self.stored.results[task][0].data)
            for result in results:
                demand(
                    json.loads(result.encode()) == stored,
                    f"a waiter of {task} got {result}, stored is {stored}",
                )

    def _check_runs(self, *, leases_may_lapse: bool, held_up: bool) -> None:
        for task, runs in self.runs.items():
            found = self.stored.results.get(task)
            if found is None:
                continue
            stored_at = self.stored_at(task)
            agent = json.loads(found[0].data)["agent"]
            for run in runs:
                demand(
                    held_up or run.began < stored_at + SLACK,
                    f"{task} began at {run.worker} {run.began - stored_at:.2f} s after its result",
                )
                ran_on = run.ended is not None and run.ended > stored_at + SLACK
                demand(
                    leases_may_lapse or not ran_on or run.worker == agent,
                    f"{task} ran at {run.worker} after its result was stored by {agent}",
                )


def demand(promise: bool, broken: str) -> None:
    if not promise:
        raise BrokenInvariant(broken)


class Runs:
    """Every call of a handler, as the workers' files tell it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self._running: dict[tuple[str, str], list[Run]] = defaultdict(list)
        self.by_task: dict[str, list[Run]] = defaultdict(list)

    @property
    def running(self) -> set[str]:
        """The tasks whose handler has begun and not ended."""
        return {task for (_, task), runs in self._running.items() if runs}

    def read(self) -> None:
        """Read what has been written since."""
        for path in sorted(self._directory.glob("*.ledger")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:  # each was written whole
                    moment, event, task = line.decode().rstrip("\n").split(" ", 2)
                    self._note(path.stem, float(moment), event, task)
                self._read[path] = file.tell()

    def _note(self, worker: str, moment: float, event: str, task: str) -> None:
        running = self._running[worker, task]
        if event == "began":
            running.append(Run(worker, moment))
            self.by_task[task].append(running[-1])
            self.by_task[task].sort(key=lambda run: run.began)
        else:
            run = running.pop(0)
            run.ended, run.outcome = moment, event


def read_runs(directory: Path) -> dict[str, list[Run]]:
    """By task: every call of a handler."""
    runs = Runs(directory)
    runs.read()
    return runs.by_task


async def look(port: int) -> Stored:
    """What the server holds, once it has worked off the acks that were under way."""
    async with open_plain_client(port) as client:
        # An ack has no reply, and one that got lost is made good when the lease has lapsed.
        with trio.move_on_after(15):
            while (await tasks_state(client))["messages"]:  # noqa: ASYNC110 - no event
                await trio.sleep(0.05)
        state = await tasks_state(client)
        stored = Stored(state["messages"], state["last_seq"])
        for message in await client.messages("TASK_RESULTS", "done.>"):
            task = message.headers["Nats-Subject"].removeprefix("done.")
            stored.results[task].append(message)
        stored.dead = await dead_letters(client)
        return stored


async def tasks_state(client: PlainClient) -> dict[str, int]:
    state: dict[str, int] = (await client.api("STREAM.INFO.TASKS"))["state"]
    return state


async def dead_letters(client: PlainClient) -> set[str]:
    """The tasks that are dead letters."""
    try:
        dead = await client.api("STREAM.INFO.TASK_DEAD", subjects_filter="dead.>")
    except KeyError:  # nobody needed it yet
        return set()
    return {subject.split(".", 2)[2] for subject in dead["state"].get("subjects") or {}}
