# The dispatcher: what users call to start tasks, one by one, as a group, later, again and again.

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, final

import trio

from .._check import check_capability, check_count, check_task_id, check_timeout, make_key
from .._schedule import Schedule, check_name, make_plan, read_plans
from .._util import NoPublicConstructor, open_flat_nursery, shorten
from ._core import Chain, Core, Starter
from ._future import is_resolved, park, take
from ._group import GroupTasks, Orphans, TaskGroup, open_group
from ._map import check_messages, open_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
    from datetime import datetime, timedelta

    from .._abc import Broker, Outbox, ResultListener
    from .._message import Message, Result
    from .._statistics import DispatcherStatistics
    from ._future import Future
    from ._group import OnFailure

T = TypeVar("T")


@final
class Dispatcher(metaclass=NoPublicConstructor):
    """Starts tasks and holds their futures. Made by `open_dispatcher`.

    Safe to use from any number of tasks of one Trio run.
    """

    def __init__(self, core: Core, parent: Message | None = None) -> None:
        self._core = core
        self._parent = parent  # the task for which this is a view of its worker's dispatcher
        self._starter = Starter(core, None if parent is None else Chain.below(parent))

    def __repr__(self) -> str:
        return repr(self._core)

    async def run(self, capability: str, message: Message) -> Result:
        """Start one task and wait for its result: `start`, then `Future.wait`.

        A handler's failure is a reply, not an exception: see the result's ``status``, or call its
        `raise_for_status`. If cancelled, the task goes on at its worker and is forgotten here.

        Args:
          capability: 1 to 64 of ``A-Z a-z 0-9 _ -``, for example ``"coder"``.
          message: What to send.

        Raises:
          What `start` and `Future.wait` raise.
        """
        self._core.check_open()
        starter = self._starter
        start = starter.prepare(capability, message)
        future = start.future
        try:
            tried = start.own and starter.begin(start)
            if tried:
                await park(future)
            if not is_resolved(future):
                await starter.store(start, tried=tried)
                return await future.wait()
            return take(future)
        finally:
            self._core.futures.release(future)

    async def start(
        self, capability: str, message: Message, *, not_before: datetime | None = None
    ) -> Future:
        """Store one task on the broker and return its `Future`.

        Returns once the broker has confirmed the store; no worker need be up. Blank ``id``,
        ``created_at``, ``submitted_at`` and ``submitted_by`` are filled in a copy. A message that
        has an ``id`` names one task, whatever the capability: if it is known to the broker (within
        two minutes, or once its result is stored) it is not run again, and its one result is what
        the future gives. During an outage this waits; the caller's scope is the deadline. If
        cancelled, the task may or may not be stored; calling again with the same ``id`` is safe.

        Args:
          capability: 1 to 64 of ``A-Z a-z 0-9 _ -``, for example ``"coder"``.
          message: What to send. Encoded, it must fit the server's payload limit.
          not_before: Aware. The broker keeps the task until then, by its own clock, and no worker
            gets it. A time that has passed is now.

        Returns:
          A future whose ``wait`` gives the stored `Result`, any number of times.

        Raises:
          InvalidCapabilityError: if ``capability`` has another form; nothing was sent.
          InvalidMessageError: if ``message`` fails validation; nothing was sent.
          TypeError, ValueError: if ``not_before`` is no time, or has no time zone.
          BrokerError: if the server is lost for good, or refuses for good; with ``not_before``, if
            it is older than 2.12.
          ClosedError: if this dispatcher is closed.
        """
        self._core.check_open()
        start = self._starter.prepare(capability, message, not_before=not_before)
        stored = False
        try:
            # JetStream's publish acknowledgement, and its header Nats-Msg-Id.
            await self._starter.store(start)
            stored = True
        finally:
            if not stored:
                self._core.futures.release(start.future)
        return start.future

    async def schedule(
        self,
        name: str,
        capability: str,
        message: Message,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
    ) -> None:
        """Have the broker start a task again and again: nothing has to stay running.

        Each task has an ID of its own, ``<name>-<milliseconds since 1970>``: `attach` gives its
        future. Registering the same again, from any process, changes nothing; anything else
        replaces what has the name, whatever its capability.

        Args:
          name: 1 to 64 of ``A-Z a-z 0-9 _ -``, for example ``"nightly-report"``.
          capability: As for `start`.
          message: What to send, without an ``id``.
          cron: Six fields, in UTC: second, minute, hour, day of the month, month, day of the week.
            ``"0 30 6 * * mon-fri"`` is half past six on weekdays.
          every: Seconds, or a timedelta: whole seconds, at least one.

        Raises:
          InvalidCapabilityError, InvalidMessageError, TypeError, ValueError: if an argument has
            another form; nothing was sent.
          BrokerError: if the server is lost for good, refuses, or is older than 2.14.
          ClosedError: if this dispatcher is closed.
        """
        self._core.check_open()
        plan = make_plan(name, capability, message, cron, every, self._starter.fill)
        # JetStream's message schedules: the header Nats-Schedule.
        await self._core.outbox.timetable.put(plan)

    async def unschedule(self, name: str) -> bool:
        """End a schedule; tasks that it has started stay. Returns whether there was one."""
        self._core.check_open()
        return await self._core.outbox.timetable.drop(check_name(name))

    async def schedules(self) -> list[Schedule]:
        """All that are registered, by anybody, in the order of their names."""
        self._core.check_open()
        return read_plans(await self._core.outbox.timetable.plans())

    async def attach(self, task_id: str) -> Future:
        """Hold the result of a task that was started elsewhere, or before a restart.

        The future resolves at once if the result is stored, else when it comes. Nobody checks that
        there is such a task: the future of a task that never existed never resolves.

        Args:
          task_id: 1 to 128 of ``A-Z a-z 0-9 _ -``: the `Future.id` of whoever started it.

        Raises:
          InvalidMessageError: if ``task_id`` has another form.
          BrokerError: if the server is lost for good, or refuses.
          ClosedError: if this dispatcher is closed.
        """
        self._core.check_open()
        check_task_id(task_id)
        future = self._core.futures.hold(task_id, None, attached=True)
        found = False
        try:
            self._core.futures.expect(future)
            await self._core.futures.look_up(future)
            found = True
        finally:
            if not found:
                self._core.futures.release(future)
        return future

    def forget(self, future: Future) -> None:
        """Stop holding the result of ``future``: nobody will wait for it here.

        The task goes on. Call this once for each `start` or `attach` that gave the future; when
        nobody holds it any more, and it has no result, its waiters get `ClosedError`.
        """
        self._core.futures.forget(future)

    def open_group(
        self,
        *,
        parent: Message | None = None,
        on_failure: OnFailure = "cancel",
        grace: float = 5.0,
        orphans: Orphans = "finish",
    ) -> AbstractAsyncContextManager[TaskGroup]:
        """A nursery whose tasks run elsewhere: leaving the block waits for all of them.

        A result that is not a success cancels the other tasks, in the queue and at their workers,
        and the block. What the block raises, or what cancels it (a deadline, a sibling), cancels
        the tasks as well. Either leaves the block as it leaves a nursery: in an ``ExceptionGroup``,
        even one alone. Tasks that were cancelled here are no failures.

        Args:
          parent: In a handler, the message of its task: its IDs go into the blank ``parent``,
            ``root`` and ``correlation_id`` of the group's tasks.
          on_failure: ``"collect"`` lets the others go on, and raises nothing of a result.
          grace: Seconds that the clean-up of cancelled handlers is waited for, once they were told;
            see `Future.state`. Telling them takes five seconds at most.
          orphans: What becomes of the tasks if this program dies: ``"cancel"`` has the group renew
            a lease, and its tasks are cancelled where they are once that has lapsed, half a minute
            after the last renewal.

        Raises:
          ExceptionGroup: of `TaskFailedError`, `TaskTimeoutError`, and what the block raised; of
            `ClosedError` or `BrokerError`, if the dispatcher was closed, or lost its server for
            good, while tasks were outstanding, whatever ``on_failure`` says.
          ClosedError: if this dispatcher is closed.
          BrokerError: if the server gives no lease.
        """
        return self._open_group(TaskGroup._create, parent, on_failure, grace, orphans)

    def map(
        self,
        capability: str,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        limit: int = 100,
        ordered: bool = False,
        parent: Message | None = None,
        grace: float = 5.0,
        orphans: Orphans = "finish",
    ) -> AbstractAsyncContextManager[AsyncIterator[Result]]:
        """Start a task for each message, and iterate over the results as they come.

        A task of the block's own takes the messages, never more than ``limit`` ahead of the results
        that were read: so many tasks at most are outstanding, or finished and not read. A failure
        is a reply, as in `run`. Leaving the block cancels what is outstanding, in the queue and at
        the workers, and waits for the clean-up, as a group does; the block's own exception leaves
        it as it was raised. An async generator is closed then.

        What ``messages`` raises, and what `start` raises for one of them, is raised to the reader
        where the next result would come, or out of the block if nobody reads it; no message is
        taken after it. Several tasks may read: each result goes to one of them. Reading raises
        `ClosedError` after the block was left. If the dispatcher is closed, or loses its server for
        good, while tasks are outstanding, the block raises what `Future.wait` does, in the end.

        Args:
          capability: 1 to 64 of ``A-Z a-z 0-9 _ -``, for example ``"coder"``.
          messages: May be endless.
          limit: From 1 up.
          ordered: Results in the order of the messages; else in that of completion.
          parent, grace, orphans: As for `open_group`.

        Raises:
          InvalidCapabilityError: if ``capability`` has another form.
          ClosedError: if this dispatcher is closed.
          What `start` and `Future.wait` raise, to the reader.
        """
        check_capability(capability)
        check_messages(messages)
        check_count("limit", limit)
        opening = self._open_group(_as_is, parent, "collect", grace, orphans)
        return open_map(opening, capability, messages, limit, ordered=ordered)

    def statistics(self) -> DispatcherStatistics:
        """Counts at this moment."""
        return self._core.statistics()

    async def shutdown(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the deadline's name
        """Take no new work, and wait for the outstanding futures.

        Args:
          timeout: Seconds; below 0 is 0. What is outstanding then is aborted, as by `aclose`, which
            takes its own time.

        Raises:
          trio.TooSlowError: if something was aborted. Also closed if cancelled.
        """
        self._check_own()
        await self._core.shutdown(check_timeout(timeout))

    async def aclose(self) -> None:
        """Take no new work, and abort what is outstanding: its waiters get `ClosedError`.

        Tasks that were started one by one go on. Those of open groups and maps are cancelled first,
        and this waits for their handlers' clean-up: for the group's ``grace``, and five seconds
        that telling may take. Their block then raises `ClosedError`. Also closed if cancelled.
        """
        self._check_own()
        await self._core.close()
        await trio.lowlevel.checkpoint()

    def _open_group(
        self,
        show: Callable[[GroupTasks], T],
        parent: Message | None,
        on_failure: OnFailure,
        grace: float,
        orphans: Orphans,
    ) -> AbstractAsyncContextManager[T]:
        self._core.check_open()
        if orphans not in ("finish", "cancel"):
            raise ValueError(f"orphans must be 'finish' or 'cancel', not {shorten(orphans)}")
        if on_failure not in ("cancel", "collect"):
            raise ValueError(f"on_failure must be 'cancel' or 'collect', not {shorten(on_failure)}")
        group_id = self._core.make_id("group-")
        parent = self._parent if parent is None else parent
        grace = check_timeout(grace, "grace")
        return open_group(
            show, self._core, self._starter, group_id, parent, on_failure, grace, orphans
        )

    def _check_own(self) -> None:
        if self._parent is not None:
            raise RuntimeError(
                "this dispatcher is the worker's, which closes it once its handlers have ended; "
                "nothing is to be closed here"
            )


def _as_is(tasks: GroupTasks) -> GroupTasks:
    return tasks


def below(dispatcher: Dispatcher, message: Message) -> Dispatcher:
    """A view of a worker's dispatcher for the task ``message``: see `CurrentTask.dispatcher`."""
    return Dispatcher._create(dispatcher._core, message)


@asynccontextmanager
async def host_dispatcher(broker: Broker, name: str) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher on an open broker; leaving the block is its `aclose`."""
    key = make_key()
    async with open_flat_nursery() as asking:
        cores: list[Core] = []

        def make_listener(outbox: Outbox) -> ResultListener:
            cores.append(Core(name, key, outbox, asking))
            return cores[0].futures

        async with broker.open_outbox(key, make_listener):
            [core] = cores
            try:
                yield Dispatcher._create(core)
            finally:
                await core.close()  # noqa: ASYNC102 - it has a shield
                core.futures.asking = None
                asking.cancel_scope.cancel()
