# Random trees of groups, over three dispatchers and three workers, and what befalls them.
#
# A plan is drawn from a seed, whole, before anything runs: blocks (groups that cancel, groups that
# collect, maps), each with tasks; a task waits, succeeds, fails, or has a block of its own, three
# deep. And events: anybody cancels anything, dispatchers are closed or lose their server, workers
# come and go. What an event is about is a number, of which one of those that are there is made.
#
# The ledger knows nothing of the library: a handler enters itself, and leaves when it has cleaned
# up. As each block is left, wherever it is, nothing of its tree may be in the ledger, but for what
# was said not to be known: a running task is excused if it, or one above it, has a future that says
# `unconfirmed`; or `outstanding`, where the dispatcher was closed or lost. In a calm plan, where
# clean-up is short and nobody is lost, nothing is excused.

from __future__ import annotations

import math
import random
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal
from unittest.mock import patch

import msgspec
import trio

from trio_swarmtask import (
    BrokerError,
    ClosedError,
    Dispatcher,
    Future,
    Message,
    SwarmTaskError,
    TaskGroup,
    TaskState,
    Worker,
    current_task,
)
from trio_swarmtask._dispatcher._group import GroupTasks
from trio_swarmtask._dispatcher._map import MapResults
from trio_swarmtask._util import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

ROLES: Final = 3  # dispatchers, and workers
DEPTH: Final = 3
CAPABILITIES: Final = "abc"
LAST: Final = 5.0  # when the block at the top is cancelled, if it is still there

Kind = Literal["cancel", "collect", "map"]


class Planned(Exception):
    """A block fails, as it was to."""


# Plans


@dataclass
class Node:
    """A task."""

    name: str
    capability: str
    how: Literal["start", "run", "outside"]
    do: Literal["succeed", "fail", "wait"]
    after: float
    clean_up: float
    own_id: bool
    gives_up: float | None  # whoever runs it, after so many seconds
    block: Block | None = None

    def lines(self) -> Iterator[str]:
        gives_up = "" if self.gives_up is None else f", given up after {self.gives_up:.2f}"
        yield (
            f"{self.name}: {self.how} {self.capability}, {self.do} after {self.after:.2f}, cleans "
            f"up for {self.clean_up:.2f}{gives_up}"
        )
        if self.block is not None:
            yield from (f"    {line}" for line in self.block.lines())


@dataclass
class Block:
    kind: Kind
    by: int | None  # a dispatcher; None: the worker's own
    grace: float
    deadline: float | None
    fails_after: float | None
    reads: int  # of a map
    limit: int
    nodes: list[Node] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.kind} by {'its worker' if self.by is None else self.by}, grace "
            f"{self.grace:.2f}, deadline {self.deadline}, fails after {self.fails_after}"
        )
        for node in self.nodes:
            yield from (f"  {line}" for line in node.lines())


@dataclass
class Event:
    at: float
    what: str
    which: int
    by: int
    length: float

    def __str__(self) -> str:
        return f"{self.at:.2f}: {self.what} {self.which} by {self.by}, {self.length:.2f}"


CALM: Final = ["cancel_by_its_future", "cancel_by_attaching", "cancel_by_a_group"] * 3 + [
    "cancel_a_block",
    "cancel_a_call",
    "close_a_dispatcher",
    "shut_a_dispatcher_down",
]
ROUGH: Final = [
    *CALM,
    *["lose_a_dispatcher", "dismiss_a_worker", "cut_a_worker_short", "lose_a_worker"] * 2,
]


@dataclass
class Plan:
    seed: str
    calm: bool
    top: Block
    events: list[Event]

    @classmethod
    def draw(cls, seed: str) -> Plan:
        rng = random.Random(seed)
        calm = rng.random() < 0.5
        gardener = _Gardener(rng, calm=calm)
        top = gardener.grow_block(1)
        top.by = rng.randrange(ROLES)
        kinds = CALM if calm else ROUGH
        events = [
            Event(
                rng.uniform(0.1, LAST), rng.choice(kinds), rng.randrange(60), rng.randrange(ROLES),
                rng.uniform(0, 1),
            )
            for _ in range(rng.randint(0, 10))
        ]  # fmt: skip
        return cls(seed, calm, top, sorted(events, key=lambda event: event.at))

    def __str__(self) -> str:
        title = f"seed {self.seed!r}, {'calm' if self.calm else 'rough'}"
        return "\n".join([title, *self.top.lines(), *map(str, self.events)])


