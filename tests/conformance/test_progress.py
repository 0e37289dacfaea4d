"""Progress: what a handler reports, and who hears of it; on both brokers."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints

from tests._helpers.brokers import Swarm, within
from trio_swarmtask import (
    InvalidMessageError,
    Message,
    RetryTask,
    Status,
    Updates,
    current_task,
)
from trio_swarmtask.results import (
    MemoryPublisher,
    Result,
    ResultStatus,
    publish_results,
)

PENDING, SUCCESS, FAILED = ResultStatus


class Steps:
    """A handler that reports some steps, once it is told to go."""

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self.go = trio.Event()

    async def __call__(self, message: Message) -> str:
        await self.go.wait()
        for step in range(self.count):
            await current_task().report((step + 1) / self.count, f"step {step}")
        return "done"


def notes(updates: list[Result]) -> list[str]:
    return [(update.metadata or {}).get("note", "") for update in updates]


async def collect(updates: Updates) -> list[Result]:
    return [update async for update in updates]


def test_no_public_constructor() -> None:
    with pytest.raises(TypeError, match="Updates has no public constructor"):
        Updates()


@within(10)
async def test_reports_reach_the_dispatcher(swarm: Swarm) -> None:
    """In order, and then the iteration ends: the result is there."""
    steps = Steps()
    async with swarm.worker(name="ada") as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", steps)
        future = await dispatcher.start("coder", Message(id="t-1"))
        async with future.updates() as updates:
            steps.go.set()
            heard = [update async for update in updates]
        assert future.result.outputs == "done"
        assert [update.metadata for update in heard] == [
            {"progress": f"{step / 3}", "note": f"step {step - 1}", "agent": "ada", "attempt": "1"}
            for step in (1, 2, 3)
        ]
        assert {(update.task_id, update.status) for update in heard} == {("t-1", PENDING)}
        assert len({update.created_at for update in heard}) == 1
        assert all(update.updated_at for update in heard)
    assert swarm.count_followers() == 0


@within(10)
async def test_reports_of_a_task_that_is_tried_again(swarm: Swarm) -> None:
    """Every attempt is heard of, and the publisher announces one end."""

    async def fail_once(message: Message) -> None:
        task = current_task()
        await task.report(None, f"attempt {task.attempt}")
        if task.attempt == 1:
            raise RetryTask(delay=0)

    async with (
        MemoryPublisher() as publisher,
        publisher.subscribe("t-1") as announced,
        swarm.worker() as worker,
        swarm.dispatcher() as dispatcher,
    ):
        publish_results(worker, publisher)
        future = await dispatcher.start("coder", Message(id="t-1", max_attempts=2))
        async with future.updates() as updates:
            await worker.handle("coder", fail_once)
            heard = [update async for update in updates]
        ends = [update.status async for update in announced if update.status is not PENDING]
    assert notes(heard) == ["attempt 1", "attempt 2"]
    assert [(update.metadata or {})["attempt"] for update in heard] == ["1", "2"]
    assert ends == [SUCCESS]


@within(10)
async def test_what_a_report_holds(swarm: Swarm) -> None:
    go = trio.Event()

    async def handle(message: Message) -> None:
        task = current_task()
        await go.wait()
        await task.report(None)
        await task.report(0, metadata=MappingProxyType({"step": "1"}))
        await task.report(1, "all of it")

    async with swarm.worker(name="ada") as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        future = await dispatcher.start("coder", Message())
        async with future.updates() as updates:
            go.set()
            told = [update.metadata for update in await collect(updates)]
    who = {"agent": "ada", "attempt": "1"}
    assert told == [
        who,
        {**who, "progress": "0", "step": "1"},
        {**who, "progress": "1", "note": "all of it"},
    ]


BAD: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (("half",), {}, TypeError, "progress must be a number from 0 to 1, or None, not 'half'"),
    ((True,), {}, TypeError, "progress must be a number"),
    ((1.01,), {}, ValueError, "progress must be from 0 to 1, not 1.01"),
    ((-1,), {}, ValueError, "progress must be from 0 to 1, not -1"),
    ((float("nan"),), {}, ValueError, "progress must be from 0 to 1, not nan"),
    ((0.5, 7), {}, TypeError, "note must be a string, not 7"),
    ((0.5, "\ud800"), {}, InvalidMessageError, "a report holds text that is not Unicode"),
    ((0.5,), {"metadata": {"step": 1}}, TypeError, r"metadata \{'step': 1\} must be of strings"),
    ((0.5,), {"metadata": "step"}, TypeError, "metadata 'step' must be of strings"),
    ((0.5,), {"metadata": {"note": "x"}}, ValueError, "can't hold 'note'"),
    ((0.5, "x" * 2_000_000), {}, InvalidMessageError, "larger than"),
]


@pytest.mark.parametrize(("args", "settings", "error", "text"), BAD)
@within(10)
async def test_report_that_can_not_be(
    swarm: Swarm,
    args: tuple[Any, ...],
    settings: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    """The handler hears of it, and can go on."""

    async def handle(message: Message) -> str:
        with pytest.raises(error, match=text):
            await current_task().report(*args, **settings)
        return "went on"

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        assert (await dispatcher.run("coder", Message())).outputs == "went on"


@within(10)
async def test_report_is_a_checkpoint(swarm: Swarm) -> None:
    """So that a handler that reports without pause keeps nobody from anything."""

    async def handle(message: Message) -> None:
        with assert_checkpoints():
            await current_task().report(0.5)
        for _ in range(2000):
            await current_task().report(0.5)

    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        await worker.handle("coder", handle)
        result = await dispatcher.run("coder", Message())
        assert result.status == Status.SUCCESS


@within(10)
async def test_report_in_the_clean_up_of_a_cancelled_task(swarm: Swarm) -> None:
    """It has its result: nobody hears of it, and nothing is broken."""
    began, cleaned = trio.Event(), trio.Event()

    async def handle(message: Message) -> None:
        try:
            await current_task().report(0.1)
            began.set()
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(5, shield=True):
                await current_task().report(0.2)
                cleaned.set()

    async with (
        MemoryPublisher() as publisher,
        publisher.subscribe("t-1") as updates,
        swarm.worker() as worker,
        swarm.dispatcher() as dispatcher,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", handle)
        future = await dispatcher.start("coder", Message(id="t-1"))
        await began.wait()
        await future.cancel()
        await cleaned.wait()
        told = [(update.metadata or {}).get("progress") async for update in updates]
        assert "0.2" not in told
