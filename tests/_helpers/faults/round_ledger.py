# The ledger of a cluster that is harmed in rounds: what callers were told, what was seen on the
# wire, what workers did, and what the streams hold; and what must hold between them.
#
# It shares nothing with the product, as ledger.py. The streams are looked at by a plain client,
# once every replica is up to date. What was heard on the wire before came from a stream, after the
# store: it has to be there still.

from __future__ import annotations

import base64
import json
import math
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import trio

from tests._helpers.faults.ledger import SLACK, Runs
from tests._helpers.plain_nats import open_plain_client

if TYPE_CHECKING:
    from tests._helpers.faults.clusters import Cluster
    from tests._helpers.faults.table import Row
    from tests._helpers.plain_nats import PlainClient, Received
    from trio_swarmtask import Result

# Streams that republish what they have stored, with its subjects, and where that is heard.
HEARD = ("notify.>", "kv.>")
RESULTS = "TASK_RESULTS"
KEY_SUBJECT = "$KV.keys."
HELD = {RESULTS: "done.>", "KV_updates": "$KV.updates.>", "KV_keys": f"{KEY_SUBJECT}>"}


# Each publisher tells so many of a record; the last one is its end.
LAST_UPDATE = 3


@dataclass
class Write:
    """An update that its publisher was told is stored. Times are those of the monotonic clock."""

    by: str
    number: int
    began: float
    ended: float

    @property
    def what(self) -> str:
        return f"{self.by} {self.number}"

    @property
    def is_end(self) -> bool:
        return self.number == LAST_UPDATE


