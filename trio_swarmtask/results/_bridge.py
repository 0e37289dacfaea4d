# From tasks to results: publishes what becomes of a worker's tasks.
#
# Announcing never holds up the task: it runs in a Trio task of its own, for a limited time, and a
# failure to announce is logged. Of the reports of a handler the newest goes out, as soon as the
# publisher is done with the one before. A task ends with its first stored result, so nobody reads
# here what the task's dispatcher does not get. A worker that dies right after storing a result has
# not announced it; whoever must know asks the dispatcher.

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import msgspec
import trio

from .._memory._broker import MemoryBroker
from .._message import Message, Result as TaskResult
from .._util import get_logger, is_for_trio, shorten
from .._worker._observers import Observer
from .._worker._worker import Worker, broker_of, observe
from ._errors import InvalidResultError, ResultExistsError
from ._on_bus import BusPublisher, announces_as_workers_do
from ._publisher import ResultPublisher
from ._types import Result, ResultStatus, copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._sync import LossyBuffer
    from .._worker._observers import Ending

logger: Final = get_logger("trio_swarmtask.results")

# Seconds that one announcement may take. During an outage the task itself goes on.
_SECONDS: Final = 5.0


def publish_results(worker: Worker, publisher: ResultPublisher) -> None:
    """Announce the tasks of ``worker`` with ``publisher``, from now on.

    The start of a handler is published as ``pending``, under the task's ID; the task's stored
    result as ``success`` or ``failed`` (a timeout is a failure whose error says so), with its
    outputs as JSON. ``metadata`` holds ``agent``, ``attempt``, and at the end ``duration`` (whole
    milliseconds). A task that is given back stays ``pending``. Outputs that are too large for the
    publisher are left out, and ``metadata["omitted"]`` says so.

    What a handler reports (`CurrentTask.report`) is published as ``pending`` too: with a slow
    publisher the newest report only. Not so with a `BusPublisher` for ``results`` on a server,
    where the worker itself sends its handlers' reports: they would be announced twice.

    A publisher that takes more than five seconds, or fails, keeps no task from being done: that is
    logged. Close the publisher after the worker.
    """
    if not isinstance(worker, Worker):
        raise TypeError(f"{shorten(worker)} is not a Worker; from a dispatcher use as_result")
    if not isinstance(publisher, ResultPublisher):
        raise TypeError(f"{shorten(publisher)} is not a ResultPublisher")
    reports = not (
        isinstance(publisher, BusPublisher)
        and announces_as_workers_do(publisher)
        and not isinstance(broker_of(worker), MemoryBroker)
    )
    observe(worker, _Announcer(publisher, reports=reports))


def as_result(result: TaskResult) -> Result:
    """What a task's result is as one to publish: see `publish_results`."""
    metadata = {
        "agent": result.agent,
        "attempt": str(result.attempt),
        "duration": str(result.duration),
    }
    success = result.status == "success"
    return Result(
        task_id=result.id,
        status=ResultStatus.SUCCESS if success else ResultStatus.FAILED,
        output=b"" if result.outputs is None else msgspec.json.encode(result.outputs),
        error=result.error,
        metadata=metadata,
    )


@final
class _Announcer(Observer):
    def __init__(self, publisher: ResultPublisher, *, reports: bool) -> None:
        self._publisher = publisher
        self._reports = reports

    async def follow_task(self, message: Message, agent: str, attempt: int, end: Ending) -> None:
        metadata = {"agent": agent, "attempt": str(attempt)}
        begun = Result(status=ResultStatus.PENDING, metadata=metadata)
        reports = end.follow() if self._reports else None
        await self._announce(message.id, lambda: begun)
        if reports is not None:
            await self._pass_on(message.id, reports)
        result = await end.wait()
        if result is not None:
            await self.bury_task(message.id, result)

    async def _pass_on(self, task_id: str, reports: LossyBuffer[Result]) -> None:
        while True:
            try:
                report = await reports.get()
            except StopAsyncIteration:
                return
            await self._announce(task_id, partial(copy, report))

    async def bury_task(self, task_id: str, result: bytes) -> None:
        await self._announce(task_id, lambda: as_result(TaskResult.decode(result)))

    async def _announce(self, task_id: str, make: Callable[[], Result]) -> None:
        problem: Any = "the worker was closed, or it took too long"
        try:
            with trio.move_on_after(_SECONDS):
                await self._publish(task_id, make())
                problem = None
        except ResultExistsError:
            problem = None  # redelivered after its end was announced, which stands
        except BaseException as exc:  # noqa: ASYNC103 - a cancellation is raised again
            if is_for_trio(exc):
                raise
            problem = exc
        finally:
            if problem is not None:
                logger.error("could not announce task %s: %s", task_id, problem)

    async def _publish(self, task_id: str, result: Result) -> None:
        try:
            await self._publisher.publish(task_id, result)
        except InvalidResultError as exc:
            if not result.output:
                raise
            # Too large, once it is base64. Whoever follows the task must still hear of its end.
            metadata = {**(result.metadata or {}), "omitted": str(exc)}
            short = msgspec.structs.replace(result, output=b"", metadata=metadata)
            await self._publisher.publish(task_id, short)
