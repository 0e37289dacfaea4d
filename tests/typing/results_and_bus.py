"""Each public name of `results` and `bus`, once rightly and once wrongly: see api.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_type

from trio_swarmtask import (
    MemoryBroker,
    NATSConfig,
    Result as TaskResult,
    SwarmTaskError,
    Worker,
    open_broker,
)
from trio_swarmtask.bus import (
    BusClosedError,
    BusMessage,
    BusSubscription,
    InvalidSubjectError,
    MemoryBus,
    MessageBus,
    NoRespondersError,
    open_nats_bus,
)
from trio_swarmtask.results import (
    BusPublisher,
    BusPublisherConfig,
    InvalidResultError,
    InvalidStatusError,
    InvalidTaskIDError,
    MemoryPublisher,
    PublisherClosedError,
    Result,
    ResultExistsError,
    ResultFilter,
    ResultNotFoundError,
    ResultPublisher,
    ResultStatus,
    Subscription,
    as_result,
    open_kv_publisher,
    publish_results,
    validate_result,
    validate_task_id,
)

if TYPE_CHECKING:
    import trio

    from trio_swarmtask import Broker


def use(*values: object) -> None: ...


def check_status() -> None:
    assert_type(ResultStatus.PENDING.is_terminal, bool)
    assert_type(ResultStatus("failed"), ResultStatus)
    ResultStatus.PENDING.is_terminal = True  # type: ignore[misc]


def check_result(result: Result) -> None:
    Result(
        task_id="t-1",
        status=ResultStatus.SUCCESS,
        output=b"42",
        error="",
        metadata={"model": "m"},
        created_at=datetime.now(UTC),
        updated_at=None,
    )
    assert_type(result.task_id, str)
    assert_type(result.status, ResultStatus)
    assert_type(result.output, bytes)
    assert_type(result.metadata, dict[str, str] | None)
    assert_type(result.created_at, datetime | None)
    Result()  # type: ignore[call-arg]
    Result(status=ResultStatus.FAILED, output="text")  # type: ignore[arg-type]
    Result("t-1", ResultStatus.FAILED)  # type: ignore[call-arg]
    result.error = "changed"  # type: ignore[misc]


def check_filter(result: Result) -> None:
    found = ResultFilter(
        status=ResultStatus.FAILED,
        task_id_prefix="t-",
        created_after=datetime.now(UTC),
        created_before=None,
        limit=10,
        metadata={"model": "m"},
    )
    assert_type(found.matches(result), bool)
    found.matches("t-1")  # type: ignore[arg-type]
    ResultFilter(limit="10")  # type: ignore[arg-type]


def check_validation(result: Result) -> None:
    validate_result(result)
    validate_task_id("t-1")
    use(validate_task_id())  # type: ignore[call-arg, func-returns-value]


async def check_publisher(publisher: ResultPublisher, result: Result) -> None:
    await publisher.publish("t-1", result)
    await publisher.publish(result)  # type: ignore[call-arg, arg-type]
    assert_type(await publisher.get("t-1"), Result)
    await publisher.get(1)  # type: ignore[arg-type]
    assert_type(await publisher.list(), Sequence[Result])
    assert_type(await publisher.list(ResultFilter(limit=1)), Sequence[Result])
    await publisher.list("t-")  # type: ignore[arg-type]
    await publisher.delete("t-1")
    async with publisher.subscribe("t-1") as updates:
        assert_type(updates, Subscription)
        async for update in updates:
            assert_type(update, Result)
        updates.cancel()
        updates.cancel(now=True)  # type: ignore[call-arg]
    async with publisher as entered:
        assert_type(entered, ResultPublisher)
    resource: trio.abc.AsyncResource = publisher
    await resource.aclose()


async def check_publishers(bus: MessageBus, broker: Broker, config: NATSConfig) -> None:
    memory: ResultPublisher = MemoryPublisher(buffer_size=4)
    MemoryPublisher(4)  # type: ignore[call-arg]
    on_bus: ResultPublisher = BusPublisher(
        bus, BusPublisherConfig(subject_prefix="results", buffer_size=16, max_results=100)
    )
    BusPublisher(bus)
    BusPublisher(config)  # type: ignore[arg-type]
    BusPublisherConfig(subject_prefix=1)  # type: ignore[arg-type]
    use(memory, on_bus)
    async with open_kv_publisher() as publisher:
        assert_type(publisher, ResultPublisher)
    async with (
        open_kv_publisher("nats://127.0.0.1", bucket="results", ttl=60.0, buffer_size=4),
        open_kv_publisher(config),
        open_kv_publisher(broker),
        open_kv_publisher(MemoryBroker()),
    ):
        pass
    open_kv_publisher(bucket=b"results")  # type: ignore[arg-type]


def check_bridge(worker: Worker, publisher: ResultPublisher, result: TaskResult) -> None:
    publish_results(worker, publisher)
    publish_results(publisher, worker)  # type: ignore[arg-type]
    assert_type(as_result(result), Result)
    as_result(worker)  # type: ignore[arg-type]


def check_errors(result: Result) -> None:
    missing = ResultNotFoundError("t-1")
    assert_type(missing.task_id, str)
    key: KeyError = missing
    exists = ResultExistsError("t-1", "success")
    assert_type(exists.task_id, str)
    ResultExistsError("t-1")  # type: ignore[call-arg]
    values: list[ValueError] = [
        InvalidTaskIDError(),
        InvalidStatusError(),
        InvalidResultError(),
        InvalidSubjectError(),
    ]
    closed: list[trio.ClosedResourceError] = [PublisherClosedError(), BusClosedError()]
    unheard: SwarmTaskError = NoRespondersError("a.b")
    use(key, values, closed, unheard)


async def check_bus(bus: MessageBus) -> None:
    await bus.publish("a.b", b"data")
    await bus.publish("a.b", "data")  # type: ignore[arg-type]
    assert_type(await bus.request("a.b", b"data"), BusMessage)
    assert_type(bus.max_payload, int | None)
    async with bus.subscribe("a.*") as messages, bus.queue_subscribe("a.>", "q") as queued:
        assert_type(messages, BusSubscription)
        assert_type(queued.dropped, int)
        async for message in messages:
            assert_type(message, BusMessage)
            assert_type(message.subject, str)
            assert_type(message.data, bytes)
            assert_type(message.reply, str)
    bus.queue_subscribe("a.>")  # type: ignore[call-arg]

    def hear(message: BusMessage) -> None: ...

    def end(error: Exception | None) -> None: ...

    async with bus.listen("a.b", hear), bus.listen("a.b", hear, on_close=end):
        pass
    bus.listen("a.b", end)  # type: ignore[arg-type]
    async with bus as entered:
        assert_type(entered, MessageBus)


async def check_buses(config: NATSConfig) -> None:
    memory: MessageBus = MemoryBus(buffer_size=4)
    use(memory)
    MemoryBus("4")  # type: ignore[arg-type]
    async with open_nats_bus() as bus, open_broker() as broker:
        assert_type(bus, MessageBus)
        async with open_nats_bus(broker), open_nats_bus(config, buffer_size=4):
            pass
    open_nats_bus(bus)  # type: ignore[arg-type]
