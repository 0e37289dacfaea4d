"""IDs that the library makes: nobody can guess the next one, on both brokers."""

from __future__ import annotations

import re
from typing import Final

import trio

from tests._helpers.brokers import Swarm, echo, within
from trio_swarmtask import Dispatcher, Message, Result, Status, current_task

ID: Final = re.compile(r"([a-z0-9]{12,})-([0-9]+)([a-z0-9]{12})")


def secret_of(task_id: str) -> str:
    match = ID.fullmatch(task_id)
    assert match is not None, task_id
    return match[3]


async def start_some(dispatcher: Dispatcher, count: int) -> list[str]:
    return [(await dispatcher.start("coder", Message())).id for _ in range(count)]


@within(20)
async def test_each_id_has_a_secret_of_its_own(swarm: Swarm) -> None:
    """Those of groups and of handlers' dispatchers as well; and each is new."""
    made: list[str] = []

    async def handle(message: Message) -> None:
        dispatcher = await current_task().dispatcher()
        made.extend(await start_some(dispatcher, 20))

    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("parent", handle)
        made += await start_some(dispatcher, 300)
        for _ in range(2):
            await dispatcher.run("parent", Message())
        async with dispatcher.open_group() as group:
            made.append((await group.start("coder", Message())).id)
            group.cancel_scope.cancel()
        await worker.aclose()
    assert len(set(made)) == len({secret_of(task_id) for task_id in made}) == 341
    assert secret_of(group._tasks.group_id.replace("-group-", "-")) not in "".join(made)
    keys = {task_id.partition("-")[0] for task_id in made}
    assert len(keys) == 2  # the dispatcher's, and that of the worker's own


@within(20)
async def test_next_id_can_not_be_used_up(swarm: Swarm) -> None:
    """By somebody who may start tasks of another capability, and knows the IDs so far.

    The broker would take the next task for one that it knows: `run` would wait for ever.
    """
    async with (
        swarm.dispatcher() as dispatcher,
        swarm.dispatcher() as tenant,
        swarm.worker() as worker,
    ):
        await worker.handle("coder", echo)
        known = (await dispatcher.run("coder", Message())).id
        key, rest = known.split("-")
        guesses = [f"{key}-{number}{rest[1:]}" for number in range(2, 8)]
        guesses += [f"{key}-{number}" for number in range(2, 8)]
        for guess in guesses:
            await tenant.start("tenants", Message(id=guess))
        for _ in range(4):
            result = await dispatcher.run("coder", Message(inputs={"mine": "yes"}))
            assert result.outputs == {"mine": "yes"}
        started = await start_some(dispatcher, 4)
        assert not set(started) & set(guesses)


@within(20)
async def test_next_id_can_not_be_answered(swarm: Swarm) -> None:
    """Before its worker does: the first result counts."""
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        await worker.handle("coder", echo)
        key, rest = (await dispatcher.run("coder", Message())).id.split("-")
        for number in range(2, 8):
            for guess in (f"{key}-{number}", f"{key}-{number}{rest[1:]}"):
                forged = Result(id=guess, status=Status.SUCCESS, outputs="forged")
                await swarm.store_result(guess, forged.encode())
        for _ in range(4):
            result = await dispatcher.run("coder", Message(inputs={"mine": "yes"}))
            assert result.outputs == {"mine": "yes"}


@within(20)
async def test_results_are_heard_by_the_key_alone(swarm: Swarm) -> None:
    """Without a subscription, or a look, for each: an ID has one dash, behind the key."""
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        futures = [await dispatcher.start("coder", Message()) for _ in range(20)]
        assert all(future.id.count("-") == 1 for future in futures)
        assert not any(future._expected for future in futures)
        await worker.handle("coder", echo)
        with trio.fail_after(10):  # what is not heard is looked for after 30 seconds
            for future in futures:
                assert (await future.wait()).status == Status.SUCCESS
