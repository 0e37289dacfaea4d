"""What is handed in is copied, and what is handed out is a copy; on every publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests._helpers.brokers import within
from tests._helpers.publishers import rest
from trio_swarmtask.results import Result, ResultFilter, ResultStatus

if TYPE_CHECKING:
    from trio_swarmtask.results import ResultPublisher, Subscription


def spoil(result: Result) -> None:
    assert result.metadata == {"model": "m"}
    result.metadata["model"] = "spoilt"
    result.metadata["more"] = "spoilt"


@within(10)
async def test_metadata_passed_in(publisher: ResultPublisher) -> None:
    """Changed after `publish`, it changes neither what is stored nor what readers get."""
    given = Result(status=ResultStatus.SUCCESS, metadata={"model": "m"})
    async with publisher.subscribe("t1") as updates:
        await publisher.publish("t1", given)
        spoil(given)
        assert [update.metadata for update in await rest(updates)] == [{"model": "m"}]
    assert (await publisher.get("t1")).metadata == {"model": "m"}


@within(10)
async def test_bytearray_passed_in(publisher: ResultPublisher) -> None:
    """It is as good as bytes, and what is stored can't change any more."""
    output: Any = bytearray(b"before")
    await publisher.publish("t1", Result(status=ResultStatus.SUCCESS, output=output))
    output[:] = b"after!"
    got = await publisher.get("t1")
    assert got.output == b"before"
    assert type(got.output) is bytes


@within(10)
async def test_metadata_from_get(publisher: ResultPublisher) -> None:
    await publisher.publish("t1", Result(status=ResultStatus.SUCCESS, metadata={"model": "m"}))
    spoil(await publisher.get("t1"))
    spoil(await publisher.get("t1"))
    async with publisher.subscribe("t1") as updates:
        spoil(await anext(updates))


@within(10)
async def test_metadata_from_list(publisher: ResultPublisher) -> None:
    for status in ResultStatus:
        await publisher.publish(status, Result(status=status, metadata={"model": "m"}))
    for _ in range(2):
        for result in await publisher.list():
            spoil(result)
    assert len(await publisher.list(ResultFilter(metadata={"model": "m"}))) == 3


@within(10)
async def test_metadata_from_an_iteration(publisher: ResultPublisher) -> None:
    """Of what was stored, and of an update; nobody else sees the change."""

    async def check(*subscriptions: Subscription) -> None:
        for updates in subscriptions:
            spoil(await anext(updates))
        spoil(await publisher.get("t1"))

    await publisher.publish("t1", Result(status=ResultStatus.PENDING, metadata={"model": "m"}))
    async with publisher.subscribe("t1") as one, publisher.subscribe("t1") as two:
        await check(one, two)
        async with publisher.subscribe("t1") as three:
            await check(three)
            await publisher.publish(
                "t1", Result(status=ResultStatus.SUCCESS, metadata={"model": "m"})
            )
            await check(one, two, three)