class _Gardener:
    def __init__(self, rng: random.Random, *, calm: bool) -> None:
        self._rng = rng
        self._calm = calm
        self._count = 0

    def _maybe(self, chance: float, most: float) -> float | None:
        return self._rng.uniform(0, most) if self._rng.random() < chance else None

    def grow_block(self, depth: int) -> Block:
        rng = self._rng
        block = Block(
            kind=rng.choice(("cancel", "cancel", "collect", "map")),
            by=rng.choice((*range(ROLES), None)),
            grace=60 if self._calm else rng.choice((0.0, 0.5, 3.0, 3.0)),
            deadline=self._maybe(0.15, LAST),
            fails_after=self._maybe(0.15, LAST),
            reads=rng.randint(1, 5),
            limit=rng.randint(1, 4),
        )
        block.nodes = [self._grow_node(depth, index) for index in range(rng.randint(1, 4))]
        return block

    def _grow_node(self, depth: int, index: int) -> Node:
        rng = self._rng
        self._count += 1
        node = Node(
            name=f"n{self._count}",
            capability=rng.choice(CAPABILITIES),
            how=rng.choice(("start", "start", "run", "outside")),
            do=rng.choice(("succeed", "succeed", "fail", "wait", "wait", "wait")),
            after=rng.uniform(0, 3),
            clean_up=rng.choice((0.0, 0.05, 0.2) if self._calm else (0.0, 0.1, 1.0, 2.5)),
            own_id=rng.random() < 0.5,
            gives_up=self._maybe(0.3, 4),
        )
        if depth < DEPTH and (index == 0 or rng.random() < 0.4):
            node.block = self.grow_block(depth + 1)
        return node


# The ledger


@dataclass(eq=False)
class Opened:
    """A block that was entered; of a task that is tried again, once more."""

    block: Block
    number: int
    dispatcher: Dispatcher
    parent: str  # the ID of the task in which it is, if any
    scope: trio.CancelScope | None = None  # while it is open


@dataclass(eq=False)
class Started:
    """A task that was started in a block."""

    node: Node
    opened: Opened
    future: Future
    message: Message


@dataclass(eq=False)
class Hired:
    worker: Worker
    scope: trio.CancelScope


