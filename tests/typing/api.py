"""Each public name, used once rightly and once wrongly. Read by mypy and pyright, never run.

`assert_type` pins what users get. Each `type: ignore` stands for an error that users must see: both
checkers complain about one that is not needed.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import msgspec
import trio

from trio_swarmtask import (
    VERSION,
    AuthenticationError,
    Broker,
    BrokerError,
    ClosedError,
    CurrentTask,
    DeadLetter,
    Dispatcher,
    DispatcherStatistics,
    Future,
    GroupStatistics,
    Handler,
    Idempotency,
    InvalidCapabilityError,
    InvalidMessageError,
    MemoryBroker,
    Message,
    NATSConfig,
    Result,
    Schedule,
    Status,
    SwarmTaskError,
    TaskCancelledError,
    TaskFailedError,
    TaskGroup,
    TaskState,
    TaskTimeoutError,
    UnsupportedVersionError,
    Updates,
    Worker,
    WorkerStatistics,
    current_task,
    open_broker,
    open_dispatcher,
    open_idempotency,
    open_worker,
)
from trio_swarmtask.results import Result as Record
from trio_swarmtask.server import Server, open_server

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


class Plan(msgspec.Struct):
    """A type of a user's."""

    steps: list[str]


def use(*values: object) -> None: ...


# The wire


def check_version() -> None:
    assert_type(VERSION, int)
    VERSION.upper()  # type: ignore[attr-defined]


def check_status(result: Result) -> None:
    assert_type(result.status, Status)
    assert_type(Status("failed"), Status)
    text: str = result.status
    use(text, Status.DONE)  # type: ignore[attr-defined]


def check_message(message: Message) -> None:
    made = Message(
        id="order-7",
        correlation_id="order",
        parent="order-6",
        root="order-1",
        timeout=60,
        inputs={"goal": "fix it"},
        prior={"order-6": {"steps": ["look"]}},
        created_at=datetime.now(UTC),
        tags=["urgent"],
        metadata={"team": "blue"},
    )
    assert_type(made, Message)
    assert_type(made.encode(), bytes)
    assert_type(Message.decode(b"{}"), Message)
    assert_type(message.inputs, dict[str, str])
    assert_type(message.prior, dict[str, Any])
    assert_type(message.created_at, datetime | None)
    assert_type(message.prior_as("order-6", Plan), Plan)
    assert_type(message.prior_as("order-6", list[str]), list[str])
    message.validate()
    message.id = "order-8"  # type: ignore[misc]
    message.prior_as("order-6")  # type: ignore[call-arg]
    Message("order-7")  # type: ignore[call-arg, arg-type]
    Message(timeout="60")  # type: ignore[arg-type]
    Message(inputs={"goal": 7})  # type: ignore[dict-item]
    Message.decode("{}")  # type: ignore[arg-type]


def check_result(result: Result) -> None:
    made = Result(status=Status.SUCCESS, outputs={"steps": []}, metadata={"model": "small"})
    assert_type(made, Result)
    assert_type(made.encode(), bytes)
    assert_type(Result.decode(b"{}"), Result)
    assert_type(result.outputs, Any)
    assert_type(result.duration, int)
    assert_type(result.completed_at, datetime | None)
    assert_type(result.outputs_as(Plan), Plan)
    assert_type(result.raise_for_status().outputs_as(int), int)
    result.validate()
    result.status = Status.FAILED  # type: ignore[misc]
    Result(status="done")  # type: ignore[arg-type]
    Result()  # type: ignore[call-arg]


# Errors


def check_errors(
    failed: TaskFailedError, overran: TaskTimeoutError, cancelled: TaskCancelledError
) -> None:
    assert_type(cancelled.result, Result)
    assert_type(cancelled.result.cancelled_by, str)
    assert_type(failed.result, Result)
    assert_type(overran.result, Result)
    closed: trio.ClosedResourceError = ClosedError("closed")
    values: list[ValueError] = [
        InvalidMessageError("no"),
        InvalidCapabilityError("no"),
        UnsupportedVersionError("no"),
    ]
    connection: ConnectionError = BrokerError("lost")
    refused: BrokerError = AuthenticationError("wrong password")
    root: list[SwarmTaskError] = [failed, overran, ClosedError("closed"), refused]
    use(closed, values, connection, root)
    TaskFailedError("it broke")  # type: ignore[arg-type]
    TaskTimeoutError("too slow")  # type: ignore[arg-type]
    lost: AuthenticationError = BrokerError("lost")  # type: ignore[assignment]
    denied: ConnectionError = SwarmTaskError("no")  # type: ignore[assignment]
    late: ValueError = ClosedError("closed")  # type: ignore[assignment]
    gone: trio.ClosedResourceError = InvalidMessageError("no")  # type: ignore[assignment]
    bad: BrokerError = InvalidCapabilityError("no")  # type: ignore[assignment]
    new: BrokerError = UnsupportedVersionError("no")  # type: ignore[assignment]
    use(lost, denied, late, gone, bad, new)


