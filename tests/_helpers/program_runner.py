# A stage on which a random program is played, on any broker, so that two performances of it can be
# compared: two dispatchers, and workers and groups as they come and go.
#
# What is seen after each step is a scene: what has become of each task, future, call and group, and
# what the workers have done. Handlers end one by one, each in a scene of its own, so nothing of
# what is seen depends on which of two things was quicker. Beside that a few things hold in every
# scene, and in the last one.
#
# A step that is about nothing that is there is passed over. So is what need not come out alike on
# two brokers, or twice on one:
#
# - Who of several workers has a task is chance. So a worker is cut short only if that makes no
#   difference: nobody else handles what it handles; or all of them handle that, and it is chosen by
#   the one task that it has.
# - A group has no tasks that wait behind others for a place: when it is cancelled, the next one may
#   be on its way to the worker.
# - Of two tasks of one key the second is started when the first one has been called, and both are
#   not given back at once: who is to wait for whom would be chance.
# - A durable that is made anew hands out everything again, and from the beginning. So it is deleted
#   where there are places for all tasks, one worker at most, and none that rests. Of what was
#   stored before it does not know whether it was handed out, and that is compared: a task that is
#   cancelled then is known to have stopped if a worker says so.
# - A task that nobody was ever handed is known to have stopped to whoever takes it out of the
#   queue. The others who hold it ask as soon as they hear that it was cancelled, which takes it out
#   as well: who is first is chance, and no more is promised than that one of them knows. So where
#   two dispatchers hold it, that is compared, not which one it is; those who come later are
#   compared one by one. Where one of the two has called `run`, not even that is compared: the one
#   who knows may be the call, which shows no future. It is the same where the worker that runs it
#   is closing, and remembers nothing once it has closed.
# - A handler that lingers, so that it outlasts its cancellation, is waited for by nobody: that
#   would take time. So none is in a group, and none is left where a worker is cut short.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from tests._helpers.program_state import Call, Held, Hired, Opened, Task, describe
from tests._helpers.random_programs import (
    DISPATCHERS,
    PLACES,
    Attach,
    Cancel,
    CancelGroup,
    CancelRun,
    DeleteDurable,
    Dismiss,
    Hire,
    How,
    LeaveGroup,
    OnFailure,
    OpenGroup,
    Program,
    Start,
    Step,
    Tell,
)
from trio_swarmtask import (
    Dispatcher,
    Future,
    Message,
    Result,
    RetryTask,
    Status,
    SwarmTaskError,
    TaskState,
    open_dispatcher,
    open_idempotency,
    open_worker,
)
from trio_swarmtask._util import leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from trio_swarmtask import Handler

T = TypeVar("T")

Scene = tuple[str, ...]

SOON: Final = 0.2
TOMORROW: Final = 24 * 60 * 60.0
MOST_TASKS: Final = PLACES - 5
GRACE: Final = 10.0  # for a handler that ends at once
STEP_SECONDS: Final = 20.0


class Different(Exception):
    """What was played did not come out as it should."""


class Theatre(ABC):
    """A broker to play on."""

    broker: Any
    prefix: str
    """Of capabilities and IDs, which nobody else has."""

    @abstractmethod
    async def see(self, name: str, stage: Stage) -> None:
        """Wait until all is quiet, and see that it is as it should be."""

    @abstractmethod
    async def wait_due(self, capability: str, task_id: str) -> None:
        """Wait until a task that is for soon is in the queue."""

    @abstractmethod
    async def delete_durable(self, capability: str, *, is_used: bool) -> None:
        """Have the broker forget what it has handed out; if used, wait until that is out again."""

    @abstractmethod
    async def count_tasks(self, capability: str) -> int:
        """Tasks that are left of a capability."""


