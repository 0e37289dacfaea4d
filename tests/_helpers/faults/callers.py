# The crowd: callers of every kind, that use a cluster while it is harmed.
#
# An act is what one caller does: start a task and wait, cancel one from two sides, publish. Acts
# begin at random moments of the round. All that a call tells its caller goes into the ledger. A
# call that raises what it should not is a broken promise, and so is one that has not ended when
# the crowd's patience has.

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests._helpers.faults.round_ledger import LAST_UPDATE
from trio_swarmtask import Message, TaskFailedError, TaskState
from trio_swarmtask.results import Result as Update, ResultExistsError, ResultStatus

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from tests._helpers.faults.round_ledger import RoundLedger
    from trio_swarmtask import Dispatcher, Future, Result, TaskGroup
    from trio_swarmtask.results import ResultPublisher

# Seconds that the handler of a task takes which is to be cancelled: more than a round.
LONG = 90


class Caller:
    """One act: it makes its calls with a random generator of its own."""

    def __init__(self, crowd: Crowd, name: str, rng: random.Random) -> None:
        self.crowd = crowd
        self.ledger = crowd.ledger
        self.name = name
        self.rng = rng
        # Two of different processes, as it were: each has a connection of its own.
        self.one, self.other = rng.sample(crowd.dispatchers, 2)
        self._numbers = itertools.count(1)

    def new_id(self) -> str:
        return f"{self.ledger.prefix}{self.name}-{next(self._numbers)}"

    def message(self, seconds: float | None = None, task_id: str = "", **fields: object) -> Message:
        """Of a short task, or one that may end in the middle of the harm."""
        if seconds is None:
            seconds = self.rng.choice((0, self.rng.uniform(0, 0.5), self.rng.uniform(0, 3)))
        inputs = {"seconds": f"{seconds:.3f}", **fields.pop("inputs", {})}  # type: ignore[dict-item]
        return Message(id=task_id, inputs=inputs, **fields)  # type: ignore[arg-type]

    def any_id(self) -> str:
        """The caller's own, or the library's."""
        return self.rng.choice((self.new_id(), ""))

    # Calls

    @contextmanager
    def calling(self, what: str, *expected: type[Exception]) -> Iterator[None]:
        """Note what leaves the block, if it is not expected, or that the block does not end."""
        began = trio.current_time()
        try:
            yield
        except BaseException as exc:
            for leaf in leaves(exc):
                if isinstance(leaf, expected) or leaf in self.ledger.noted:
                    continue
                if isinstance(leaf, trio.Cancelled) and not self.crowd.is_out_of_patience:
                    continue  # the act itself has cancelled it
                self.ledger.noted.append(leaf)
                took = f"after {trio.current_time() - began:.1f} s"
                if isinstance(leaf, trio.Cancelled):
                    self.ledger.breaks(f"{self.name}: {what} has not ended {took}")
                else:
                    self.ledger.breaks(f"{self.name}: {what} raised {took}: {leaf!r}")
            raise

    async def start(
        self,
        dispatcher: Dispatcher | TaskGroup,
        message: Message,
        not_before: datetime | None = None,
    ) -> Future:
        with self.calling(f"start {message.id or 'a task'}"):
            future = await dispatcher.start("work", message, not_before=not_before)
        self.ledger.told(future.id)
        if not_before is not None:
            self.ledger.due[future.id] = not_before.timestamp()
        return future

    async def attach(self, dispatcher: Dispatcher, task_id: str) -> Future:
        with self.calling(f"attach {task_id}"):
            return await dispatcher.attach(task_id)

    async def wait(self, future: Future) -> Result:
        with self.calling(f"wait for {future.id}"):
            result = await future.wait()
        self.ledger.hear(future.id, "a waiter", result)
        return result

    async def cancel(self, future: Future) -> None:
        with self.calling(f"cancel {future.id}"):
            await future.cancel()
        if future.state == TaskState.OUTSTANDING:
            self.ledger.breaks(f"{self.name}: cancel {future.id} returned, and there is no result")
        await self.wait(future)

    async def both(self, *calls: Callable[[], Awaitable[object]]) -> None:
        """At the same moment."""

        async def make(call: Callable[[], Awaitable[object]]) -> None:
            try:
                await call()
            except Exception:  # noqa: BLE001 - it is noted; the other one goes on
                assert self.ledger.noted

        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(make, call)

    def expect_success(self, result: Result, **outputs: str) -> None:
        got = result.outputs if isinstance(result.outputs, dict) else {}
        if result.status != "success" or not outputs.items() <= got.items():
            self.ledger.breaks(f"{self.name}: {result.id} should succeed with {outputs}: {result}")


