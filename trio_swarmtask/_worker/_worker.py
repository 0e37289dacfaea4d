# The worker: takes tasks of its capabilities and runs a handler for each.
#
# A Trio task of the worker's own hosts the handlers' nursery, shielded from the block the worker
# was opened in, because a cancellation from outside must not reach the handlers before the broker
# has been told to send no more: a task given back while a pull is open comes straight in again. So
# the order of stopping is always: mark closed, end the pulls, let handlers finish or cancel them,
# give back what was cancelled. See `Closing`.

from __future__ import annotations

import contextvars
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import trio

from .._check import check_capability, check_count, check_timeout
from .._errors import ClosedError
from .._sync import Starting
from .._util import NoPublicConstructor, open_flat_nursery
from ._capability import Service
from ._handler import Handler, check_handler
from ._job import CURRENT, Cut
from ._observers import Observers
from ._own_dispatcher import OwnDispatcher
from ._retry import Retry, check_retry
from ._runner import SETTLE_SECONDS, Closing, JobRunner
from ._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .._abc import Broker, Intake
    from .._statistics import WorkerStatistics
    from ._observers import Observer


@final
class Worker(metaclass=NoPublicConstructor):
    """Runs handlers in a nursery of its own. Made by `open_worker`."""

    def __init__(
        self,
        broker: Broker,
        runner: JobRunner,
        closing: Closing,
        watchdog: Watchdog,
        handlers: trio.Nursery,
    ) -> None:
        self._broker = broker
        self._runner = runner
        self._closing = closing
        self._watchdog = watchdog
        self._handlers = handlers
        self._services: dict[str, Service | None] = {}
        self._entering: set[trio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"<Worker {self.name!r} of {', '.join(sorted(self._services)) or 'nothing'}>"

    @property
    def name(self) -> str:
        """The agent of its results."""
        return self._runner.name

    async def handle(
        self,
        capability: str,
        handler: Handler,
        *,
        max_in_flight: int = 100,
        retry: Retry | None = None,
    ) -> None:
        """Take tasks of ``capability`` and run ``handler`` for each, from now on.

        Returns once the consumer stands. Handlers run in the worker's nursery, each in a cancel
        scope of its own that ends at the message's timeout, with this call's context variables.

        Args:
          capability: 1 to 64 of ``A-Z a-z 0-9 _ -``, for example ``"coder"``.
          handler: An async function of one `Message`. What it returns becomes the result's
            ``outputs`` (anything that msgspec writes as JSON; None: no outputs), or is the `Result`
            itself; raising anything but ``KeyboardInterrupt`` gives a result
            that is ``failed``.
          max_in_flight: How many handlers of this capability may run at once. The worker asks for
            no more tasks than it has free places.
          retry: Which failures are worth another attempt, of a task whose message allows some by
            its ``max_attempts``. None: those that the handler asks for by `RetryTask`.

        Raises:
          InvalidCapabilityError: if ``capability`` has another form.
          TypeError: if ``handler`` is not async, ``max_in_flight`` no whole number, or ``retry``
            no `Retry`.
          ValueError: if this worker handles ``capability`` already, or ``max_in_flight`` < 1.
          BrokerError: if the server refuses the consumer, or has one that can't be used.
          ClosedError: if this worker is closed.
        """
        self._check_open()
        check_capability(capability)
        check_handler(handler)
        check_count("max_in_flight", max_in_flight)
        retry = check_retry(retry)
        if capability in self._services:
            raise ValueError(
                f"this worker handles {capability!r} already; open another worker for a second "
                "handler, or call both from one"
            )
        await self._start_serving(capability, handler, max_in_flight, retry)

    async def _start_serving(
        self, capability: str, handler: Handler, max_in_flight: int, retry: Retry
    ) -> None:
        entering = trio.CancelScope()
        starting: Starting[Service | Exception] = Starting()
        self._services[capability] = None  # taken, while the consumer is being set up
        try:
            # In the worker's nursery, because the consumer outlives this call.
            self._runner.background.start_soon(
                self._serve,
                capability,
                handler,
                max_in_flight,
                retry,
                contextvars.copy_context(),
                entering,
                starting,
            )
            service = await starting.wait()
            if isinstance(service, Exception):
                raise service
        except BaseException:
            entering.cancel()  # nobody would know that it is handled
            del self._services[capability]
            raise
        if not self._closing.stopping.is_set():
            service.intake.ask(max_in_flight)

    async def shutdown(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the deadline's name
        """Ask for no more tasks, and wait for the running handlers.

        Args:
          timeout: Seconds; below 0 is 0. Handlers that still run then are cancelled, and their
            tasks given back to the queue at once. So too if this call is cancelled.

        Raises:
          trio.TooSlowError: if a handler was cancelled.
          RuntimeError: if a handler of this worker calls it: it would wait for itself.
        """
        self._check_outside("shutdown")
        timeout = check_timeout(timeout)
        if self._closing.finished.is_set():
            await trio.lowlevel.checkpoint()
        elif await self._close(timeout):
            raise trio.TooSlowError(f"handlers were still running after {timeout} seconds")

    async def aclose(self) -> None:
        """Ask for no more tasks, and wait for the running handlers, as long as they take.

        If cancelled, the handlers are cancelled too, and their tasks given back.

        Raises:
          RuntimeError: if a handler of this worker calls it: it would wait for itself.
        """
        self._check_outside("aclose")
        await self._close(math.inf)

    def statistics(self) -> WorkerStatistics:
        """Counts at this moment."""
        in_flight = sum(len(service.jobs) for service in self._standing())
        return self._runner.tally.snapshot(len(self._services), in_flight)

    def _check_open(self) -> None:
        if self._closing.stopping.is_set():
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError("the worker is closed; open another one to handle tasks")

    def _check_outside(self, call: str) -> None:
        """Raise RuntimeError if the caller is a task that the worker waits for when it closes."""
        awaited = (self._handlers, self._runner.observers.nursery, self._runner.background)
        task, root = trio.lowlevel.current_task(), trio.lowlevel.current_root_task()
        while (nursery := task.parent_nursery) not in awaited:
            if nursery is None or nursery.parent_task is root:
                # A thread's own task in Trio has no other parent, but has the handler's context.
                runner, job = task.context.get(CURRENT, (None, None))
                if runner is not self._runner or job is None or job.scope is None:
                    return
                break
            task = nursery.parent_task
        raise RuntimeError(
            f"{call} of worker {self.name!r} was called in one of its own handlers, which it "
            "would wait for: close it from outside, for example by "
            "nursery.start_soon(worker.aclose), with a nursery that was opened before the worker"
        )

    def _standing(self) -> list[Service]:
        return [service for service in self._services.values() if service is not None]

    async def _serve(
        self,
        capability: str,
        handler: Handler,
        max_in_flight: int,
        retry: Retry,
        context: contextvars.Context,
        entering: trio.CancelScope,
        starting: Starting[Service | Exception],
    ) -> None:
        services: list[Service] = []

        def make_service(intake: Intake) -> Service:
            services.append(
                Service(
                    intake,
                    self._runner,
                    handler,
                    retry,
                    max_in_flight,
                    context,
                    self._handlers,
                    self._closing.stopping,
                    self._check_handlers_ended,
                )
            )
            return services[0]

        self._entering.add(entering)
        try:
            with entering:
                async with self._broker.open_intake(capability, make_service):
                    self._check_open()
                    [service] = services
                    self._services[capability] = service
                    self._entering.discard(entering)
                    starting.started(service)
                    self._watchdog.watch(service)
                    await service.stand(self._watchdog.beat)
            self._check_open()  # a worker that stops cancels this scope, or who called `handle`
        except Exception as exc:  # noqa: BLE001 - it is raised elsewhere, see below
            if entering in self._entering:
                starting.started(exc)  # leaves `handle`
            else:
                self._closing.interrupt(exc)  # stops in order, then leaves the worker's block
        finally:
            self._entering.discard(entering)
            if not starting.has_started():
                starting.started(self._closed_error())  # if anybody waits for it, the worker ends

    async def _stand(self) -> None:
        """Wait until all handlers have ended."""
        self._runner.background.start_soon(self._end_pulls)
        self._runner.background.start_soon(self._cut_short)
        try:
            await self._closing.handlers_ended.wait()
        except BaseException:  # an error that nobody has caught, in one of the worker's tasks
            self._closing.interrupt()
            with trio.move_on_after(2 * SETTLE_SECONDS, shield=True):
                await self._closing.pulls_ended.wait()
            raise
        # Only results that are being stored, and announced, are left.
        self._give_up_after(max((s.ack_wait for s in self._standing()), default=0))

    async def _end_pulls(self) -> None:
        # Shielded, because nothing is given back before the pulls have ended. The shield ends:
        # every way out of `_stand` sets `stopping`, and an intake stops within about a second.
        with trio.CancelScope(shield=True):
            await self._closing.stopping.wait()
            for scope in self._entering:
                scope.cancel()
            async with trio.open_nursery() as nursery:
                for service in self._standing():
                    nursery.start_soon(service.intake.stop)  # never raises
        for service in self._standing():
            for job in service.jobs.values():
                if job.call is None:
                    job.cut_short(Cut.BY_WORKER)
            service.lanes.close()
        self._closing.pulls_ended.set()
        self._check_handlers_ended()

    async def _cut_short(self) -> None:
        await self._closing.interrupting.wait()
        await self._closing.pulls_ended.wait()
        self._closing.cut = sum(len(service.jobs) for service in self._standing())
        for service in self._standing():
            for job in service.jobs.values():
                job.cut_short(Cut.BY_WORKER)
        self._give_up_after(SETTLE_SECONDS)

    def _give_up_after(self, seconds: float) -> None:
        for nursery in (self._handlers, self._runner.observers.nursery):
            scope = nursery.cancel_scope
            scope.deadline = min(scope.deadline, trio.current_time() + seconds)

    def _check_handlers_ended(self) -> None:
        if self._closing.pulls_ended.is_set() and not any(s.running for s in self._standing()):
            self._closing.handlers_ended.set()

    async def _close(self, timeout: float) -> bool:  # noqa: ASYNC109 - it is the deadline's name
        self._closing.stopping.set()
        try:
            with trio.move_on_after(timeout):
                await self._closing.finished.wait()
                return False
        finally:
            if not self._closing.finished.is_set():
                self._closing.interrupt()
                with trio.move_on_after(2 * SETTLE_SECONDS, shield=True):
                    await self._closing.finished.wait()
        return self._closing.cut > 0


def broker_of(worker: Worker) -> Broker:
    """The broker that it takes its tasks from."""
    return worker._broker


def observe(worker: Worker, observer: Observer) -> None:
    """Let ``observer`` hear of the worker's tasks, from now on."""
    worker._runner.observers.add(observer)


async def _host(
    broker: Broker,
    name: str,
    default_timeout: float,
    max_deliveries: int,
    closing: Closing,
    starting: Starting[Worker],
) -> None:
    watchdog = Watchdog()
    try:
        # The shield ends when `stopping` is set, which leaving the worker's block does.
        with trio.CancelScope(shield=True), watchdog.running():
            async with trio.open_nursery() as background:
                own_dispatcher = OwnDispatcher(broker, name, background, closing.interrupt)
                async with trio.open_nursery() as following, trio.open_nursery() as handlers:
                    runner = JobRunner(
                        name,
                        default_timeout,
                        max_deliveries,
                        closing,
                        own_dispatcher,
                        Observers(following),
                        background,
                    )
                    worker = Worker._create(broker, runner, closing, watchdog, handlers)
                    starting.started(worker)
                    await worker._stand()
                background.cancel_scope.cancel()
    finally:
        closing.finished.set()
    if closing.cause is not None:
        raise closing.cause


@asynccontextmanager
async def host_worker(
    broker: Broker, name: str, default_timeout: float, max_deliveries: int
) -> AsyncIterator[Worker]:
    """Run a worker on an open broker; leaving the block is its `aclose`."""
    closing = Closing()
    starting: Starting[Worker] = Starting()
    async with open_flat_nursery() as nursery:
        try:
            nursery.start_soon(
                _host, broker, name, default_timeout, max_deliveries, closing, starting
            )
            worker = await starting.wait()
            yield worker
            await worker.aclose()
        except BaseException:
            closing.interrupt()  # the nursery's own exit waits for the host
            raise
