# Cancelling many tasks of one dispatcher together: a group's.
#
# The steps are those of a single cancellation, and so is their order (`_cancel.py`), but each is
# taken for all tasks at once: all results are stored, then all workers told, then the durable asked
# how far it has come. Nothing is searched for: a task's receipt says where it is. No other task has
# its ID, because this dispatcher made the ID, and the server took the task as new at the first try.
#
# Tasks that the durable has not delivered are taken out of the queue at once. It can't tell of
# tasks that are older than itself; of those, and of tasks that it has delivered, the worker tells
# that has them, or that gets them now. Those that are still in the queue after that are taken out
# in the end.
#
# A task with which anything is unusual (it has a result, there was no answer, a refusal) is left to
# the single cancellation, which knows what to do, or what to say.

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .._check import Malformed
from .._errors import BrokerError
from ._answers import read_ack, read_answer
from ._api import NO_ANSWER_YET, Publish, next_message
from ._cancel import ANSWER_SECONDS, Answers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._abc import Withdrawal
    from .._nats._error_lines import Refusal
    from .._nats._protocol import Incoming
    from .._nats._requests import Requests
    from ._cancel import Delivered
    from ._results import ResultStore

# Requests of one kind on their way at once: a server where 10,000 requests wait takes no more.
_AT_ONCE: Final = 500


class Cancellations:
    """Takes tasks out of their queues and out of their workers' hands."""

    def __init__(
        self,
        requests: Requests,
        results: ResultStore,
        delivered: Delivered,
        withdrawals: Sequence[Withdrawal],
    ) -> None:
        self.requests = requests
        self.delivered = delivered
        self._results = results
        self._missing = dict.fromkeys(withdrawals)  # those that are not finished

    async def withdraw(self, grace: float) -> None:
        """As `Outbox.withdraw_many`; what is missing then is left to `leave_rest`."""
        queues: dict[tuple[str, str], list[_Task]] = {}
        withdrawals = list(self._missing)
        for begin in range(0, len(withdrawals), _AT_ONCE):
            for task in await self._store_results(withdrawals[begin : begin + _AT_ONCE]):
                queues.setdefault((task.stream, task.withdrawal.capability), []).append(task)
        async with trio.open_nursery() as nursery:
            for (stream, capability), tasks in queues.items():
                queue = _Queue(self, stream, capability, tasks)
                nursery.start_soon(queue.withdraw, grace)

    def leave(self, withdrawal: Withdrawal) -> None:
        """Leave it to the single cancellation."""
        if withdrawal in self._missing:
            del self._missing[withdrawal]
            withdrawal.left()

    def leave_rest(self) -> None:
        for withdrawal in list(self._missing):
            self.leave(withdrawal)

    def close(self) -> None:
        """Tell no more: an answer may come that nobody waits for."""
        self._missing.clear()

    def end(self, withdrawal: Withdrawal) -> None:
        """Everything was done, and said."""
        del self._missing[withdrawal]

    async def _store_results(self, withdrawals: Sequence[Withdrawal]) -> list[_Task]:
        tasks: list[_Task] = []
        answers = _AnswerCount()

        def on_end(withdrawal: Withdrawal, place: tuple[str, int], stored: bool) -> None:
            if stored:
                withdrawal.stored()  # tells whoever waits for it
                tasks.append(_Task(withdrawal, *place))
            else:
                self.leave(withdrawal)
            answers.arrive()

        for withdrawal in withdrawals:
            place = _find_place(withdrawal.receipt)
            if place is not None:
                result = _Result(partial(on_end, withdrawal, place))
                if self._results.put_soon(
                    withdrawal.task_id, withdrawal.result, result, checked=True
                ):
                    answers.expected += 1
                    continue
            self.leave(withdrawal)
        await answers.wait()
        return tasks


class _AnswerCount:
    """Waits for as many answers as are expected."""

    def __init__(self) -> None:
        self.expected = 0
        self._here = 0
        self._all_here = trio.Event()

    def arrive(self) -> None:
        self._here += 1
        if self._here == self.expected:
            self._all_here.set()

    async def wait(self) -> None:
        """To be called once, when all were asked for."""
        if self._here < self.expected:
            self._all_here = trio.Event()
            await self._all_here.wait()


class _Result(Publish):
    """Stores the result of one task."""

    __slots__ = ("_on_end",)

    def __init__(self, on_end: Callable[[bool], None]) -> None:
        self._on_end = on_end

    def on_end(self, *, stored: bool, duplicate: bool = False, receipt: bytes = b"") -> None:
        self._on_end(stored)


class _Task:
    """A task whose result is stored."""

    def __init__(self, withdrawal: Withdrawal, stream: str, seq: int) -> None:
        self.withdrawal = withdrawal
        self.stream = stream
        self.seq = seq
        self.answers = Answers()
        self.is_out = False  # of the queue