# Opening


def check_config() -> None:
    config = NATSConfig(
        "tls://one,tls://two",
        name="billing",
        user="me",
        password="secret",
        token=None,
        credentials=Path("me.creds"),
        nkey_seed="me.nk",
        tls=ssl.create_default_context(),
        connect_timeout=2.5,
        manage_streams=False,
        replicas=3,
        result_ttl=3600,
        ack_wait=10,
        reconnect_timeout=math.inf,
    )
    assert_type(config, NATSConfig)
    assert_type(config.url, str)
    assert_type(config.ack_wait, float)
    config.url = "nats://elsewhere"  # type: ignore[misc]
    NATSConfig("nats://one", "billing")  # type: ignore[call-arg]
    NATSConfig(tls=True)  # type: ignore[arg-type]


async def check_open_broker() -> None:
    async with open_broker("nats://one") as broker:
        assert_type(broker, Broker)
    open_broker(NATSConfig())
    open_broker(None)
    open_broker(MemoryBroker())  # type: ignore[arg-type]


async def check_open_dispatcher(broker: Broker) -> None:
    async with open_dispatcher() as dispatcher:
        assert_type(dispatcher, Dispatcher)
    opened: AbstractAsyncContextManager[Dispatcher] = open_dispatcher(broker, name="billing")
    open_dispatcher(NATSConfig(ack_wait=10))
    open_dispatcher(MemoryBroker())
    with open_dispatcher() as dispatcher:  # type: ignore[attr-defined]
        use(opened, dispatcher)
    open_dispatcher("nats://one", "billing")  # type: ignore[call-arg]
    open_dispatcher(4222)  # type: ignore[arg-type]


async def check_open_worker(broker: Broker) -> None:
    async with open_worker() as worker:
        assert_type(worker, Worker)
    open_worker(broker, name="one", default_timeout=60, max_deliveries=3)
    open_worker(MemoryBroker(), default_timeout=math.inf)
    open_worker("nats://one", timeout=60)  # type: ignore[call-arg]
    open_worker("nats://one", max_deliveries=2.5)  # type: ignore[arg-type]


def check_memory_broker() -> None:
    memory = MemoryBroker(
        ack_wait=10, result_ttl=60, max_payload=1000, max_tasks=math.inf, max_results=100
    )
    broker: Broker = memory
    assert_type(memory.dead_letters, list[DeadLetter])
    use(broker)
    MemoryBroker(30)  # type: ignore[call-arg]


def check_dead_letter(letter: DeadLetter) -> None:
    assert_type(letter.capability, str)
    assert_type(letter.task_id, str)
    assert_type(letter.data, bytes)
    assert_type(letter.reason, str)
    assert_type(letter.deliveries, int)
    letter.reason = ""  # type: ignore[misc]


def check_broker() -> None:
    Broker()  # type: ignore[abstract]


# Dispatcher and future


async def check_dispatcher(dispatcher: Dispatcher, message: Message) -> None:
    assert_type(await dispatcher.run("coder", message), Result)
    assert_type(await dispatcher.start("coder", message), Future)
    assert_type(await dispatcher.start("coder", message, not_before=datetime.now(UTC)), Future)
    await dispatcher.start("coder", message, not_before=60)  # type: ignore[arg-type]
    assert_type(dispatcher.statistics(), DispatcherStatistics)
    await dispatcher.shutdown(10)
    await dispatcher.aclose()
    await dispatcher.run("coder", {"goal": "fix it"})  # type: ignore[arg-type]
    await dispatcher.run("coder", message, timeout=5)  # type: ignore[call-arg]
    await dispatcher.start(message)  # type: ignore[call-arg, arg-type]
    await dispatcher.shutdown()  # type: ignore[call-arg]
    assert_type(await dispatcher.attach("order-7"), Future)
    await dispatcher.attach(7)  # type: ignore[arg-type]
    dispatcher.forget(await dispatcher.attach("order-7"))
    dispatcher.forget("order-7")  # type: ignore[arg-type]


