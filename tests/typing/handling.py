"""What one does with a worker and in a handler, used rightly and wrongly: see api.py."""

from __future__ import annotations

import math
from typing import assert_type

import msgspec

from trio_swarmtask import (
    Broker,
    CurrentTask,
    Dispatcher,
    Handler,
    Idempotency,
    Message,
    Result,
    Status,
    Worker,
    WorkerStatistics,
    current_task,
    open_idempotency,
)


class Plan(msgspec.Struct):
    steps: list[str]


class Coder:
    """A handler may be a method, or an instance that can be called."""

    async def fix(self, message: Message) -> dict[str, list[str]]:
        return {"steps": message.prior_as(message.parent, Plan).steps}

    async def __call__(self, message: Message) -> Result:
        return Result(status=Status.FAILED, error=f"can't do {message.inputs}")


def use(*values: object) -> None: ...


async def wrong_argument(message: str) -> str:
    return message


def not_async(message: Message) -> str:
    return message.id


async def check_worker(worker: Worker) -> None:
    assert_type(worker.name, str)
    assert_type(worker.statistics(), WorkerStatistics)
    await worker.handle("coder", Coder())
    await worker.handle("fixer", Coder().fix, max_in_flight=1)
    await worker.shutdown(10)
    await worker.aclose()
    worker.name = "one"  # type: ignore[misc]
    await worker.handle("coder", not_async)  # type: ignore[arg-type]
    await worker.handle("coder", wrong_argument)  # type: ignore[arg-type]
    await worker.handle("coder", Coder().fix, 1)  # type: ignore[call-arg]
    await worker.shutdown()  # type: ignore[call-arg]


def check_worker_statistics(statistics: WorkerStatistics) -> None:
    assert_type(statistics.capabilities, int)
    assert_type(statistics.in_flight, int)
    assert_type(statistics.succeeded, int)
    assert_type(statistics.failed, int)
    assert_type(statistics.timed_out, int)
    assert_type(statistics.cancelled, int)
    assert_type(statistics.superseded, int)
    assert_type(statistics.given_back, int)
    assert_type(statistics.dead_letters, int)
    assert_type(statistics.leases_lost, int)
    statistics.failed = 0  # type: ignore[misc]


async def check_handler(handler: Handler, message: Message) -> None:
    assert_type(await handler(message), object)
    good: list[Handler] = [Coder(), Coder().fix]
    bad: Handler = not_async  # type: ignore[assignment]
    use(good, bad)


async def check_current_task() -> None:
    task = current_task()
    assert_type(task, CurrentTask)
    assert_type(task.capability, str)
    assert_type(task.message, Message)
    assert_type(task.attempt, int)
    assert_type(task.deadline, float)
    assert_type(await task.dispatcher(), Dispatcher)
    await task.report(0.5)
    await task.report(None, "looking", metadata={"step": "1"})
    await task.report("half")  # type: ignore[arg-type]
    await task.report(0.5, metadata={"step": 1})  # type: ignore[dict-item]
    await task.report()  # type: ignore[call-arg]
    task.deadline = 5.0  # type: ignore[misc]


async def check_idempotency(worker: Worker, broker: Broker, handler: Handler) -> None:
    async with open_idempotency(broker, bucket="payments", ttl=math.inf, lease=10) as idempotent:
        assert_type(idempotent, Idempotency)
        assert_type(idempotent(handler), Handler)
        await worker.handle("payer", idempotent(Coder().fix, scope="payments"), max_in_flight=1)
        idempotent("payer", handler)  # type: ignore[call-arg, arg-type]
        idempotent(not_async)  # type: ignore[arg-type]
    open_idempotency("nats://one", "payments")  # type: ignore[call-arg]


# The server