# Acts


async def run(caller: Caller) -> None:
    message = caller.message(task_id=caller.any_id())
    with caller.calling(f"run {message.id or 'a task'}"):
        result = await caller.one.run("work", message)
    caller.ledger.told(result.id)
    caller.ledger.hear(result.id, "run", result)
    caller.expect_success(result, **message.inputs)


async def start_here_and_wait_there(caller: Caller) -> None:
    future = await caller.start(caller.one, caller.message(task_id=caller.any_id()))
    attached = await caller.attach(caller.other, future.id)
    await caller.both(partial(caller.wait, future), partial(caller.wait, attached))


async def start_one_id_at_once(caller: Caller) -> None:
    message = caller.message(task_id=caller.new_id())
    due = soon(caller) if caller.rng.random() < 0.5 else None

    async def start(dispatcher: Dispatcher) -> None:
        await caller.wait(await caller.start(dispatcher, message, due))

    await caller.both(partial(start, caller.one), partial(start, caller.other))


async def start_later(caller: Caller) -> None:
    future = await caller.start(caller.one, caller.message(task_id=caller.any_id()), soon(caller))
    if caller.rng.random() < 0.3:
        await caller.cancel(future)
    else:
        caller.expect_success(await caller.wait(future))


async def fail(caller: Caller) -> None:
    """At the first attempts, or for good."""
    retries, attempts = caller.rng.choice(((1, 20), (2, 20), (0, 0)))
    inputs = {"retries": f"{retries}"} if retries else {"fails": "no luck"}
    message = caller.message(0.1, caller.any_id(), inputs=inputs, max_attempts=attempts)
    result = await caller.wait(await caller.start(caller.one, message))
    if retries:
        caller.expect_success(result)
    elif "no luck" not in result.error:
        caller.ledger.breaks(f"{caller.name}: {result.id} should have failed: {result}")


async def cancel(caller: Caller) -> None:
    """From one side or two, while the task waits, runs, or ends."""
    seconds = caller.rng.choice((LONG, LONG, caller.rng.uniform(0, 0.5)))
    future = await caller.start(caller.one, caller.message(seconds, caller.any_id()))
    calls = [partial(caller.cancel, future)]
    if caller.rng.random() < 0.6:
        calls.append(partial(caller.cancel, await caller.attach(caller.other, future.id)))
    await trio.sleep(caller.rng.uniform(0, 0.5))
    await caller.both(*calls)


async def give_up(caller: Caller) -> None:
    """As a caller does whose deadline passes: the task may be stored, and goes on."""
    message = caller.message(task_id=caller.any_id())
    with trio.move_on_after(caller.rng.uniform(0, 0.5)), caller.calling("run, and give up"):
        result = await caller.one.run("work", message)
        caller.ledger.hear(result.id, "run", result)


async def open_group(caller: Caller) -> None:
    """All succeed, one fails, or the block is cancelled."""
    end = caller.rng.choice(("well", "failure", "cancelled"))
    # In an outage that is longer than the grace, tasks are left to themselves: they have to end.
    grace, longest = caller.rng.choice(((1, 8), (60, LONG)))
    seconds = None if end == "well" else longest
    futures: list[Future] = []
    try:
        with caller.calling(f"a group that ends by {end}", TaskFailedError):
            async with caller.one.open_group(grace=grace) as group:
                for _ in range(caller.rng.randint(2, 5)):
                    message = caller.message(seconds, caller.any_id())
                    futures.append(await caller.start(group, message))
                await trio.sleep(caller.rng.uniform(0, 0.5))
                if end == "failure":
                    await caller.start(group, caller.message(0, inputs={"fails": "no luck"}))
                elif end == "cancelled":
                    group.cancel_scope.cancel()
    except* TaskFailedError:
        if end != "failure":
            raise
    for future in futures:
        if future.state != TaskState.OUTSTANDING:
            caller.ledger.hear(future.id, "a group", future.result)
        elif end == "well" or grace > 1:
            caller.ledger.breaks(f"{caller.name}: a group has ended without {future.id}")
        else:
            await caller.wait(await caller.attach(caller.other, future.id))


