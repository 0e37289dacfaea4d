# The two brokers on which random programs are played.
#
# In memory a scene is there once every Trio task waits; time stands still but for what a step
# takes. What is seen is written down. On a server nothing tells that all is quiet: each scene has
# to become what it was in memory, and what comes later than that is seen in the next one.

from __future__ import annotations

import difflib
import math
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from tests._helpers.brokers import NATSSwarm, until
from tests._helpers.program_runner import SOON, Different, Scene, Stage, Theatre
from trio_swarmtask import MemoryBroker
from trio_swarmtask._jetstream._api import APIError
from trio_swarmtask._jetstream._refusals import NO_CONSUMER, NO_MESSAGE, NO_STREAM
from trio_swarmtask._util import leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests._helpers.api_client import Raw
    from tests._helpers.random_programs import Program


@dataclass
class Script:
    """What was seen in memory, scene by scene."""

    scenes: list[tuple[str, Scene, list[str]]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)


def play_in_memory(program: Program) -> Script:
    """What is seen of it there."""
    theatre = MemoryTheatre()
    clock = trio.testing.MockClock(autojump_threshold=0)
    _run(Stage(theatre, program).play, clock=clock)
    return theatre.script


def play_on_server(url: str, program: Program, script: Script, patience: float) -> None:
    """Play it on a server that may have seen other programs.

    Each scene has ``patience`` seconds to come.

    Raises:
      Different: if a scene is not that of the script.
    """

    async def play() -> None:
        swarm = NATSSwarm(url)
        async with swarm.raw() as raw:
            theatre = ServerTheatre(swarm, raw, script, patience)
            await Stage(theatre, program).play()
            await theatre.clear()

    _run(play)


def _run(play: Callable[[], Awaitable[None]], **settings: Any) -> None:
    try:
        trio.run(play, **settings)
    except BaseExceptionGroup as group:
        for exc in leaves(group):
            if isinstance(exc, Different):
                raise exc from None
        raise


class MemoryTheatre(Theatre):
    """Writes down what is seen."""

    prefix = "p"

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.script = Script()

    async def see(self, name: str, stage: Stage) -> None:
        # Who first looks at a future whose task was cancelled by others has the workers asked. So a
        # scene is there once looking changes nothing more: what is only so until there is an answer
        # is not to be waited for on a server, nor may the next step overtake the answer.
        scene, before = None, ()
        while scene != before:
            await trio.testing.wait_all_tasks_blocked()
            before, scene = scene, stage.scene()
        self.script.scenes.append((name, scene, list(stage.said)))

    async def wait_due(self, capability: str, task_id: str) -> None:
        await trio.sleep(SOON)

    async def delete_durable(self, capability: str, *, is_used: bool) -> None:
        # There is none. But what is not known any more of tasks that are older than the next one is
        # promised alike: whether a handler was called for them.
        queue = self.broker._queue(capability)
        queue._handled_from = math.inf
        if queue.hearers:
            queue.begin()

    async def count_tasks(self, capability: str) -> int:
        tasks = self.broker._queue(capability)._tasks.values()
        self.script.left.append(sum(len(same) for same in tasks))
        return self.script.left[-1]


class ServerTheatre(Theatre):
    """Waits for each scene of a script."""

    def __init__(self, swarm: NATSSwarm, raw: Raw, script: Script, patience: float) -> None:
        self.broker = swarm.broker
        self.prefix = f"p{secrets.token_hex(4)}"
        self._raw = raw
        self._scenes = iter(script.scenes)
        self._left = iter(script.left)
        self._patience = patience

    async def see(self, name: str, stage: Stage) -> None:
        expected, scene, said = next(self._scenes)
        if (name, stage.said) == (expected, said):
            with trio.move_on_after(self._patience):
                return await until(lambda: stage.scene() == scene)
        seen = (name, *stage.scene(), *stage.said)
        lines = difflib.unified_diff((expected, *scene, *said), seen, "memory", "server", n=99)
        raise Different("\n".join(line.rstrip() for line in lines))

    async def wait_due(self, capability: str, task_id: str) -> None:
        # What the server does by itself has no event.
        while await self._is_stored(f"work.{capability}.{task_id}.later"):  # noqa: ASYNC110
            await trio.sleep(0.01)

    async def delete_durable(self, capability: str, *, is_used: bool) -> None:
        durable = f"TASKS.work-{capability}"
        try:
            await self._raw.api(f"CONSUMER.DELETE.{durable}")
        except APIError as exc:
            if exc.err_code not in (NO_CONSUMER, NO_STREAM):
                raise
        while is_used and not await self._has_handed_out(durable):  # noqa: ASYNC110 - as above
            await trio.sleep(0.01)

    async def count_tasks(self, capability: str) -> int:
        expected, count = next(self._left), -1
        subjects = f"work.{capability}.>"
        with trio.move_on_after(self._patience):
            while count != expected:  # an ack has no answer, and its effect no event
                count = await self._count(subjects)
        return count

    async def _count(self, subjects: str) -> int:
        try:
            info = await self._raw.api("STREAM.INFO.TASKS", subjects_filter=subjects)
        except APIError as exc:
            if exc.err_code != NO_STREAM:
                raise
            return 0  # nobody has used it yet
        return sum((info["state"].get("subjects") or {}).values())

    async def clear(self) -> None:
        """Leave nothing that the server would have to look after while it plays the next ones."""
        for letter in "ab":
            with suppress(APIError):
                await self._raw.api(f"CONSUMER.DELETE.TASKS.work-{self.prefix}-{letter}")

    async def _has_handed_out(self, durable: str) -> bool:
        try:
            return (await self._raw.api(f"CONSUMER.INFO.{durable}"))["num_pending"] == 0
        except APIError as exc:
            if exc.err_code != NO_CONSUMER:
                raise
            return False

    async def _is_stored(self, subject: str) -> bool:
        try:
            await self._raw.api("STREAM.MSG.GET.TASKS", last_by_subj=subject)
        except APIError as exc:
            if exc.err_code != NO_MESSAGE:
                raise
            return False
        return True
