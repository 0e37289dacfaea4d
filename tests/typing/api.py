"""Each public name, used once rightly and once wrongly. Read by mypy and pyright, never run.

`assert_type` pins what users get. Each `type: ignore` stands for an error that users must see: both
checkers complain about one that is not needed.
"""

from __future__ import annotations

import math
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import msgspec

from trio_swarmtask import (
    VERSION,
    AuthenticationError,
    Broker,
    BrokerError,
    ClosedError,
    DeadLetter,
    Dispatcher,
    InvalidCapabilityError,
    InvalidMessageError,
    MemoryBroker,
    Message,
    NATSConfig,
    Result,
    Status,
    SwarmTaskError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
    UnsupportedVersionError,
    Worker,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask.server import Server, open_server

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    import trio


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