async def check_schedules(dispatcher: Dispatcher, message: Message) -> None:
    assert_type(await dispatcher.schedule("tick", "coder", message, every=5), None)
    await dispatcher.schedule("tick", "coder", message, every=timedelta(hours=1))
    await dispatcher.schedule("tick", "coder", message, cron="0 0 3 * * *")
    await dispatcher.schedule("tick", "coder", message, "0 0 3 * * *")  # type: ignore[call-arg]
    await dispatcher.schedule("tick", "coder", message, every="5s")  # type: ignore[arg-type]
    assert_type(await dispatcher.unschedule("tick"), bool)
    schedules = await dispatcher.schedules()
    assert_type(schedules, list[Schedule])
    assert_type(schedules[0].name, str)
    assert_type(schedules[0].capability, str)
    assert_type(schedules[0].message, Message)
    assert_type(schedules[0].cron, str | None)
    assert_type(schedules[0].every, int | None)
    schedules[0].name = "tock"  # type: ignore[misc]


async def check_group(dispatcher: Dispatcher, message: Message) -> None:
    async with dispatcher.open_group(parent=message, on_failure="collect", grace=5) as group:
        assert_type(group, TaskGroup)
        assert_type(await group.start("coder", message), Future)
        assert_type(await group.start("coder", message, not_before=datetime.now(UTC)), Future)
        assert_type(await group.run("coder", message), Result)
        assert_type(group.cancel_scope, trio.CancelScope)
        assert_type(group.statistics(), GroupStatistics)
        await group.start(message)  # type: ignore[call-arg, arg-type]
        await group.run("coder", {"goal": "fix it"})  # type: ignore[arg-type]
    dispatcher.open_group(on_failure="ignore")  # type: ignore[arg-type]
    with dispatcher.open_group():  # type: ignore[attr-defined]
        pass


async def check_map(
    dispatcher: Dispatcher, message: Message, later: AsyncIterator[Message]
) -> None:
    async with dispatcher.map("coder", [message], limit=10, ordered=True) as results:
        assert_type(results, AsyncIterator[Result])
        async for result in results:
            assert_type(result, Result)
    async with dispatcher.map("coder", later, parent=message, grace=5) as results:
        assert_type(await anext(results), Result)
    dispatcher.map("coder", ["fix it"])  # type: ignore[list-item]
    dispatcher.map("coder", [message], 10)  # type: ignore[call-arg]
    with dispatcher.map("coder", [message]):  # type: ignore[attr-defined]
        pass


def check_group_statistics(statistics: GroupStatistics) -> None:
    assert_type(statistics.started, int)
    assert_type(statistics.outstanding, int)
    assert_type(statistics.succeeded, int)
    assert_type(statistics.failed, int)
    assert_type(statistics.cancelled, int)
    statistics.started += 1  # type: ignore[misc]


def check_dispatcher_statistics(statistics: DispatcherStatistics) -> None:
    assert_type(statistics.outstanding, int)
    assert_type(statistics.started, int)
    assert_type(statistics.resolved, int)
    statistics.started += 1  # type: ignore[misc]


async def check_future(future: Future) -> None:
    assert_type(future.id, str)
    assert_type(await future.wait(), Result)
    assert_type(future.result, Result)
    assert_type(future.state, TaskState)
    await future.cancel()
    await future.cancel(5)  # type: ignore[call-arg]
    future.id = "order-7"  # type: ignore[misc]
    await future.wait(5)  # type: ignore[call-arg]
    await future  # type: ignore[misc]


async def check_updates(future: Future) -> None:
    async for update in future.updates():
        assert_type(update, Record)
    async with future.updates() as updates:
        assert_type(updates, Updates)
        assert_type(await anext(updates), Record)
    await updates.aclose()
    future.updates(16)  # type: ignore[call-arg]
    for update in future.updates():  # type: ignore[attr-defined]
        use(update)


# Worker and handler


class Coder:
    """A handler may be a method, or an instance that can be called."""

    async def fix(self, message: Message) -> dict[str, list[str]]:
        return {"steps": message.prior_as(message.parent, Plan).steps}

    async def __call__(self, message: Message) -> Result:
        return Result(status=Status.FAILED, error=f"can't do {message.inputs}")


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


async def check_open_server(store: Path) -> None:
    async with open_server() as server:
        assert_type(server, Server)
    open_server(store, port=4222)
    open_server(store, 4222)  # type: ignore[call-arg]
    open_server(port="4222")  # type: ignore[arg-type]


def check_server(server: Server) -> None:
    assert_type(server.url, str)
    assert_type(server.port, int)
    assert_type(server.pid, int)
    assert_type(server.store_dir, Path)
    server.port = 4222  # type: ignore[misc]
