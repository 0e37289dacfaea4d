"""What `statistics()` says adds up at any moment, on both brokers.

The machine plays random steps (starts that are doubled, refused and cut off, calls that are given
up, attached and forgotten futures, groups, maps, cancellations, workers that come and go, leases
that are lost, dispatchers that are closed and lost) and looks at all counts after every step of any
Trio task.
"""

from __future__ import annotations

import itertools
import secrets
from contextlib import contextmanager, suppress
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from tests._helpers.brokers import (
    MemorySwarm,
    NATSSwarm,
    Swarm,
    echo,
    run_on_virtual_time,
    until,
    within,
)
from tests._helpers.handlers import Waiting
from trio_swarmtask import (
    BrokerError,
    Dispatcher,
    DispatcherStatistics,
    Future,
    GroupStatistics,
    InvalidMessageError,
    Message,
    Result,
    RetryTask,
    Status,
    SwarmTaskError,
    TaskGroup,
    Worker,
    WorkerStatistics,
)
from trio_swarmtask._abc import NewTask
from trio_swarmtask._worker._job import Cut

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from trio_swarmtask._worker._job import Job
    from trio_swarmtask.server import Server

    Run = Callable[[Callable[[], Awaitable[None]]], None]

T = TypeVar("T")

Counting = Dispatcher | TaskGroup | Worker
Step = tuple[str, list[int]]

LARGE = {"text": "x" * (2 << 20)}


def adds_up(counts: DispatcherStatistics | GroupStatistics | WorkerStatistics) -> bool:
    if min(astuple(counts)) < 0:
        return False
    if isinstance(counts, DispatcherStatistics):
        begun = counts.started + counts.starting + counts.attached
        return begun == counts.outstanding + counts.resolved + counts.given_up
    if isinstance(counts, GroupStatistics):
        ended = counts.succeeded + counts.failed + counts.cancelled
        return counts.started == counts.outstanding + ended
    return counts.deliveries == sum(astuple(counts)) - counts.capabilities - counts.deliveries


@contextmanager
def adding_up(counting: list[Counting]) -> Iterator[None]:
    """Look at all of these after every step of any Trio task."""
    wrong: list[str] = []

    class Auditor(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            odd = [each for each in counting if not adds_up(each.statistics())]
            wrong.extend(f"{each!r} in {task.name}: {each.statistics()}" for each in odd)

    auditor = Auditor()
    trio.lowlevel.add_instrument(auditor)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(auditor)
    assert not wrong, wrong[0]


# One kind of end after another


@within(20)
async def test_start_that_is_refused(swarm: Swarm) -> None:
    """Alone, it is in no count; beside one that is not, it is the same task."""
    async with swarm.dispatcher() as dispatcher:
        with adding_up([dispatcher]):
            with pytest.raises(InvalidMessageError, match="larger than"):
                await dispatcher.start("coder", Message(inputs=LARGE))
            assert dispatcher.statistics() == DispatcherStatistics(0, 0, 0, 0, 0, 0)
            await dispatcher.start("coder", Message(id="mine"))
            with pytest.raises(InvalidMessageError, match="larger than"):
                await dispatcher.start("coder", Message(id="mine", inputs=LARGE))
            await dispatcher.attach("mine")
        assert dispatcher.statistics() == DispatcherStatistics(1, 1, 0, 0, 0, 0)
    assert dispatcher.statistics() == DispatcherStatistics(0, 1, 0, 0, 0, 1)


@within(20)
async def test_start_of_a_group_that_is_cut_off(swarm: Swarm) -> None:
    """It was stored to be cancelled: so it has started, and has a result."""
    async with swarm.dispatcher() as dispatcher:
        async with dispatcher.open_group() as group:
            with adding_up([dispatcher, group]):
                for message in (Message(), Message(id="mine")):
                    with trio.CancelScope() as scope:
                        scope.cancel()
                        await group.start("coder", message)
        assert dispatcher.statistics() == DispatcherStatistics(0, 2, 0, 0, 2, 0)
        assert group.statistics() == GroupStatistics(2, 0, 0, 0, 2)


@within(20)
async def test_futures_that_are_let_go(swarm: Swarm) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        handler = Waiting()
        await worker.handle("coder", handler)
        await worker.handle("echo", echo)
        with adding_up([dispatcher, worker]):
            with trio.CancelScope() as scope:
                scope.cancel()
                await dispatcher.start("nobody", Message())
            assert dispatcher.statistics() == DispatcherStatistics(0, 0, 0, 0, 0, 0)
            dispatcher.forget(await dispatcher.start("coder", Message()))
            assert dispatcher.statistics() == DispatcherStatistics(0, 1, 0, 0, 0, 1)
            attached = await dispatcher.attach("theirs")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dispatcher.run, "coder", Message())
                    await until(lambda: dispatcher.statistics().started == 2)
                    scope.cancel()
            assert dispatcher.statistics() == DispatcherStatistics(1, 2, 0, 1, 0, 2)
            await dispatcher.run("echo", Message())
            dispatcher.forget(attached)
            await dispatcher.start("coder", Message())
            dispatcher._core.futures.broker_lost(BrokerError("gone"))
        assert dispatcher.statistics() == DispatcherStatistics(0, 4, 0, 1, 1, 4)
        with pytest.raises(trio.TooSlowError):
            await worker.shutdown(0)


