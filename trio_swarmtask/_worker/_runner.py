# What a worker does with a task: see whether it is to be run, call the handler, store what came of
# it. A handler's place is free as soon as the handler has ended; its result is stored while the
# next handler runs.
#
# A message's `max_attempts` bounds the calls of handlers, also those that ended by the death of
# their worker. A dead worker can't answer, so the worker that gets the task after the last attempt
# does.

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from .._check import check_task_id, is_task_id
from .._envelope import PAST_DEADLINE, Status
from .._errors import BrokerError, InvalidMessageError, SwarmTaskError, UnsupportedVersionError
from .._interrupts import unprotected
from .._message import Message, Result, cancelled_result
from .._statistics import OUTCOMES, Outcome, Tally
from .._util import get_logger, in_task, is_for_trio, leaves, shorten
from ._handler import Handler, Value, describe, encode_result, failed_result, fill_result
from ._job import CURRENT, Cut, end_reports

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._abc import Delivery
    from ._job import Job
    from ._observers import Observers
    from ._own_dispatcher import OwnDispatcher


logger: Final = get_logger("trio_swarmtask.worker")

# Seconds before a task that has met a fault is offered again: it may meet it once more.
_FAULT_DELAY: Final = 1.0

# Seconds before a task that can't be run now is offered again: long enough not to spin, short
# enough for a newer worker that has just come up.
NEWER_WORKER_DELAY: Final = 15.0

_NOT_OURS: Final = (Cut.BY_WORKER, Cut.LOST)
"""The task is not this worker's any more: nothing is looked up for it."""

# A rest of at most so many seconds is waited for in place: clocks differ by as much.
_SHORT_REST: Final = 0.1

# Seconds that a part of giving back may take once handlers were cancelled. Without a broker this
# ends the wait, and the leases lapse by themselves.
SETTLE_SECONDS: Final = 1.0


class Closing:
    """How far a worker is on its way out. Each step is taken once, in this order."""

    def __init__(self) -> None:
        self.stopping: trio.Event = trio.Event()  # no more tasks are to be asked for
        self.interrupting: trio.Event = trio.Event()  # handlers are to be cancelled, not waited for
        self.pulls_ended: trio.Event = trio.Event()  # no more tasks can arrive
        self.handlers_ended: trio.Event = trio.Event()
        self.finished: trio.Event = trio.Event()
        self.cause: BaseException | None = None  # leaves the worker's block
        self.cut = 0  # jobs that were cut short

    def interrupt(self, cause: BaseException | None = None) -> None:
        """Stop now: handlers are cancelled, and their tasks given back. The first cause counts."""
        if self.cause is None:
            self.cause = cause
        self.stopping.set()
        self.interrupting.set()


