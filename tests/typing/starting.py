"""What one does with a dispatcher, used rightly and wrongly: see api.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import assert_type

import trio

from trio_swarmtask import (
    Dispatcher,
    DispatcherStatistics,
    Future,
    GroupStatistics,
    Message,
    Result,
    Schedule,
    TaskGroup,
    TaskState,
    Updates,
)
from trio_swarmtask.results import Result as Record


def use(*values: object) -> None: ...


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