async def map_messages(caller: Caller) -> None:
    messages = [caller.message() for _ in range(caller.rng.randint(2, 5))]
    results: list[Result] = []
    with caller.calling("a map"):
        async with caller.one.map("work", messages, limit=3) as mapped:
            async for result in mapped:
                results.append(result)
                caller.ledger.told(result.id)
                caller.ledger.hear(result.id, "a map", result)
    if len(results) != len(messages):
        caller.ledger.breaks(f"{caller.name}: a map gave {len(results)} of {len(messages)} results")


async def use_one_key(caller: Caller) -> None:
    """Two or three tasks of one key, which are to have one effect."""
    key = caller.new_id()

    async def start(dispatcher: Dispatcher) -> None:
        inputs = {"key": key}  # which are in the outputs
        message = caller.message(task_id=caller.any_id(), idempotency=key, inputs=inputs)
        future = await caller.start(dispatcher, message)
        caller.ledger.keyed[key].append(future.id)
        caller.expect_success(await caller.wait(future))

    callers = [caller.one, caller.other, caller.one][: caller.rng.randint(2, 3)]
    await caller.both(*(partial(start, dispatcher) for dispatcher in callers))


async def publish(caller: Caller) -> None:
    """Updates of one record, by one publisher or by two at once, and somebody who follows it."""
    key = caller.new_id()
    publishers = caller.rng.sample(caller.crowd.publishers, 2)

    async def tell(publisher: ResultPublisher, by: str) -> None:
        for number in range(1, LAST_UPDATE + 1):
            status = ResultStatus.SUCCESS if number == LAST_UPDATE else ResultStatus.PENDING
            update = Update(status=status, metadata={"by": by, "number": f"{number}"})
            began = time.monotonic()
            try:
                with caller.calling(f"publish {number} of {key} by {by}", ResultExistsError):
                    await publisher.publish(key, update)
            except ResultExistsError:
                caller.ledger.yielded(key, by)
                continue
            caller.ledger.wrote(key, by, number, began)
            await trio.sleep(caller.rng.uniform(0, 0.5))

    async def follow() -> None:
        last = None
        with caller.calling(f"follow {key}"):
            async with publishers[1].subscribe(key) as updates:
                async for update in updates:
                    last = update
        if last is None or not last.status.is_terminal:
            caller.ledger.breaks(f"{caller.name}: the updates of {key} ended by {last}")

    calls: list[Callable[[], Awaitable[object]]] = [partial(tell, publishers[0], "one"), follow]
    if caller.rng.random() < 0.4:
        calls.append(partial(tell, publishers[1], "other"))
    await caller.both(*calls)


ACTS = (
    run,
    start_here_and_wait_there,
    start_one_id_at_once,
    start_later,
    fail,
    cancel,
    give_up,
    open_group,
    map_messages,
    use_one_key,
    publish,
)


def soon(caller: Caller) -> datetime:
    return datetime.fromtimestamp(time.time() + caller.rng.uniform(0.3, 4), UTC)


class Crowd:
    """Those who act in one round."""

    def __init__(
        self,
        ledger: RoundLedger,
        dispatchers: Sequence[Dispatcher],
        publishers: Sequence[ResultPublisher],
    ) -> None:
        self.ledger = ledger
        self.dispatchers = dispatchers
        self.publishers = publishers
        self.scope = trio.CancelScope()
        """Its deadline ends the crowd's patience."""
        self.last = ""
        """The act that was over last."""

    @property
    def is_out_of_patience(self) -> bool:
        return self.scope.cancel_called

    async def act(self, rng: random.Random, seconds: float, times: int) -> None:
        """Each of the acts so many times, begun within so many seconds; wait for all of them."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                for number, act in enumerate(ACTS * times):
                    caller = Caller(self, f"{number}-{act.__name__}", self.fork(rng))
                    nursery.start_soon(self._perform, act, caller, rng.uniform(0, seconds))

    def fork(self, rng: random.Random) -> random.Random:
        # The order in which the callers go on is not the seed's: each needs choices of its own.
        return type(rng)(rng.getrandbits(64))

    async def _perform(
        self, act: Callable[[Caller], Awaitable[None]], caller: Caller, at: float
    ) -> None:
        await trio.sleep(at)
        try:
            with caller.calling("the act"):
                await act(caller)
        except* Exception:  # noqa: BLE001 - it is noted
            assert self.ledger.noted
        self.last = caller.name


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep; or the one that is none."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc
