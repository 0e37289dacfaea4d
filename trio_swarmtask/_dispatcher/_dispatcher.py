# The dispatcher: what users call to start tasks, one by one, as a group, later, again and again.

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Protocol, final

from .._check import check_capability, check_count, check_task_id, check_timeout
from .._schedule import Schedule, check_name, make_plan, read_plans
from .._util import NoPublicConstructor, open_flat_nursery, shorten
from ._core import DispatcherBase
from ._group import Orphans, open_group
from ._map import _check_messages, _open_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable
    from datetime import datetime, timedelta

    from .._abc import Broker
    from .._message import Message, Result
    from ._future import Future
    from ._group import OnFailure, TaskGroup


class _OpensGroups(Protocol):
    def open_group(
        self, *, parent: Message | None, on_failure: OnFailure, grace: float, orphans: Orphans
    ) -> AbstractAsyncContextManager[TaskGroup]: ...


class CanMap:
    """A dispatcher, as far as it starts many tasks in a row."""

    def map(
        self: _OpensGroups,
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
        as one more result would come, and nothing is taken after it; if it was not read, out of
        the block. Several tasks may read: each result goes to one of them. Reading raises
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
        _check_messages(messages)
        check_count("limit", limit)
        opening = self.open_group(parent=parent, on_failure="collect", grace=grace, orphans=orphans)
        return _open_map(opening, capability, messages, limit, ordered=ordered)


@final
class Dispatcher(DispatcherBase, CanMap, metaclass=NoPublicConstructor):
    """Starts tasks and holds their futures. Made by `open_dispatcher`.

    Safe to use from any number of tasks of one Trio run.
    """

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
        self._check_open()
        starter = self._starter
        start = starter.prepare(capability, message)
        future = start.future
        try:
            tried = start.own and starter.begin(start)
            if tried:
                await future._park()
            if not future._is_resolved():
                await starter.store(start, tried=tried)
                return await future.wait()
            return future._take()
        finally:
            self._futures.release(future)

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
        # JetStream's publish acknowledgement, and its header Nats-Msg-Id.
        self._check_open()
        start = self._starter.prepare(capability, message, not_before=not_before)
        stored = False
        try:
            await self._starter.store(start)
            stored = True
        finally:
            if not stored:
                self._futures.release(start.future)
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
        # JetStream's message schedules: the header Nats-Schedule.
        self._check_open()
        plan = make_plan(name, capability, message, cron, every, self._starter.fill)
        await self._outbox.timetable.put(plan)

    async def unschedule(self, name: str) -> bool:
        """End a schedule; tasks that it has started stay. Returns whether there was one."""
        self._check_open()
        return await self._outbox.timetable.drop(check_name(name))

    async def schedules(self) -> list[Schedule]:
        """All that are registered, by anybody, in the order of their names."""
        self._check_open()
        return read_plans(await self._outbox.timetable.plans())

    async def attach(self, task_id: str) -> Future:
        """Hold the result of a task that was started elsewhere, or before a restart.

        The future resolves at once if the result is stored, else when it comes. That there is such
        a task is not looked at: one that never was does not end.

        Args:
          task_id: 1 to 128 of ``A-Z a-z 0-9 _ -``: the `Future.id` of whoever started it.

        Raises:
          InvalidMessageError: if ``task_id`` has another form.
          BrokerError: if the server is lost for good, or refuses.
          ClosedError: if this dispatcher is closed.
        """
        self._check_open()
        check_task_id(task_id)
        future = self._futures.hold(task_id, None, attached=True)
        found = False
        try:
            self._futures.expect(future)
            await self._futures.look_up(future)
            found = True
        finally:
            if not found:
                self._futures.release(future)
        return future

    def forget(self, future: Future) -> None:
        """Hold the result of ``future`` no longer: nobody will wait for it here.

        The task goes on. Once for each `start` or `attach` that gave the future; when it is held
        no more, and has no result, its waiters get `ClosedError`.
        """
        self._futures.forget(future)

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
          BrokerError: if there can be no lease.
        """
        self._check_open()
        if orphans not in ("finish", "cancel"):
            raise ValueError(f"orphans must be 'finish' or 'cancel', not {shorten(orphans)}")
        if on_failure not in ("cancel", "collect"):
            raise ValueError(f"on_failure must be 'cancel' or 'collect', not {shorten(on_failure)}")
        group_id = self._starter.make_id("group-")
        parent = self._parent if parent is None else parent
        grace = check_timeout(grace, "grace")
        return open_group(self, group_id, parent, on_failure, grace, orphans)

    def _below(self, message: Message) -> Dispatcher:
        """This one, for the task that ``message`` is: see `CurrentTask.dispatcher`."""
        view = copy(self)
        view._host = self
        view._parent = message
        view._starter = self._starter.below(message)
        return view


@asynccontextmanager
async def host_dispatcher(broker: Broker, name: str) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher on an open broker; leaving the block is its `aclose`."""
    dispatcher = Dispatcher._create(name)
    futures = dispatcher._futures
    async with (
        broker.open_outbox(dispatcher._key, futures) as outbox,
        open_flat_nursery() as futures.asking,
    ):
        dispatcher._outbox = futures.outbox = dispatcher._starter.outbox = outbox
        try:
            yield dispatcher
        finally:
            await dispatcher._close()  # noqa: ASYNC102 - it has a shield
            futures.asking.cancel_scope.cancel()
            futures.asking = None