class _Queue:
    """The tasks of one queue."""

    def __init__(
        self, together: Cancellations, stream: str, capability: str, tasks: list[_Task]
    ) -> None:
        self._together = together
        self._requests = together.requests
        self._connection = together.requests.connection
        self._stream = stream
        self._capability = capability
        self._tasks = tasks
        self._pending = dict.fromkeys(tasks)  # those that are not finished
        self._waited = set(tasks)  # their workers have yet to say that they have ended
        self._none_waited = trio.Event()
        self._inboxes: list[str] = []  # for what the workers say
        self._is_refused = False

    async def withdraw(self, grace: float) -> None:
        try:
            with self._connection.listening(on_refused=self._on_refused):
                await self._withdraw(grace)
        except (*NO_ANSWER_YET, BrokerError):
            for task in list(self._pending):
                self._leave(task)
        finally:
            for inbox in self._inboxes:
                self._requests.close_inbox(inbox)

    async def _withdraw(self, grace: float) -> None:
        # The newest first: a worker whose handler is cancelled asks for another task. By then it
        # knows which of the tasks that waited for a place are not to be run.
        for task in sorted(self._tasks, key=_seq_of, reverse=True):
            inbox = self._requests.open_inbox(partial(self._on_answer, task))
            self._inboxes.append(inbox)
            push = f"cancel.{self._capability}.{task.withdrawal.task_id}"
            self._connection.publish(push, b"", inbox)
        fresh_from = await self._find_fresh()
        if self._is_refused:  # a refusal comes before the answer
            raise BrokerError("not permitted")
        never_ran = [task for task in self._tasks if task.seq >= fresh_from]
        await self._take_out(never_ran)
        for task in never_ran:
            if not task.answers.running:  # else its worker, in between, will say more
                self._waited.discard(task)
                self._end(task, True)
        with trio.move_on_after(grace):
            with trio.move_on_after(ANSWER_SECONDS):
                await self._wait_ended()
            self._waited = {task for task in self._waited if task.answers.running}
            await self._wait_ended()
        # Also tasks that have ended: one that is between two attempts waits in the queue.
        await self._take_out([task for task in self._pending if not task.is_out])
        for task in list(self._pending):
            self._end(task, task.answers.verdict())

    def _end(self, task: _Task, stopped: bool | None) -> None:
        del self._pending[task]
        task.withdrawal.stopped(stopped)
        if task.is_out or task.answers.verdict():
            self._together.end(task.withdrawal)
        else:  # the server refuses it, or there was no answer, or somebody else was faster
            self._together.leave(task.withdrawal)

    def _leave(self, task: _Task) -> None:
        del self._pending[task]
        self._together.leave(task.withdrawal)

    async def _find_fresh(self) -> float:
        """The sequence from which on nothing was ever delivered, for sure; else infinity."""
        progress = await self._together.delivered.find(self._stream, self._capability)
        waiting = [task.seq for task in self._tasks if progress and task.seq > progress.sequence]
        if progress is None or not waiting:
            return math.inf
        # The durable must be older than the first of them.
        pattern = f"work.{self._capability}.*"
        first = await next_message(self._requests, self._stream, pattern, min(waiting))
        return first.seq if first is not None and progress.is_short_of(first) else math.inf

    async def _take_out(self, tasks: Sequence[_Task]) -> None:
        """Take these out of the queue; `is_out` stays False if one was not there any more."""
        request = f"$JS.API.STREAM.MSG.DELETE.{self._stream}"
        for begin in range(0, len(tasks), _AT_ONCE):
            answers = _AnswerCount()
            for task in tasks[begin : begin + _AT_ONCE]:
                body = b'{"seq":%d,"no_erase":true}' % task.seq
                self._requests.tell(request, body, partial(self._on_deletion, task, answers))
                answers.expected += 1
            await answers.wait()

    def _on_deletion(self, task: _Task, answers: _AnswerCount, reply: Incoming | None) -> None:
        task.is_out = reply is not None and _is_success(reply)
        answers.arrive()

    def _on_answer(self, task: _Task, message: Incoming) -> None:
        task.answers.take(message)
        if task.answers.are_all():
            self._waited.discard(task)
            if not self._waited:
                self._none_waited.set()
        else:
            self._waited.add(task)  # another worker has it

    async def _wait_ended(self) -> None:
        if self._waited:
            self._none_waited = trio.Event()
            await self._none_waited.wait()

    def _on_refused(self, refusal: Refusal) -> None:
        own = f"cancel.{self._capability}."
        self._is_refused |= refusal.action == "publish" and refusal.subject.startswith(own)


def _seq_of(task: _Task) -> int:
    return task.seq


def _find_place(receipt: bytes) -> tuple[str, int] | None:
    """The stream and the sequence that a receipt tells, or None."""
    if not receipt:
        return None
    ack = read_ack(receipt)
    return ack.stream, ack.seq


def _is_success(reply: Incoming) -> bool:
    """Whether the server has deleted a message."""
    try:
        return bool(read_answer("STREAM.MSG.DELETE.", {}, reply.data).get("success"))
    except Malformed:  # or it has no stream of that name
        return False