@within(20)
async def test_deliveries_that_need_no_handler(swarm: Swarm) -> None:
    """Each is counted: one that is done, a dead letter, one of a version to come."""
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.outbox() as outbox,
        swarm.worker() as worker,
    ):
        await worker.handle("other", echo)
        with adding_up([worker]):
            # Told before they come: so their results are looked for.
            done = Result(id="done", status=Status.SUCCESS)
            await swarm.store_result("done", done.encode())
            await worker.handle("coder", echo)
            await outbox.withdraw("coder", "done", 0, never_delayed=True)
            await until(lambda: worker._services["coder"].remembered)  # type: ignore[union-attr]  # it is there
            await swarm.store_again("coder", "done", Message(id="done").encode())
            await until(lambda: worker.statistics().superseded == 1)
            await outbox.store(NewTask("coder", "broken", b"no message"))
            await until(lambda: worker.statistics().dead_letters == 1)
            await outbox.store(NewTask("coder", "newer", b'{"version":9,"id":"newer"}'))
            await until(lambda: worker.statistics().given_back == 1)
            assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
            await until(lambda: worker.statistics().succeeded == 1)
        assert worker.statistics().deliveries == 4


@within(20)
async def test_lease_that_is_lost_before_the_handler_is_called(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        service = worker._services["coder"]
        assert service is not None
        start = service.lanes.start

        def lose(job: Job) -> None:
            monkeypatch.undo()
            job.cut_short(Cut.LOST)
            start(job)

        monkeypatch.setattr(service.lanes, "start", lose)
        with adding_up([worker]):
            await dispatcher.start("coder", Message())
            await until(lambda: worker.statistics().leases_lost == 1)
        assert worker.statistics().deliveries >= 1


@within(20)
async def test_results_that_are_given_up_as_the_worker_ends(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were being stored, without a Trio task that waits; the answer comes too late."""
    told: list[Callable[[bool], None]] = []

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        service = worker._services["coder"]
        assert service is not None
        runner = worker._runner
        settle_soon = runner.settle_soon

        def settle_late(job: Job, on_settled: Callable[[Job], None]) -> bool:
            class Slow:
                def __getattr__(self, name: str) -> object:
                    return getattr(delivery, name)

                def complete_soon(self, result: bytes, on_end: Callable[[bool], None]) -> bool:
                    told.append(on_end)
                    return True

            delivery, job.delivery = job.delivery, Slow()
            return settle_soon(job, on_settled)

        monkeypatch.setattr(runner, "settle_soon", settle_late)
        with adding_up([worker]):
            await dispatcher.start("coder", Message())
            await until(lambda: told)
            with trio.CancelScope() as scope:
                scope.cancel()
                await worker.aclose()
            assert worker.statistics().in_flight == 0
            told[0](True)
        counts = worker.statistics()
        assert (counts.deliveries, counts.given_back, counts.succeeded) == (1, 1, 0)


# The machine


class Machine:
    """What is open, and what can be done with it.

    A step is the name of a method, and numbers, of which it makes those of the things that are
    there: so any list of steps is a program, also where two runs of it come out differently.
    """

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self.numbers: Iterator[int]
        self.counting: list[Counting] = []
        self.prefix = secrets.token_hex(4)
        self.capabilities = [f"{self.prefix}-{letter}" for letter in "ab"]
        self.told = trio.Event()
        self.dispatchers: list[Dispatcher] = []
        self.workers: list[tuple[Worker, trio.Event, trio.CancelScope]] = []
        self.groups: list[tuple[TaskGroup, trio.Event]] = []
        self.calls: list[trio.CancelScope] = []
        self.futures: list[tuple[Dispatcher, Future]] = []
        self.nursery: trio.Nursery

    # Choices

    def pick(self, among: Sequence[T]) -> T:
        return among[next(self.numbers) % len(among)]

    def some_id(self) -> str:
        return f"{self.prefix}-{self.pick(range(4))}"

    def some_message(self) -> Message:
        return Message(
            id=self.pick(["", self.some_id()]),
            inputs={"do": self.pick(["succeed", "fail", "wait", "wait", "again"])},
            max_attempts=2,
        )

    async def handle(self, message: Message) -> None:
        match message.inputs["do"]:
            case "fail":
                raise ValueError("no luck")
            case "again":
                raise RetryTask("not yet", delay=0.01)
            case "wait":
                await self.told.wait()

    # Steps

    async def play(self, steps: Sequence[Step]) -> None:
        async with (
            self.swarm.dispatcher() as one,
            self.swarm.dispatcher() as two,
            trio.open_nursery() as self.nursery,
        ):
            self.dispatchers = [one, two]
            self.counting += self.dispatchers
            with adding_up(self.counting):
                for name, numbers in [("hire", [0]), ("open_group", [0, 0]), *steps]:
                    self.numbers = itertools.cycle(numbers)
                    with suppress(SwarmTaskError):
                        await getattr(self, name)()
                self.told.set()
                for _, leave in self.groups:
                    leave.set()
                for scope in self.calls:
                    scope.cancel()
                for dispatcher in self.dispatchers:
                    await dispatcher.aclose()
                for _, leave, _ in self.workers:
                    leave.set()
                await until(lambda: not self.nursery.child_tasks)
        for each in self.counting:
            counts = each.statistics()
            if isinstance(counts, WorkerStatistics):
                assert counts.in_flight == 0
            else:
                assert counts.outstanding == 0, counts
            if isinstance(counts, DispatcherStatistics):
                assert counts.starting == 0

    def starter(self) -> Dispatcher | TaskGroup:
        groups = [group for group, _ in self.groups if not group._tasks.left.is_set()]
        return self.pick([*self.dispatchers, *groups, *groups])

    async def start(self) -> None:
        by = self.starter()
        with trio.move_on_after(5):
            future = await by.start(self.pick(self.capabilities), self.some_message())
            holder = by if isinstance(by, Dispatcher) else by._tasks.core.futures
            self.futures.append((holder, future))

    async def start_too_large(self) -> None:
        await self.starter().start(
            self.pick(self.capabilities), Message(id=self.some_id(), inputs=LARGE)
        )

    async def start_cut_off(self) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await self.starter().start(self.pick(self.capabilities), self.some_message())

    async def call(self) -> None:
        scope = trio.CancelScope()
        self.calls.append(scope)

        async def call_it(by: Dispatcher | TaskGroup, capability: str, message: Message) -> None:
            with scope, suppress(SwarmTaskError):
                await by.run(capability, message)

        self.nursery.start_soon(
            call_it, self.starter(), self.pick(self.capabilities), self.some_message()
        )

    async def cut_off_a_call(self) -> None:
        if self.calls:
            self.pick(self.calls).cancel()

    async def cancel(self) -> None:
        if self.futures:
            await self.pick(self.futures)[1].cancel()

    async def attach(self) -> None:
        dispatcher = self.pick(self.dispatchers)
        self.futures.append((dispatcher, await dispatcher.attach(self.some_id())))

    async def forget(self) -> None:
        if self.futures:
            held = self.pick(self.futures)
            self.futures.remove(held)
            held[0].forget(held[1])

    async def tell(self) -> None:
        self.told.set()
        self.told = trio.Event()

    async def pause(self) -> None:
        await trio.sleep(0.02)

    async def open_group(self) -> None:
        leave, opened = trio.Event(), trio.Event()
        dispatcher, on_failure = self.pick(self.dispatchers), self.pick(["cancel", "collect"])

        async def keep_open() -> None:
            try:
                async with dispatcher.open_group(on_failure=on_failure, grace=1) as group:
                    self.groups.append((group, leave))
                    self.counting.append(group)
                    opened.set()
                    await leave.wait()
            except* SwarmTaskError:
                pass
            finally:
                opened.set()

        self.nursery.start_soon(keep_open)
        await opened.wait()

    async def leave_group(self) -> None:
        if self.groups:
            self.pick(self.groups)[1].set()

    async def cancel_group(self) -> None:
        if self.groups:
            self.pick(self.groups)[0].cancel_scope.cancel()

    async def open_map(self) -> None:
        dispatcher, capability = self.pick(self.dispatchers), self.pick(self.capabilities)
        messages = [self.some_message() for _ in range(3)]
        stop_after = self.pick(range(4))

        async def read() -> None:
            with suppress(SwarmTaskError), trio.move_on_after(0.1):
                async with dispatcher.map(capability, messages, grace=1) as results:
                    for _ in range(stop_after):
                        await anext(results)

        self.nursery.start_soon(read)

    async def hire(self) -> None:
        leave, scope, hired = trio.Event(), trio.CancelScope(), trio.Event()

        async def work() -> None:
            with scope:
                async with self.swarm.worker() as worker:
                    self.counting.append(worker)
                    self.workers.append((worker, leave, scope))
                    for capability in self.capabilities:
                        await worker.handle(capability, self.handle, max_in_flight=3)
                    hired.set()
                    await leave.wait()

        self.nursery.start_soon(work)
        await hired.wait()

    async def dismiss(self) -> None:
        if self.workers:
            worker, leave, scope = self.pick(self.workers)
            match self.pick(["leave", "shutdown", "cancel"]):
                case "leave":
                    leave.set()
                case "cancel":
                    scope.cancel()
                case _:
                    with suppress(trio.TooSlowError):
                        await worker.shutdown(0)

    async def store_again(self) -> None:
        message = self.some_message()
        if message.id:
            await self.swarm.store_again(self.pick(self.capabilities), message.id, message.encode())

    async def store_rubbish(self) -> None:
        data = self.pick([b"no message", b'{"version":9}'])
        await self.swarm.store_again(self.pick(self.capabilities), self.some_id(), data)

    async def lose_a_lease(self) -> None:
        jobs = [
            job
            for worker, _, _ in self.workers
            for service in worker._standing()
            for job in service.jobs.values()
        ]
        if jobs:
            self.pick(jobs).cut_short(Cut.LOST)

    async def close_or_lose_a_dispatcher(self) -> None:
        dispatcher = self.pick(self.dispatchers)
        match self.pick(["aclose", "shutdown", "lose", "nothing", "nothing"]):
            case "aclose":
                await dispatcher.aclose()
            case "shutdown":
                with suppress(trio.TooSlowError):
                    await dispatcher.shutdown(0.05)
            case "lose":
                dispatcher._core.futures.broker_lost(BrokerError("gone"))


STEPS = [
    *["start", "call"] * 4,
    *["start_too_large", "start_cut_off", "cut_off_a_call", "cancel", "attach", "forget", "tell"],
    *["open_group"] * 3,
    *["leave_group", "cancel_group", "open_map", "hire", "dismiss"],
    *["store_again", "store_rubbish", "lose_a_lease", "close_or_lose_a_dispatcher", "pause"],
]


def play_machines(count: int, run: Run, open_swarm: Callable[[], Swarm]) -> None:
    numbers = st.lists(st.integers(0, 59), min_size=7, max_size=7)
    step = st.tuples(st.sampled_from(STEPS), numbers)

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
    # Hypothesis would make lists of five or so.
    @given(st.integers(1, 40).flatmap(lambda size: st.lists(step, min_size=size, max_size=size)))
    def play(steps: list[Step]) -> None:
        async def play_one() -> None:
            with trio.fail_after(60):
                await Machine(open_swarm()).play(steps)

        run(play_one)

    play()


def test_machine_in_memory() -> None:
    play_machines(100, run_on_virtual_time, MemorySwarm)


async def test_machine_on_a_server(server: Server) -> None:
    open_swarm = partial(NATSSwarm, server.url)
    await trio.to_thread.run_sync(play_machines, 10, trio.run, open_swarm)
