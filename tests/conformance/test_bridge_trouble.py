"""A publisher that fails, hangs or is slow is in nobody's way, on both brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import (
    Message,
    Status,
)
from trio_swarmtask.results import (
    InvalidResultError,
    MemoryPublisher,
    Result,
    _bridge,
    publish_results,
)

if TYPE_CHECKING:
    import pytest


@within(10)
async def test_publisher_that_fails_keeps_no_task_from_being_done(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = MemoryPublisher()
    await publisher.aclose()
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message(id="t-1"))).status == Status.SUCCESS
    logged = [text for text in caplog.messages if "announce" in text]
    assert logged == ["could not announce task t-1: the publisher is closed; open another one"] * 2


@within(10)
async def test_publisher_that_hangs_keeps_no_task_from_being_done(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(task_id: str, result: Result) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(_bridge, "_SECONDS", 0.1)
    publisher = MemoryPublisher()
    monkeypatch.setattr(publisher, "publish", hang)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        assert (await dispatcher.run("coder", Message())).status == Status.SUCCESS
    [told] = {text.partition(": ")[2] for text in caplog.messages if "announce" in text}
    assert told == "the worker was closed, or it took too long"


@within(10)
async def test_publisher_that_takes_no_result_at_all(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing to leave out."""

    async def refuse(task_id: str, result: Result) -> None:
        raise InvalidResultError("too large")

    publisher = MemoryPublisher()
    monkeypatch.setattr(publisher, "publish", refuse)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo)
        await dispatcher.run("coder", Message(id="t-1", inputs={"a": "b"}))
    told = [text for text in caplog.messages if "announce" in text]
    assert told == ["could not announce task t-1: too large"] * 2


@within(10)
async def test_announcing_is_not_in_the_way(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks go on while nothing can be announced, and a shutdown is not late for it."""

    async def hang(task_id: str, result: Result) -> None:
        await trio.sleep_forever()

    publisher = MemoryPublisher()
    monkeypatch.setattr(publisher, "publish", hang)
    async with swarm.worker() as worker, swarm.dispatcher() as dispatcher:
        publish_results(worker, publisher)
        await worker.handle("coder", echo, max_in_flight=1)
        for number in range(5):
            await dispatcher.run("coder", Message(id=f"t-{number}"))
        await worker.shutdown(0.1)
    failed = [text.split()[4] for text in caplog.messages if "announce" in text]
    assert sorted(failed) == [f"t-{number}:" for number in range(5)]  # none without a word