class Witness:
    """What was republished, as heard at any node, and what the streams hold, of all rounds."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.heard: dict[str, dict[int, bytes]] = defaultdict(dict)  # by subject and sequence
        self.stored: dict[str, tuple[int, bytes]] = {}
        self._last: dict[str, int] = dict.fromkeys(HELD, 0)

    async def listen(self, name: str) -> None:
        """Hear what is republished at one node, whenever it is up."""
        while True:
            try:
                async with (
                    open_plain_client(self._cluster.nodes[name].port) as client,
                    trio.open_nursery() as nursery,
                ):
                    for subject in HEARD:
                        messages = await client.subscribe(subject)
                        nursery.start_soon(self._take, messages)
            except* (OSError, trio.BrokenResourceError):
                await trio.sleep(0.1)  # it was killed

    async def _take(self, messages: trio.MemoryReceiveChannel[Received]) -> None:
        async for message in messages:
            sequence = int(message.headers["Nats-Sequence"])
            self.heard[message.headers["Nats-Subject"]][sequence] = message.data

    async def look(self, client: PlainClient, *, anew: bool = False) -> list[str]:
        """Read what the streams hold; what of it is broken: a result that is another one now, or
        what was heard before and is not there.
        """
        heard, self.heard = self.heard, defaultdict(dict)
        broken = []
        for stream, subjects in HELD.items():
            first = 1 if anew else self._last[stream] + 1
            for message in await client.messages(stream, subjects, first):
                subject = message.headers["Nats-Subject"]
                now = (int(message.headers["Nats-Sequence"]), message.data)
                before = self.stored.get(subject, now)
                if stream == RESULTS and before != now:
                    broken.append(f"{subject} has changed from {before} to {now}")
                self.stored[subject] = now
                self._last[stream] = max(self._last[stream], now[0])
        for subject, messages in heard.items():
            if not self._holds(subject, messages):
                await self._ask(client, subject)  # the replica that was read may have been behind
            if not self._holds(subject, messages):
                stored = self.stored.get(subject)
                broken.append(f"{subject} was heard to be {messages}, and stored is {stored}")
        return broken

    def _holds(self, subject: str, heard: dict[int, bytes]) -> bool:
        if subject not in self.stored:  # what is left of a claim that was given up goes away
            return subject.startswith(KEY_SUBJECT)
        sequence, data = self.stored[subject]
        return sequence >= max(heard) and heard.get(sequence, data) == data

    async def _ask(self, client: PlainClient, subject: str) -> None:
        """Its leader, for what is stored there."""
        stream = next(name for name in HELD if subject.startswith(HELD[name][:-1]))
        try:
            answer = await client.api(f"STREAM.MSG.GET.{stream}", last_by_subj=subject)
        except KeyError:
            self.stored.pop(subject, None)
        else:
            message = answer["message"]
            data = base64.b64decode(message.get("data", ""))
            self.stored[subject] = (message["seq"], data)

    async def find(self, client: PlainClient, subject: str) -> bytes | None:
        """What is stored there."""
        if subject not in self.stored:
            await self._ask(client, subject)
        return self.stored[subject][1] if subject in self.stored else None


async def is_queued(client: PlainClient, task: str) -> bool:
    for subject in (f"work.work.{task}", f"work.work.{task}.later"):
        with suppress(KeyError):
            await client.api("STREAM.MSG.GET.TASKS", last_by_subj=subject)
            return True
    return False


class RoundLedger:
    """Of one round."""

    def __init__(self, number: int) -> None:
        self.prefix = f"r{number}-"
        self.broken: list[str] = []
        self.noted: list[BaseException] = []
        self.due: dict[str, float] = {}  # by task, on the wall clock
        self.keyed: dict[str, list[str]] = defaultdict(list)  # by idempotency key: its tasks
        self._told: set[str] = set()
        self._heard: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        self._writes: dict[str, list[Write]] = defaultdict(list)
        self._yielded: list[tuple[str, str]] = []
        self.lost = 0

    # What the crowd tells

    def breaks(self, promise: str) -> None:
        self.broken.append(promise)

    def told(self, task_id: str) -> None:
        """`start` has returned."""
        self._told.add(task_id)

    def hear(self, task_id: str, who: str, result: Result) -> None:
        self._heard[task_id].append((who, json.loads(result.encode())))

    def wrote(self, key: str, by: str, number: int, began: float) -> None:
        self._writes[key].append(Write(by, number, began, time.monotonic()))

    def yielded(self, key: str, by: str) -> None:
        """A publisher was told that another one has published the end."""
        self._yielded.append((key, by))

    # After the round

    async def check(self, client: PlainClient, witness: Witness, runs: Runs, row: Row) -> None:
        for broken in await witness.look(client):
            self.breaks(broken)
        results = {}
        for task in self._told | self._heard.keys():
            data = await witness.find(client, f"done.{task}")
            if data is not None:
                results[task] = json.loads(data)
            elif task in self._told:
                where = "waits in the queue" if await is_queued(client, task) else "is lost"
                self.lost += where == "is lost"
                ran = [(run.worker, run.outcome) for run in runs.by_task.get(task, ())]
                self.breaks(f"task {task} has no result and {where}; its handlers: {ran}")
        for task, heard in self._heard.items():
            for who, result in heard:
                if result != results.get(task):
                    stored = results.get(task)
                    self.breaks(f"{who} of {task} got {result}, and stored is {stored}")
        for key, writes in self._writes.items():
            self._check_writes(key, writes, await witness.find(client, f"$KV.updates.{key}"))
        self._check_keys(witness, results, runs)
        self._check_due(runs)
        row.tasks += len(self._told)
        row.lost += self.lost
        row.doubled += sum(len(runs.by_task.get(task, ())) > 1 for task in self._told)

    def _check_writes(self, key: str, writes: list[Write], data: bytes | None) -> None:
        """What is stored is an update after whose PubAck none was begun that was stored, too."""
        told = ", ".join(
            f"{write.what} ({write.began:.2f} to {write.ended:.2f})" for write in writes
        )
        if data is None:
            self.breaks(f"updates of {key} are not stored: {told}")
            return
        metadata = json.loads(data)["Metadata"]
        what = f"{metadata['by']} {metadata['number']}"
        stored = [write for write in writes if write.what == what]
        if not stored or any(write.began > stored[0].ended for write in writes):
            self.breaks(f"updates of {key}: stored is {what}, told as stored were: {told}")
        for other, by in self._yielded:
            if other == key and not any(write.is_end and write.by != by for write in writes):
                self.breaks(
                    f"updates of {key}: {by} had no rival, and was told that it had: {told}"
                )

    def _check_keys(self, witness: Witness, results: dict[str, Any], runs: Runs) -> None:
        records = [
            json.loads(data)
            for subject, (_, data) in witness.stored.items()
            if subject.startswith(KEY_SUBJECT) and data
        ]
        kept = defaultdict(list)
        for record in records:
            if "outputs" in record:  # else it is a claim
                kept[record["outputs"]["key"]].append(record["outputs"])
        for key, tasks in self.keyed.items():
            gave = [results[task].get("outputs") for task in tasks if task in results]
            if gave and (len(kept[key]) != 1 or any(outputs != kept[key][0] for outputs in gave)):
                self.breaks(f"key {key} has {kept[key]} in its bucket, and its tasks gave {gave}")
            calls = sorted(
                (run.began, run.ended or math.inf, task)
                for task in tasks
                for run in runs.by_task.get(task, ())
            )
            for (_, ended, task), (began, _, after) in pairwise(calls):
                if began < ended - SLACK:
                    self.breaks(f"{task} and {after} of key {key} ran at once: {calls}")

    def _check_due(self, runs: Runs) -> None:
        for task, due in self.due.items():
            calls = runs.by_task.get(task)
            if calls and calls[0].began < due - SLACK:
                self.breaks(f"{task} ran {due - calls[0].began:.2f} s before it was due")
