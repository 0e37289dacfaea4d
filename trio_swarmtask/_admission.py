# What a worker does with a delivery before it calls the handler: read it, and see that it is to be
# run at all.
#
# A message that gives `max_attempts` bounds the calls of handlers, those that ended by the death of
# their worker too. A dead worker can't answer, so whoever gets the task after the last attempt
# does.

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from ._errors import BrokerError, InvalidMessageError, UnsupportedVersionError
from ._handler import failed_result, fill_result
from ._names import check_task_id, is_task_id, shorten
from ._wire import Message, Result

if TYPE_CHECKING:
    from ._broker import Delivery
    from ._job import Job
    from ._observer import Observers

logger: Final = logging.getLogger("trio_swarmtask.worker")

# Seconds before a task that can't be run now is offered again: long enough not to spin, short
# enough for a newer worker that has just come up.
NEWER_WORKER_DELAY: Final = 15.0

# Seconds that are waited for in place: clocks differ by as much.
_SHORT_REST: Final = 0.1


class Admission:
    """Decides which deliveries a worker runs."""

    def __init__(
        self,
        name: str,
        max_deliveries: int,
        stopping: trio.Event,
        observers: Observers,
    ) -> None:
        self._name = name
        self._max_deliveries = max_deliveries
        self._stopping = stopping
        self._observers = observers

    def admit_soon(self, job: Job) -> Message | None:
        """As `admit`, of a delivery that has nothing to look up; None: `admit` is to decide."""
        delivery = job.delivery
        if (
            delivery.again
            or delivery.number > 1
            or delivery.lease
            or delivery.deadline < math.inf
            or job.interrupted
            or job.lost
            or self._stopping.is_set()
        ):
            return None
        try:
            return _read(delivery)
        except (InvalidMessageError, UnsupportedVersionError):
            return None

    async def admit(self, job: Job) -> Message | None:
        """The message to handle; None if the delivery was settled in another way."""
        delivery = job.delivery
        if self._stopping.is_set() or job.interrupted or job.lost:
            return None  # it was under way when the pulls were ended: given back
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
            job.settled = await delivery.give_back(seconds)
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
        if delivery.lease and not await self._look_at_lease(job):
            return None
        if delivery.deadline < math.inf and delivery.deadline <= trio.current_time():
            # A clock that was set must not keep the tasks of a whole queue from being run.
            try:
                await delivery.measure_deadline()
            except BrokerError as exc:  # then it has passed, as far as anybody knows
                told = (delivery.task_id, delivery.capability, exc)
                logger.warning("can't measure the deadline of task %s of %s: %s", *told)
        return message

    async def _look_at_lease(self, job: Job) -> bool:
        """See that the task is not run without its lease; False if it was put off.

        Anybody may write one into a task. So whatever comes of the look concerns that task alone.
        """
        told = (job.delivery.task_id, job.delivery.capability)
        job.started = trio.current_time()
        try:
            leased = await job.delivery.is_leased()
        except BrokerError as exc:
            logger.error("task %s of %s has failed: its lease can't be looked up: %s", *told, exc)
            job.result = failed_result("its worker can't look up the lease of its group")
            return True
        if leased is None:
            logger.warning("put off task %s of %s: its lease can't be looked up now", *told)
            await self._put_off(job)
            return False
        job.cancelled |= not leased
        return True

    async def _has_ended(self, job: Job) -> bool:
        # Before a burial: what has a result is no dead letter, however often it was delivered.
        if job.delivery.again and await job.delivery.is_done():
            job.end = "superseded"
            job.settled = True
        return job.settled

    async def _leave(self, job: Job, exc: UnsupportedVersionError) -> None:
        delivery = job.delivery
        told = (delivery.task_id, delivery.capability, exc)
        logger.warning("left task %s of %s for newer workers: %s", *told)
        await self._put_off(job)

    async def _put_off(self, job: Job) -> None:
        job.settled = await job.delivery.give_back(NEWER_WORKER_DELAY)

    async def _is_rested(self, job: Job) -> bool:
        """Whether the pause before this attempt is over; else the task is put off."""
        seconds = await job.delivery.rests_for()
        if seconds > _SHORT_REST:
            job.settled = await job.delivery.give_back(seconds)
            return False
        await trio.sleep(max(0.0, seconds))
        return True

    async def _is_poison(self, delivery: Delivery) -> bool:
        # Deployments and shutdowns are not the task's fault, and retries are its sender's affair.
        # They are looked up only here.
        failures = delivery.number - await delivery.count_given_back()
        if failures > self._max_deliveries:
            failures -= await delivery.count_retries()
        return failures > self._max_deliveries

    async def _bury(self, job: Job, reason: str) -> None:
        delivery = job.delivery
        if job.has_lost_lease():
            return  # whoever has it by now does this
        told = (shorten(delivery.task_id), delivery.capability, reason)
        logger.error("task %s of %s is a dead letter: %s", *told)
        result: bytes | None = None
        if is_task_id(delivery.task_id):  # or there is no subject that a result could go to
            result = fill_result(
                failed_result(f"dead letter: {reason}"),
                task_id=delivery.task_id,
                correlation_id="",
                agent=self._name,
                attempt=delivery.number,
                seconds=0,
            ).encode()
        first = await delivery.bury(reason, result)
        job.end = "dead_letters"
        job.settled = True
        if first and result is not None:
            self._observers.bury(delivery.task_id, result)


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