class Ledger:
    """Who runs, by the handlers' own account; and who has started whom."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()  # by ID
        self.started: dict[str, Started] = {}
        self.escaped: list[str] = []  # they run, and the block has not said so
        self.excused = 0

    def above(self, task_id: str) -> Iterator[Started]:
        """A task, the one that has started it, and so on up."""
        while (started := self.started.get(task_id)) is not None:
            yield started
            task_id = started.opened.parent

    def check(self, opened: Opened, *, calm: bool) -> None:
        """A block was left: does anything of its tree run?"""
        for task_id in +self.running:
            path = list(self.above(task_id))
            if all(started.opened is not opened for started in path):
                continue  # of another tree
            if calm or not any(self._is_told(started) for started in path):
                states = ", ".join(f"{each.node.name} {each.future.state}" for each in path)
                self.escaped.append(
                    f"{path[0].node.name} runs, though block {opened.number} ({opened.block.kind}) "
                    f"was left; from below: {states}"
                )
            else:
                self.excused += 1

    def _is_told(self, started: Started) -> bool:
        if started.future.state == TaskState.OUTSTANDING:
            dispatcher = started.opened.dispatcher
            return dispatcher._core.ended is not None  # closed, or lost
        return started.future.state == TaskState.UNCONFIRMED


# The stage


class Site(ABC):
    """A broker: where roles are opened, and lost."""

    scale: float
    """Of all times in a plan."""

    @abstractmethod
    def dispatcher(self) -> AbstractAsyncContextManager[Dispatcher]: ...

    @abstractmethod
    def worker(self) -> AbstractAsyncContextManager[Worker]: ...

    @abstractmethod
    def lose(self, role: Dispatcher | Worker) -> None:
        """Let it lose its server for good."""


class Stage:
    """Plays one plan."""

    def __init__(self, plan: Plan, site: Site) -> None:
        self.plan = plan
        self.site = site
        self.prefix = secrets.token_hex(4)
        self.ledger = Ledger()
        self.opened: list[Opened] = []
        self.dispatchers: list[Dispatcher] = []
        self.workers: list[Hired] = []
        self.calls: list[trio.CancelScope] = []
        self._leave = trio.Event()
        self._roles: trio.Nursery

    async def play(self) -> None:
        with patch.object(GroupTasks, "begin", self._noting(GroupTasks.begin)):
            async with trio.open_nursery() as self._roles:
                for _ in range(ROLES):
                    await self._roles.start(self._host_dispatcher)
                    await self._roles.start(self._host_worker)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._let_happen, nursery)
                    with suppress(ClosedError):  # by an event, before it is entered
                        await self._enter(self.plan.top, None)
                    nursery.cancel_scope.cancel()
                for hired in self.workers:
                    with suppress(trio.TooSlowError):
                        await hired.worker.shutdown(0)
                self._leave.set()
        running = list(+self.ledger.running)
        assert not running, f"when all is over, {running} run"
        assert not self.ledger.escaped, self.ledger.escaped[0]

    def _noting(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        def begin_and_note(
            tasks: GroupTasks, capability: str, message: Message, *rest: object
        ) -> object:
            start, child = begin(tasks, capability, message, *rest)
            name, number = message.inputs["node"], int(message.inputs["block"])
            opened = self.opened[number]
            node = next(node for node in opened.block.nodes if node.name == name)
            self.ledger.started.setdefault(
                start.future.id, Started(node, opened, start.future, message)
            )
            return start, child

        return begin_and_note

    # Roles

    async def _host_dispatcher(self, *, task_status: trio.TaskStatus[None]) -> None:
        with suppress_in_groups(BrokerError):  # it was lost
            async with self.site.dispatcher() as dispatcher:
                self.dispatchers.append(dispatcher)
                task_status.started()
                await self._leave.wait()

    async def _host_worker(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope, suppress_in_groups(BrokerError):
            async with self.site.worker() as worker:
                for capability in CAPABILITIES:
                    await worker.handle(f"{self.prefix}-{capability}", self._handle)
                hired = Hired(worker, scope)
                self.workers.append(hired)
                task_status.started()
                await self._leave.wait()

    # Trees

    async def _handle(self, message: Message) -> None:
        node = self.ledger.started[message.id].node
        self.ledger.running[message.id] += 1
        try:
            if node.block is not None:
                await self._enter(node.block, message)
            elif node.do == "wait":
                await trio.sleep_forever()
            else:
                await self._sleep(node.after)
            if node.do == "fail":
                raise ValueError("no luck")
        finally:
            with trio.move_on_after(node.clean_up * self.site.scale, shield=True):
                await trio.sleep_forever()
            self.ledger.running[message.id] -= 1

    async def _enter(self, block: Block, message: Message | None) -> None:
        if block.by is not None:
            dispatcher = self.dispatchers[block.by]
        else:
            dispatcher = await current_task().dispatcher()
        opened = Opened(block, len(self.opened), dispatcher, "" if message is None else message.id)
        self.opened.append(opened)
        act = self._enter_map if block.kind == "map" else self._enter_group
        with trio.move_on_after(self._seconds(block.deadline)):
            await act(opened, message)

    async def _enter_group(self, opened: Opened, parent: Message | None) -> None:
        block = opened.block
        async with trio.open_nursery() as outside:
            with suppress_in_groups(SwarmTaskError, Planned):
                try:
                    async with opened.dispatcher.open_group(
                        parent=parent,
                        on_failure="collect" if block.kind == "collect" else "cancel",
                        grace=self._seconds(block.grace),
                    ) as group:
                        opened.scope = group.cancel_scope
                        async with trio.open_nursery() as inside:
                            for node in block.nodes:
                                if node.how == "outside":  # begun before the block is left
                                    await outside.start(self._call, group, opened, node)  # noqa: ASYNC111 - that is what is tested
                                else:
                                    inside.start_soon(self._call, group, opened, node)
                            if block.fails_after is not None:
                                await self._sleep(block.fails_after)
                                raise Planned
                finally:
                    self._check(opened)

    async def _call(
        self,
        group: TaskGroup,
        opened: Opened,
        node: Node,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        scope = trio.CancelScope()
        self.calls.append(scope)
        with scope, suppress(SwarmTaskError):
            capability, message = self._message(opened, node)
            task_status.started()
            if node.how == "start":
                await group.start(capability, message)
            else:
                with trio.move_on_after(self._seconds(node.gives_up)):
                    await group.run(capability, message)

    async def _enter_map(self, opened: Opened, parent: Message | None) -> None:
        block = opened.block
        capability = f"{self.prefix}-{block.nodes[0].capability}"
        messages = [self._message(opened, node)[1] for node in block.nodes]
        with suppress(SwarmTaskError, Planned):
            try:
                async with opened.dispatcher.map(
                    capability,
                    messages,
                    limit=block.limit,
                    parent=parent,
                    grace=self._seconds(block.grace),
                ) as results:
                    assert isinstance(results, MapResults)
                    opened.scope = results._tasks.nursery.cancel_scope
                    with trio.fail_after(self._seconds(block.fails_after)):
                        for _ in range(block.reads):
                            with suppress(StopAsyncIteration):
                                await anext(results)
            except trio.TooSlowError:
                pass
            finally:
                self._check(opened)

    def _message(self, opened: Opened, node: Node) -> tuple[str, Message]:
        task_id = f"{self.prefix}-{opened.number}-{node.name}" if node.own_id else ""
        inputs = {"node": node.name, "block": f"{opened.number}"}
        return f"{self.prefix}-{node.capability}", Message(id=task_id, inputs=inputs)

    def _check(self, opened: Opened) -> None:
        opened.scope = None
        self.ledger.check(opened, calm=self.plan.calm)

    # Events

    async def _let_happen(self, nursery: trio.Nursery) -> None:
        began = trio.current_time()
        for event in self.plan.events:
            await trio.sleep_until(began + event.at * self.site.scale)
            # Some take long, and are not to hold up the next ones.
            nursery.start_soon(self._let_one_happen, event)
        await trio.sleep_until(began + LAST * self.site.scale)
        if self.opened and (top := self.opened[0].scope) is not None:
            top.cancel()

    async def _let_one_happen(self, event: Event) -> None:
        with suppress(SwarmTaskError):
            await getattr(self, event.what)(event)

    def _task(self, event: Event) -> Started | None:
        tasks = list(self.ledger.started.values())
        return tasks[event.which % len(tasks)] if tasks else None

    async def cancel_by_its_future(self, event: Event) -> None:
        if (started := self._task(event)) is not None:
            await started.future.cancel()

    async def cancel_by_attaching(self, event: Event) -> None:
        if (started := self._task(event)) is not None:
            future = await self.dispatchers[event.by].attach(started.future.id)
            await future.cancel()

    async def cancel_by_a_group(self, event: Event) -> None:
        if (started := self._task(event)) is not None:
            message = msgspec.structs.replace(started.message, id=started.future.id)
            capability = f"{self.prefix}-{started.node.capability}"
            with suppress_in_groups(SwarmTaskError):
                async with self.dispatchers[event.by].open_group(grace=event.length) as group:
                    await group.start(capability, message)
                    group.cancel_scope.cancel()

    async def cancel_a_block(self, event: Event) -> None:
        scopes = [opened.scope for opened in self.opened if opened.scope is not None]
        if scopes:
            scopes[event.which % len(scopes)].cancel()

    async def cancel_a_call(self, event: Event) -> None:
        if self.calls:
            self.calls[event.which % len(self.calls)].cancel()

    async def close_a_dispatcher(self, event: Event) -> None:
        dispatcher = self.dispatchers[event.by]
        await dispatcher.aclose()

    async def shut_a_dispatcher_down(self, event: Event) -> None:
        dispatcher = self.dispatchers[event.by]
        with suppress(trio.TooSlowError):
            await dispatcher.shutdown(self._seconds(event.length))

    async def lose_a_dispatcher(self, event: Event) -> None:
        self.site.lose(self.dispatchers[event.by])

    async def dismiss_a_worker(self, event: Event) -> None:
        """It lets its handlers go on for a while."""
        hired = self.workers[event.which % len(self.workers)]
        await self._roles.start(self._host_worker)
        with suppress(trio.TooSlowError):
            await hired.worker.shutdown(self._seconds(event.length))

    async def cut_a_worker_short(self, event: Event) -> None:
        hired = self.workers[event.which % len(self.workers)]
        await self._roles.start(self._host_worker)
        hired.scope.cancel()

    async def lose_a_worker(self, event: Event) -> None:
        hired = self.workers[event.which % len(self.workers)]
        await self._roles.start(self._host_worker)
        self.site.lose(hired.worker)

    def _seconds(self, seconds: float | None) -> float:
        return math.inf if seconds is None else seconds * self.site.scale

    async def _sleep(self, seconds: float) -> None:
        await trio.sleep(seconds * self.site.scale)


@contextmanager
def suppress_in_groups(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except* kinds:
        pass


# Broken trees


async def play(plan: Plan, site: Site) -> Stage:
    """Play a plan; what fails says which one it was."""
    stage = Stage(plan, site)
    try:
        with trio.fail_after(60):
            await stage.play()
    except Exception as exc:
        problems = [leaf for leaf in leaves(exc) if isinstance(leaf, AssertionError)] or [exc]
        raise AssertionError(f"{problems[0]!r}\n\n{plan}") from exc
    return stage