class JobRunner:
    """Runs the jobs of one worker."""

    def __init__(
        self,
        name: str,
        default_timeout: float,
        max_deliveries: int,
        closing: Closing,
        own_dispatcher: OwnDispatcher,
        observers: Observers,
        background: trio.Nursery,
    ) -> None:
        self.tally: Tally = Tally()
        self.observers = observers
        self.own_dispatcher = own_dispatcher
        self.background = background
        self.name = name
        self._default_timeout = default_timeout
        self._max_deliveries = max_deliveries
        self._closing = closing
        self._now = trio.lowlevel.current_clock().current_time  # saves two frames

    @unprotected
    async def handle(self, handler: Handler, job: Job) -> None:
        """Call ``handler``, in the job's scope, and keep what it gave as the job's result."""
        # All in one frame, because every task passes here.
        message = self._admit_soon(job)
        if message is None:
            try:
                message = await self._admit(job)
            except Exception as exc:  # noqa: BLE001 - the broker's refusal, or a bug: not to be passed over
                self._fault(job, exc)
        job.message = message
        if message is None or job.cut:
            return
        if self.observers.any:
            job.ending = self.observers.follow(message, self.name, job.delivery.number)
        if job.result is not None or not self._set_deadline(job, message):
            return  # it is not to be called
        CURRENT.set((self, job))
        try:
            job.call = handler(message)
            value = await job.call
            job.result = value if isinstance(value, Result) else Value(value)
        except BaseException as exc:  # noqa: ASYNC103 - a cancellation is raised again
            # The lane's scope takes cancellations out; what that leaves comes to `ended_by`.
            if is_for_trio(exc):
                raise
            assert job.scope is not None
            job.result = self.failure(job, exc, timed_out=job.scope.cancel_called)

    def settle_soon(self, job: Job, on_end: Callable[[Job, bool], None]) -> bool:
        """Begin `settle`, without waiting, if all that is left is to store the result.

        ``on_end`` is told whether it is stored: then `stored` is to be called, else `settle`.

        Returns:
          False if nothing was begun.
        """
        message, result = job.message, job.result
        if message is None or result is None or job.failure is not None:
            return False
        if job.current is not None:
            end_reports(job.current)
        try:
            job.encoded = self._encode(job, result, message)
        except InvalidMessageError:
            return False  # `settle` says why
        return job.delivery.complete_soon(job.encoded, partial(on_end, job))

    def stored(self, job: Job) -> None:
        """What `settle_soon` has begun is done."""
        assert job.result is not None
        self._end(job, job.result, first=True)

    async def settle(self, job: Job) -> None:
        """Store the job's result, or do what there is to do where it has none."""
        if job.current is not None:
            end_reports(job.current)
        try:
            await self._settle(job)
        except Exception as exc:  # noqa: BLE001 - the broker's refusal, or a bug: not to be passed over
            self._fault(job, exc)
        if job.outcome is None:
            await self.give_back(job)
        elif job.ending is not None:
            job.ending.tell(None)

    def _fault(self, job: Job, exc: Exception) -> None:
        """A refusal of the broker stops the worker; a bug of this library costs one delivery."""
        if isinstance(exc, SwarmTaskError):
            self._closing.interrupt(exc)
            return
        job.in_order = False
        which = (job.delivery.task_id, job.delivery.capability)
        logger.error("a fault of trio_swarmtask: task %s of %s is given back", *which, exc_info=exc)

    # What is left to do with a task once its handler has ended, or was not to be called. A task
    # that nothing is done with here is given back.
    #
    #   it gave             and was cut short   then
    #   a result            or not              it is stored; the first one counts
    #   a failure that is   but not cancelled   the task is put back, or it was the last attempt
    #     worth another                           and the failure is stored
    #   nothing             LOST                the task is let be: it is another worker's
    #   nothing             CANCELLED           the result is there; if not, this worker says so
    #   nothing             BY_WORKER           it is given back
    #   nothing             NOT                 its time was over: as for a failure, or a result

    async def _settle(self, job: Job) -> None:
        message, result = job.message, job.result
        if message is None or job.outcome is not None:
            await self._settle_unread(job)
            return
        match result, job.cut:
            case None, Cut.LOST:
                self._let_be(job)
            case None, Cut.CANCELLED:
                # No other result is sent, which would only be refused.
                result = cancelled_result(self.name, job.delivery.capability)
                if await job.delivery.is_done():
                    self._end(job, result, first=False)
                    return
            case None, Cut.NOT:
                error = f"the handler did not end within {job.timeout:.4g} seconds"
                if job.afterwards:
                    error += f", and raised: {job.afterwards}"
                result = timeout_result(error, job)
                if job.retry.timeouts and message.max_attempts > 1 and not job.by_senders_deadline:
                    job.failure = TimeoutError(error)
        if (
            job.failure is not None
            and job.cut is not Cut.CANCELLED
            and await self._retry(job, message)
        ):
            return
        if result is not None:
            await self._store(job, result, message)

    async def _settle_unread(self, job: Job) -> None:
        """No handler was to be called for the task."""
        cancelled = job.outcome is None and job.cut is Cut.CANCELLED
        if cancelled and is_task_id(job.delivery.task_id) and await job.delivery.is_done():
            job.end(Outcome.CANCELLED)

    # Admission

    def _admit_soon(self, job: Job) -> Message | None:
        """As `_admit`, if there is nothing to look up; None: `_admit` is to decide."""
        delivery = job.delivery
        if (
            delivery.maybe_redelivered
            or delivery.number > 1
            or delivery.group_lease
            or delivery.deadline < math.inf
            or job.cut in _NOT_OURS
            or self._closing.stopping.is_set()
        ):
            return None
        try:
            return _read(delivery)
        except (InvalidMessageError, UnsupportedVersionError):
            return None

    async def _admit(self, job: Job) -> Message | None:
        """The message to handle; None if the delivery was settled in another way."""
        delivery = job.delivery
        if self._closing.stopping.is_set() or job.cut in _NOT_OURS:
            return None  # it was under way when the pulls were ended: it is given back
        try:
            message = _read(delivery)
        except InvalidMessageError as exc:
            await self._bury(job, str(exc))
            return None
        except UnsupportedVersionError as exc:
            if not await self._has_ended(job):
                await self._leave(job, exc)
            return None
        if delivery.number > 1 and (seconds := await delivery.doubt()) > 0:
            await self._put_off(job, seconds)
            return None
        if await self._has_ended(job):
            return None
        if delivery.number > self._max_deliveries and await self._is_poison(delivery):
            await self._bury(job, f"delivered more than {self._max_deliveries} times")
            return None
        if message.max_attempts and delivery.number > 1:
            if not await self._is_rested(job):
                return None
            made = max(1, message.attempt) + delivery.number - 2
            made -= await delivery.count_given_back()
            if made >= message.max_attempts:
                job.result = _lost_at_work(made, message.max_attempts)
        if delivery.group_lease and not await self._look_at_group(job):
            return None
        if delivery.deadline < math.inf and delivery.deadline <= trio.current_time():
            # A clock that was set must not keep the tasks of a whole queue from being run.
            try:
                await delivery.measure_deadline()
            except BrokerError as exc:  # then it has passed, as far as anybody knows
                which = (delivery.task_id, delivery.capability, exc)
                logger.warning("can't measure the deadline of task %s of %s: %s", *which)
        return message

    async def _look_at_group(self, job: Job) -> bool:
        """Make sure that the task is not run without its group's lease; False if it was put off.

        Anybody may write a lease into a task. So whatever the look gives concerns that task alone.
        """
        which = (job.delivery.task_id, job.delivery.capability)
        job.started = trio.current_time()
        try:
            leased = await job.delivery.is_group_alive()
        except BrokerError as exc:
            logger.error("task %s of %s has failed: its lease can't be looked up: %s", *which, exc)
            job.result = failed_result("its worker can't look up the lease of its group")
            return True
        if leased is None:
            logger.warning("put off task %s of %s: its lease can't be looked up now", *which)
            await self._put_off(job, NEWER_WORKER_DELAY)
            return False
        if not leased:  # not by `cut_short`: this runs in its scope
            job.cut = max(job.cut, Cut.CANCELLED)
        return True

    async def _has_ended(self, job: Job) -> bool:
        # Asked before a burial: a task with a result is no dead letter, however often delivered.
        if job.delivery.maybe_redelivered and await job.delivery.is_done():
            job.end(Outcome.SUPERSEDED)
        return job.outcome is not None

    async def _leave(self, job: Job, exc: UnsupportedVersionError) -> None:
        delivery = job.delivery
        which = (delivery.task_id, delivery.capability, exc)
        logger.warning("left task %s of %s for newer workers: %s", *which)
        await self._put_off(job, NEWER_WORKER_DELAY)

    async def _put_off(self, job: Job, seconds: float) -> None:
        if await job.delivery.give_back(seconds):
            job.end(Outcome.GIVEN_BACK)

    async def _is_rested(self, job: Job) -> bool:
        """Whether the pause before this attempt is over; else the task is put off."""
        seconds = await job.delivery.rests_for()
        if seconds > _SHORT_REST:
            await self._put_off(job, seconds)
            return False
        await trio.sleep(max(0.0, seconds))
        return True

    async def _is_poison(self, delivery: Delivery) -> bool:
        # Deployments and shutdowns are not the task's fault, and its sender decides on retries.
        # The notes of both are looked up only here.
        failures = delivery.number - await delivery.count_given_back()
        if failures > self._max_deliveries:
            failures -= await delivery.count_retries()
        return failures > self._max_deliveries

    async def _bury(self, job: Job, reason: str) -> None:
        delivery = job.delivery
        if job.has_lost_lease():
            return  # whoever has it by now does this
        which = (shorten(delivery.task_id), delivery.capability, reason)
        logger.error("task %s of %s is a dead letter: %s", *which)
        result: bytes | None = None
        if is_task_id(delivery.task_id):  # or there is no subject that a result could go to
            result = fill_result(
                failed_result(f"dead letter: {reason}"),
                task_id=delivery.task_id,
                correlation_id="",
                agent=self.name,
                attempt=delivery.number,
                seconds=0,
            ).encode()
        first = await delivery.bury(reason, result)
        job.end(Outcome.DEAD_LETTERS)
        if first and result is not None:
            self.observers.bury(delivery.task_id, result)

    # The handler

    def _set_deadline(self, job: Job, message: Message) -> bool:
        """Set the deadline of the handler's scope; False if it has passed."""
        timeout = message.timeout if message.timeout > 0 else self._default_timeout
        job.started = self._now()
        if job.delivery.deadline < job.started + timeout:
            job.by_senders_deadline = True
            timeout = job.delivery.deadline - job.started
            if timeout <= 0:
                error = "its deadline had passed before it was started"
                job.result = timeout_result(error, job)
                return False
        if timeout < math.inf:  # setting one costs, and most have none
            assert job.scope is not None
            job.timeout = timeout
            job.scope.deadline = job.started + timeout
        return True

    # A handler may raise anything, and what it raises is its task's failure: a worker that ended by
    # it would be followed by the next one that gets the task. A group counts as what is in it. Only
    # an interrupt is not the task's: the program is to end, and the task was not given back in
    # order, so it counts as a failed delivery.

    def ended_by(self, job: Job, exc: BaseException, *, timed_out: bool) -> bool:
        """Take what a handler has raised, and the scope that it ran in has let out.

        Returns:
          False if it is not the handler's: the worker gives up waiting, or Trio has stopped.
        """
        if not in_task():
            return False  # what is left of a run that has crashed is thrown away
        interrupts = [leaf for leaf in leaves(exc) if isinstance(leaf, KeyboardInterrupt)]
        if interrupts:
            job.in_order = False
            job.cut_short(Cut.BY_WORKER)
            self._closing.interrupt(interrupts[0])
            return True
        if trio.current_effective_deadline() == -math.inf and is_for_trio(exc):
            return False
        job.result = self.failure(job, exc, timed_out=timed_out)
        return True

    def failure(self, job: Job, exc: BaseException, *, timed_out: bool) -> Result | None:
        """What an exception of the handler comes to; None if the cancellation was ours."""
        if job.cut or timed_out:
            # Its clean-up stumbled over the cancellation: that is not what ended the task.
            job.afterwards = describe(exc)
            which = (job.delivery.task_id, job.delivery.capability)
            logger.error(
                "the handler of task %s of %s failed as it was cancelled", *which, exc_info=exc
            )
            return None
        if job.message is not None and job.message.max_attempts > 1 and job.retry.is_worth(exc):
            job.failure = exc
        else:
            self._tell(job, exc)
        return failed_result(describe(exc))

    def _tell(self, job: Job, exc: BaseException) -> None:
        which = (job.delivery.task_id, job.delivery.capability)
        logger.error("the handler of task %s of %s failed", *which, exc_info=exc)

    async def _retry(self, job: Job, message: Message) -> bool:
        """Put the task back, or let it be if it is not ours; False: it gets no other attempt."""
        with trio.CancelScope() as job.needs_lease:
            if not job.has_lost_lease():
                return await self._put_back(job, message)
        self._let_be(job)
        return True

    async def _put_back(self, job: Job, message: Message) -> bool:
        delivery, exc = job.delivery, job.failure
        assert exc is not None
        attempts = max(1, message.attempt) - 1 + delivery.number
        if delivery.number > 1:
            attempts -= await delivery.count_given_back()
        delay = job.retry.delay(attempts, exc)
        again_at = trio.current_time() + delay
        if attempts >= message.max_attempts or again_at >= delivery.deadline:
            if job.result is not None:  # a timeout tells by itself
                self._tell(job, exc)
            return False
        logger.warning(
            "attempt %d of %d at task %s of %s has failed, the next is in %.3g seconds: %s",
            attempts,
            message.max_attempts,
            delivery.task_id,
            delivery.capability,
            delay,
            describe(exc),
        )
        if await job.delivery.retry(delay):  # a newer one may have come meanwhile
            job.end(Outcome.RETRIED)
            job.retry_at = again_at
        else:
            self._let_be(job)
        return True

    # After the handler

    async def _store(self, job: Job, result: Result | Value, message: Message) -> None:
        delivery = job.delivery
        try:
            if not job.encoded:
                job.encoded = self._encode(job, result, message)
            first = await delivery.complete(job.encoded)
        except InvalidMessageError as exc:
            logger.error(
                "the result of task %s of %s can't be stored: %s",
                delivery.task_id,
                delivery.capability,
                exc,
            )
            result = failed_result(str(exc))
            first = await self._store_failure(job, result, message)
        self._end(job, result, first=first)

    async def _store_failure(self, job: Job, result: Result, message: Message) -> bool:
        try:
            job.encoded = self._encode(job, result, message)
            return await job.delivery.complete(job.encoded)
        except InvalidMessageError:
            # All that is large in it now is the message's correlation ID, which is anybody's.
            message = msgspec.structs.replace(message, correlation_id="")
            job.encoded = self._encode(job, result, message)
            return await job.delivery.complete(job.encoded)

    def _encode(self, job: Job, result: Result | Value, message: Message) -> bytes:
        seconds = self._now() - job.started
        return encode_result(result, message, job.delivery.number, self.name, seconds)

    def _end(self, job: Job, result: Result | Value, *, first: bool) -> None:
        """The task has a result: ``result``, if that was the first."""
        if job.cut is Cut.CANCELLED:
            job.end(Outcome.CANCELLED)
        elif not first:
            job.end(Outcome.SUPERSEDED)
        else:
            status = Status.SUCCESS if isinstance(result, Value) else result.status
            job.end(OUTCOMES[status])
        if job.ending is not None:
            job.ending.tell(job.encoded if first else self._stored_by_others(job))

    def _stored_by_others(self, job: Job) -> bytes | None:
        if job.cut is not Cut.CANCELLED:
            return None  # whoever stored it tells
        assert job.message is not None
        result = cancelled_result(self.name, job.delivery.capability)
        return job.stored or self._encode(job, result, job.message)

    async def give_back(self, job: Job) -> None:
        """Give the task to others, if that is what is left to do; never raises.

        Shielded, or the task stays leased for all of ``ack_wait``; also if the time for this is
        over already, because another handler may have kept the thread to itself meanwhile.
        """
        if job.outcome is not None:
            return
        if job.ending is not None:
            job.ending.tell(None)
        if job.has_lost_lease():
            self._let_be(job)
            return
        if not self._closing.pulls_ended.is_set():  # else it comes straight in again
            with trio.move_on_after(SETTLE_SECONDS, shield=True):
                await self._closing.pulls_ended.wait()
        try:
            with trio.move_on_after(SETTLE_SECONDS, shield=True):
                delay = 0.0 if job.in_order else _FAULT_DELAY
                if not await job.delivery.give_back(delay, in_order=job.in_order):
                    self._let_be(job)
                    return
        except SwarmTaskError as exc:  # the broker is going away: the lease lapses by itself
            job.end(Outcome.LEASES_LOST)
            logger.warning("could not give back task %s: %s", job.delivery.task_id, exc)
        else:
            job.end(Outcome.GIVEN_BACK)

    def _let_be(self, job: Job) -> None:
        """The lease was lost, so the task is another worker's: do nothing with it."""
        job.end(Outcome.LEASES_LOST)
        logger.warning(
            "lost the lease of task %s of %s, and left it to another worker",
            job.delivery.task_id,
            job.delivery.capability,
        )


def timeout_result(error: str, job: Job) -> Result:
    """The handler was cut off, or not called, because its time was over."""
    metadata = {PAST_DEADLINE: "of whoever started the task"} if job.by_senders_deadline else {}
    return Result(status=Status.TIMEOUT, error=error, metadata=metadata)


def _lost_at_work(made: int, most: int) -> Result:
    result = failed_result(
        f"attempt {made} of {most} was the last, and was lost at work: its worker has died, or was "
        "cut off"
    )
    return msgspec.structs.replace(result, attempt=made)


def _read(delivery: Delivery) -> Message:
    check_task_id(delivery.task_id)
    message = Message.decode(delivery.data)
    if message.id != delivery.task_id:
        raise InvalidMessageError(
            f"the envelope names task {shorten(message.id)}, its subject task "
            f"{shorten(delivery.task_id)}"
        )
    return message