class Stage:
    """Plays one program."""

    def __init__(self, theatre: Theatre, program: Program) -> None:
        self.said: list[str] = []  # of the steps so far
        self._theatre = theatre
        self._program = program
        self._tasks: dict[str, Task] = {}
        self._starts = 0
        self._futures: list[Held] = []
        self._calls: list[Call] = []
        self._groups: list[Opened] = []
        self._workers: list[Hired] = []
        self._dispatchers: list[Dispatcher] = []
        self._nursery: trio.Nursery
        self._wrap: Callable[[Handler], Handler] = lambda handler: handler

    async def play(self) -> None:
        broker, steps = self._theatre.broker, self._program.steps
        async with AsyncExitStack() as stack:
            for number in range(DISPATCHERS):
                opening = open_dispatcher(broker, name=f"dispatcher-{number}")
                self._dispatchers.append(await stack.enter_async_context(opening))
            if any(isinstance(step, Start) and step.key for step in steps):
                self._wrap = await stack.enter_async_context(open_idempotency(broker))
            async with trio.open_nursery() as self._nursery:
                try:
                    for number, step in enumerate(steps):
                        await self._act(f"{number}: {step}", partial(self._take, number, step))
                    await self._finish()
                except BaseException:
                    for task in self._tasks.values():
                        task.told.set()  # or who lingers would hold up the end
                    self._nursery.cancel_scope.cancel()
                    raise

    def scene(self) -> Scene:
        """What can be seen, but for what was said."""
        lines = [
            f"{task.label}: called {task.called} times, {task.running} running"
            for task in self._tasks.values()
        ]
        for number, held in enumerate(self._futures):
            is_sure = held.is_late or not self._is_raced_for(held.task)
            outcome = held.outcome(is_sure=is_sure)
            lines.append(f"future {number}, of {held.task.label}: {outcome}")
        for task in self._tasks.values():
            if self._is_raced_for(task) and not any(call.task is task for call in self._calls):
                futures = [held.future for held in self._futures if held.task is task]
                is_known = any(future.state == TaskState.STOPPED for future in futures)
                lines.append(
                    f"{task.label}: {'known' if is_known else 'not known'} to have stopped"
                )
        for number, call in enumerate(self._calls):
            lines.append(f"call {number}, of {call.task.label}: {call.outcome or 'waits'}")
        for number, opened in enumerate(self._groups):
            counts = None if opened.group is None else opened.group.statistics()
            lines.append(f"group {number}: {opened.outcome or 'open'}, {counts}")
        lines += [f"dispatcher: {dispatcher.statistics()}" for dispatcher in self._dispatchers]
        there = [hired for hired in self._workers if hired.is_there]
        closing = sum(hired.is_closing for hired in there)
        lines.append(f"{len(there)} workers, {closing} closing")
        counts_of_all: Counter[str] = Counter()
        for hired in self._workers:
            counts_of_all.update(hired.counts)
        lines += [f"{name} at workers: {count}" for name, count in counts_of_all.items()]
        return tuple(lines)

    def _is_raced_for(self, task: Task) -> bool:
        """Whether several may have cancelled it at once: see above."""
        held = {each.by for each in self._futures if each.task is task and not each.is_late}
        called = {each.by for each in self._calls if each.task is task and not each.is_late}
        is_forgotten = task.worker is not None and task.worker.is_closing
        return (task.called == 0 or is_forgotten) and len(held | called) > 1

    async def _act(self, name: str, act: Callable[[], Awaitable[str | None]]) -> None:
        """Do something and see what comes of it, one turn after another."""
        with trio.move_on_after(STEP_SECONDS) as limit:
            try:
                said = await act()
            except SwarmTaskError as exc:
                said = type(exc).__name__
            self.said.append(f"{name}: {said or 'done'}")
        if limit.cancelled_caught:
            raise Different("\n".join((f"{name}: it does not end", *self.scene())))
        await self._see(name)
        while ready := [task for task in self._tasks.values() if task.may_end]:
            task = min(ready, key=lambda task: task.label)
            assert task.turn is not None
            task.turn.set()
            task.turn = None
            await self._see(f"{name}; the turn of {task.label}")

    async def _see(self, name: str) -> None:
        await self._theatre.see(name, self)
        if wrong := "; ".join(self._find_wrong()):
            raise Different("\n".join((f"{name}: {wrong}", *self.scene(), *self.said)))

    def _find_wrong(self) -> Iterator[str]:
        """What can't be, on whatever broker."""
        for task in self._tasks.values():
            if self._has_ended(task) and task.running and not task.lingers:
                yield f"{task.label} has ended, and its handler runs"
        for held in self._futures:
            if not held.is_outstanding and held.future.result.status == Status.SUCCESS:
                giver = self._tasks[str(held.future.result.outputs)]
                if giver is not held.task and not (giver.key and held.task.key):
                    yield f"{held.task.label} has the outputs of {giver.label}"
        for opened in self._groups:
            assert opened.group is not None
            counts = opened.group.statistics()
            ended = counts.succeeded + counts.failed + counts.cancelled
            if counts.started != counts.outstanding + ended:
                yield f"the counts of a group do not add up: {counts}"

    async def _finish(self) -> None:
        """Let all that can end come to its end, and see what is left."""
        for label in sorted(self._tasks):
            await self._act(f"tell {label}", partial(self._tell, self._tasks[label]))
        await self._act("hire the last one", partial(self._hire, (0, 1)))
        for label in sorted(self._tasks):
            if label.startswith("t"):
                await self._act(f"look for {label}", partial(self._attach, int(label[1:]), 1))
        for number, held in enumerate(self._futures):
            if held.is_outstanding:
                await self._act(f"cancel future {number}", partial(self._cancel, held))
        for number, call in enumerate(self._calls):
            if not call.outcome:
                await self._act(f"cancel call {number}", partial(self._cancel_run, call))
        for number, opened in enumerate(self._open_groups()):
            await self._act(f"leave group {number}", partial(self._leave, opened))
        for hired in self._open_workers():
            await self._act("close a worker", partial(self._dismiss_softly, hired))
        for number in (0, 1):
            await self._act(f"count {number}", partial(self._count, number))
        open_still = [
            *(held for held in self._futures if held.is_outstanding),
            *(call for call in self._calls if not call.outcome),
            *(opened for opened in self._groups if not opened.outcome),
            *(hired for hired in self._workers if hired.is_there),
        ]
        if open_still:
            raise Different("\n".join(("it does not end", *self.scene(), *self.said)))

    async def _count(self, capability: int) -> str:
        return f"{await self._theatre.count_tasks(self._capability(capability))} are left"

    # The steps

    async def _take(self, number: int, step: Step) -> str | None:
        tasks, calls = self._tasks.values(), self._calls
        match step:
            case Start() if self._starts < MOST_TASKS:
                self._starts += 1
                return await self._start(number, step)
            case Tell(task) if untold := [each for each in tasks if each.waits_to_be_told]:
                return await self._tell(pick(untold, task))
            case Cancel(future) if self._futures:
                first = sorted(self._futures, key=lambda held: not held.is_outstanding)
                return await self._cancel(pick(first, future))
            case CancelRun(call) if waiting := [each for each in calls if not each.outcome]:
                return await self._cancel_run(pick(waiting, call))
            case Attach(name, by):
                return await self._attach(name, by)
            case Hire(capabilities):
                return await self._hire(capabilities)
            case Dismiss(worker, how) if self._open_workers():
                return await self._dismiss(worker, how)
            case OpenGroup(by, on_failure) if self._program.places == PLACES:
                return await self._open_group(by, on_failure)
            case LeaveGroup(group) if groups := self._open_groups():
                return await self._leave(pick(groups, group))
            case CancelGroup(group) if groups := self._open_groups():
                return await self._cancel_group(pick(groups, group))
            case DeleteDurable(capability) if self._may_delete_durable(capability):
                return await self._delete_durable(capability)
        return "passed over"

    async def _start(self, number: int, step: Start) -> None:
        groups = self._open_groups()
        opened = pick(groups, step.group) if groups and step.group is not None else None
        label = f"own-{number}" if step.name is None else f"t{step.name}"
        task = self._tasks.setdefault(label, Task(label))
        is_new = task.capability is None
        if is_new:  # else the broker knows it, as it was then
            task.key = self._may_have_key(step)
            task.do = "wait" if opened is not None and step.do == "linger" else step.do
            task.capability = step.capability
        message = Message(
            id="" if step.name is None else self._task_id(step.name),
            idempotency=f"{self._theatre.prefix}-key" if task.key else "",
            inputs={"label": label},
            max_attempts=3,
        )
        capability = self._capability(step.capability)
        starter: Any = self._dispatchers[step.by] if opened is None else opened.group
        if step.run:
            nursery = self._nursery if opened is None else opened.nursery
            assert nursery is not None
            by = step.by if opened is None else opened.by
            self._calls.append(call := Call(task, by, self._has_ended(task)))
            await nursery.start(self._run, call, partial(starter.run, capability, message))
            return
        seconds = {"now": None, "soon": SOON, "tomorrow": TOMORROW}[step.when]
        due = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        future = await starter.start(capability, message, not_before=due)
        self._hold(task, future, step.by if opened is None else opened.by)
        if step.when == "soon" and is_new:
            await self._theatre.wait_due(capability, future.id)

    async def _run(
        self,
        call: Call,
        run: Callable[[], Awaitable[Result]],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        outcome = "cancelled"
        try:
            with call.scope:
                task_status.started()  # before the next step: the dispatcher has it at once
                outcome = describe(await run())
        except SwarmTaskError as exc:
            outcome = type(exc).__name__
        finally:
            call.outcome = outcome

    async def _tell(self, task: Task) -> None:
        task.told.set()

    async def _cancel(self, held: Held) -> None:
        task = held.task
        # An answer that nobody waits for may be in time all the same. So one that comes at once is
        # waited for.
        lingers = task.lingers or (task.running and task.do == "linger" and task.waits_to_be_told)
        is_answered = task.running or task.rests or task.was_cancelled or task.key
        task.was_cancelled = True
        grace = GRACE if is_answered and not lingers else 0
        await self._dispatchers[held.by]._core.futures.cancel(held.future, grace)

    async def _cancel_run(self, call: Call) -> None:
        call.scope.cancel()

    async def _attach(self, name: int, by: int) -> None:
        task = self._tasks.setdefault(f"t{name}", Task(f"t{name}"))
        future = await self._dispatchers[by].attach(self._task_id(name))
        self._hold(task, future, by)

    def _hold(self, task: Task, future: Future, by: int) -> None:
        is_late = future.state != TaskState.OUTSTANDING
        self._futures.append(Held(task, future, by, is_late))

    def _capability(self, number: int) -> str:
        return f"{self._theatre.prefix}-{'ab'[number]}"

    def _task_id(self, name: int) -> str:
        return f"{self._theatre.prefix}-t{name}"

    def _may_have_key(self, step: Start) -> bool:
        if not step.key or step.run or step.do in ("linger", "try again", "rest until tomorrow"):
            return False
        tasks = self._tasks.values()
        others = [task for task in tasks if task.key and task.capability == step.capability]
        return len(others) < 2 and all(task.running or self._has_ended(task) for task in others)

    def _has_ended(self, task: Task) -> bool:
        return any(held.task is task and not held.is_outstanding for held in self._futures)

    # Groups

    def _open_groups(self) -> list[Opened]:
        return [each for each in self._groups if not each.outcome and not each.leave.is_set()]

    async def _open_group(self, by: int, on_failure: OnFailure) -> None:
        self._groups.append(opened := Opened(by))
        # Not by `start`: the deadline of this step would be that of the group, and travel.
        self._nursery.start_soon(self._host_group, opened, on_failure)
        await opened.begun.wait()

    async def _host_group(self, opened: Opened, on_failure: OnFailure) -> None:
        dispatcher = self._dispatchers[opened.by]
        outcome = "left"
        try:
            async with (
                dispatcher.open_group(on_failure=on_failure) as opened.group,
                trio.open_nursery() as opened.nursery,
            ):
                opened.begun.set()
                await opened.leave.wait()
            if opened.group.cancel_scope.cancelled_caught:
                outcome = "cancelled"
        except* SwarmTaskError as group:
            outcome = f"raised {sorted(type(exc).__name__ for exc in leaves(group))}"
        finally:
            opened.outcome = outcome

    async def _leave(self, opened: Opened) -> None:
        opened.leave.set()

    async def _cancel_group(self, opened: Opened) -> None:
        assert opened.group is not None
        opened.group.cancel_scope.cancel()

    # Workers

    def _open_workers(self) -> list[Hired]:
        return [hired for hired in self._workers if hired.is_there and not hired.is_closing]

    async def _hire(self, capabilities: tuple[int, ...]) -> None:
        self._workers.append(hired := Hired(capabilities))
        self._nursery.start_soon(self._host_worker, hired)
        await hired.begun.wait()

    async def _host_worker(self, hired: Hired) -> None:
        handler = self._wrap(partial(self._handle, hired))
        with hired.scope:
            async with open_worker(self._theatre.broker) as hired.worker:
                for number in hired.capabilities:
                    capability = self._capability(number)
                    places = self._program.places
                    await hired.worker.handle(capability, handler, max_in_flight=places)
                hired.is_there = True
                hired.begun.set()
                await hired.leave.wait()
        hired.is_there = False

    async def _handle(self, hired: Hired, message: Message) -> str:
        task = self._tasks[message.inputs["label"]]
        task.called += 1
        task.running += 1
        task.worker = hired
        try:
            task.turn = trio.Event()
            await task.turn.wait()
            if task.do in ("fail", "wait and fail"):
                raise ValueError("no luck")
            if task.do == "try again" and task.called == 1:
                raise RetryTask("it was the first time", delay=0)
            if task.do == "rest until tomorrow" and task.called == 1:
                task.rests = True
                raise RetryTask("it was the first time", delay=TOMORROW)
        except trio.Cancelled:
            if task.do == "linger" and not hired.is_cut:
                task.lingers = True
                with trio.move_on_after(60, shield=True):
                    await task.told.wait()
                task.lingers = False
            raise
        finally:
            task.turn = None
            task.running -= 1
        return task.label

    async def _dismiss(self, number: int, how: How) -> str | None:
        hired = pick(self._open_workers(), number)
        mine = set(hired.capabilities)
        there = [each for each in self._workers if each.is_there and mine & set(each.capabilities)]
        in_flight = sum(each.counts["in_flight"] for each in there)
        has_one_at_most = in_flight == 1 or (self._program.places == 1 and len(mine) == 1)
        all_alike = all(
            each.capabilities == hired.capabilities and not each.is_closing for each in there
        )
        running = [task for task in self._tasks.values() if task.running and task.worker in there]
        is_chosen = there == [hired] or in_flight == 0
        if has_one_at_most and all_alike and running:
            chosen = pick(running, number).worker
            assert chosen is not None
            hired, is_chosen = chosen, True
        if not is_chosen:
            if self._program.places == 1:
                return "passed over"
            how = "aclose"
        keyed = [task for task in self._tasks.values() if task.key and not self._has_ended(task)]
        if how == "aclose" or len(keyed) > 1:
            await self._dismiss_softly(hired)
            return None
        return await self._cut(hired, how)

    async def _dismiss_softly(self, hired: Hired) -> None:
        assert hired.worker is not None
        hired.is_closing = True
        self._nursery.start_soon(self._wait_closed, hired)
        await hired.worker._closing.pulls_ended.wait()

    async def _wait_closed(self, hired: Hired) -> None:
        assert hired.worker is not None
        await hired.worker.aclose()
        hired.leave.set()

    async def _cut(self, hired: Hired, how: How) -> str | None:
        assert hired.worker is not None
        if lingering := [task for task in self._tasks.values() if task.lingers]:
            for task in lingering:
                task.told.set()
            return "those who linger are told first"
        hired.is_cut = True
        if how == "cancel":
            hired.scope.cancel()
        else:
            with suppress(trio.TooSlowError):
                await hired.worker.shutdown(0)
            hired.leave.set()
        return None

    def _may_delete_durable(self, capability: int) -> bool:
        there = [
            each for each in self._workers if each.is_there and capability in each.capabilities
        ]
        tasks = [task for task in self._tasks.values() if task.capability == capability]
        return (
            self._program.places == PLACES
            and len(there) < 2
            and not any(hired.is_closing for hired in there)
            and not any(task.rests for task in tasks)
        )

    async def _delete_durable(self, capability: int) -> str:
        # An ack has no answer. One that came after this would be of another durable, and its task
        # handed out once more.
        left = await self._count(capability)
        is_used = any(capability in hired.capabilities for hired in self._open_workers())
        await self._theatre.delete_durable(self._capability(capability), is_used=is_used)
        return left


def pick(there: Sequence[T], number: int) -> T:
    return there[number % len(there)]
