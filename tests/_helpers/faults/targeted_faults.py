# Faults at a chosen moment, each aimed at one guarantee: test_cases.py runs them on the
# product, test_can_fail.py on the product without that guarantee.
#
# `broken` names the mutant that the workers run with; "" is none.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tests._helpers.faults.ledger import demand, tasks_state
from tests._helpers.plain_nats import PlainClient, open_plain_client
from tests._helpers.proxy import open_proxy
from trio_swarmtask import Message, NATSConfig, open_dispatcher

if TYPE_CHECKING:
    from tests._helpers.faults.deployment import Arena

# Seconds in which something forbidden has its chance to happen.
MOMENT = 1.0


async def result_is_refused(arena: Arena, broken: str) -> None:
    """The stream of results has no room, and the worker dies before there is some."""
    async with open_plain_client(arena.server.port) as client:
        await arena.limit_results(client, 1)
        worker = await arena.add_worker(broken=broken)
        await arena.run()
        await arena.start()
        with trio.move_on_after(5):  # a broken one does not notice
            while "trying again" not in worker.log:  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.02)
        await worker.kill()
        await arena.limit_results(client, -1)
        await arena.add_worker()
        await queue_is_empty(client)


async def task_is_cut_from_its_puback(arena: Arena, broken: str) -> None:
    async with (
        open_proxy(arena.server.port) as proxy,
        open_dispatcher(NATSConfig(proxy.url)) as dispatcher,
    ):
        proxy.cut_at_answer(b'"stream":"TASKS"')
        future = await arena.start(0, dispatcher)
        await arena.add_worker(broken=broken)
        await arena.wait(future)


async def somebody_else_is_first(arena: Arena, broken: str) -> None:
    """Another program stores the result while a handler runs; the stream would take both."""
    async with open_plain_client(arena.server.port) as client:
        config = (await client.api("STREAM.INFO.TASK_RESULTS"))["config"]
        several = {"max_msgs_per_subject": -1, "discard_new_per_subject": False}
        await client.api("STREAM.UPDATE.TASK_RESULTS", **{**config, **several})
        # In a round of renewal it would look, and find the other result before it has its own.
        worker = await arena.add_worker(broken=broken, ack_wait=10 * MOMENT)
        future = await arena.start(MOMENT)
        await worker.wait_running()
        other = {"version": 1, "id": future.id, "status": "success", "agent": worker.name}
        await client.request(f"done.{future.id}", other | {"attempt": 1, "duration": 0})
        await queue_is_empty(client)


async def handler_is_long(arena: Arena, broken: str) -> None:
    await arena.add_workers(2, ack_wait=1, broken=broken)
    with trio.move_on_after(8):
        await arena.run(3)
    demand(len(arena.ledger.got) == 1, "a long handler never came to its end")


async def result_is_missed(arena: Arena, broken: str) -> None:
    """The dispatcher is away when its result is stored."""
    async with (
        open_proxy(arena.server.port) as proxy,
        open_dispatcher(NATSConfig(proxy.url)) as dispatcher,
    ):
        future = await arena.start(0, dispatcher)
        proxy.cut(for_good=True)
        await arena.add_worker(broken=broken)
        async with open_plain_client(arena.server.port) as client:
            await queue_is_empty(client)
        proxy.mend()
        with trio.move_on_after(5):
            await arena.wait(future)


async def task_is_poison(arena: Arena, broken: str) -> None:
    await arena.add_worker(broken=broken)
    async with open_plain_client(arena.server.port) as client:
        arena.ledger.poison.add("poison")
        await client.request("work.work.poison", {"version": "one"})
        await queue_is_empty(client)


async def task_is_newer(arena: Arena, broken: str) -> None:
    await arena.add_worker(broken=broken)
    async with open_plain_client(arena.server.port) as client:
        await client.request("work.work.newer", {"version": 99, "id": "newer"})
        await trio.sleep(MOMENT)
        delivered = (await durable(client))["delivered"]["consumer_seq"]
        await client.api("STREAM.PURGE.TASKS")
    arena.ledger.leftover.add("newer")
    demand(delivered <= 2, f"a task for newer workers was delivered {delivered} times in 1 s")


async def worker_is_busy(arena: Arena, broken: str) -> None:
    worker = await arena.add_worker(max_in_flight=2, broken=broken)
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(arena.run, MOMENT)
        await worker.wait_running(2)
        async with open_plain_client(arena.server.port) as client:
            await trio.sleep(MOMENT / 4)
            held = (await durable(client))["num_ack_pending"]
    demand(held == 2, f"a worker with two places holds {held} tasks")


async def queue_is_full(arena: Arena, broken: str) -> None:
    """There is no room for a task, and its caller gives up."""
    async with open_plain_client(arena.server.port) as client:
        settings = {"subjects": ["work.>"], "retention": "workqueue", "discard": "new"}
        await client.api("STREAM.CREATE.TASKS", name="TASKS", max_msgs=1, **settings)
        await arena.start()
        arena.ledger.leftover.add("no-room")
        with trio.move_on_after(MOMENT):
            await arena.dispatcher.start("work", Message(id="no-room"))
            arena.ledger.sent.add("no-room")
        await arena.add_worker(broken=broken)
        await queue_is_empty(client)


async def worker_leaves(arena: Arena, broken: str) -> None:
    """It gives its tasks back, and nobody else is there to take them."""
    worker = await arena.add_worker(max_in_flight=4, broken=broken)
    # One handler cleans up for a while: the others' tasks must not come in again meanwhile.
    futures = [await arena.start(60 * MOMENT) for _ in range(2)]
    futures.append(await arena.start(60 * MOMENT, clean_up=f"{MOMENT}"))
    await worker.wait_running(3)
    worker.terminate()
    demand(await worker.wait() == 0, f"the worker failed: {worker.log}")
    async with open_plain_client(arena.server.port) as client:
        delivered = (await durable(client))["delivered"]["consumer_seq"]
        await client.api("STREAM.PURGE.TASKS")
    demand(delivered == len(futures), f"three tasks were delivered {delivered} times")
    arena.ledger.sent.clear()
    arena.ledger.leftover = {future.id for future in futures}


async def server_has_forgotten(arena: Arena, broken: str) -> None:
    """A task is done, and a server that was killed offers it as new."""
    worker = await arena.add_worker(max_in_flight=1, ack_wait=30, broken=broken)
    first = await arena.start(3 * MOMENT)
    await worker.wait_running()
    future = await arena.start()
    async with open_plain_client(arena.server.port) as client:
        done = {"version": 1, "id": future.id, "status": "success", "agent": "another"}
        await client.request(f"done.{future.id}", done | {"attempt": 1, "duration": 0})
    await arena.server.kill()
    await trio.sleep(MOMENT)  # so that what runs then, clearly runs after its result
    await arena.server.start()
    await arena.wait(first)
    async with open_plain_client(arena.server.port) as client:
        await queue_is_empty(client)


async def push_is_missed(arena: Arena, broken: str) -> None:
    """A task is cancelled while its worker is away."""
    async with open_proxy(arena.server.port) as proxy:
        worker = await arena.add_worker(url=proxy.url, ack_wait=30, broken=broken)
        future = await arena.start(60 * MOMENT)
        await worker.wait_running()
        proxy.cut(for_good=True)
        await future.cancel()
        await arena.wait(future)
        proxy.mend()
        with trio.move_on_after(5 * MOMENT):
            while worker.running:  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.02)
    demand(not worker.running, "a handler runs on, though its task was cancelled")


async def queue_is_empty(client: PlainClient) -> None:
    """Wait until there is no task left."""
    with trio.move_on_after(10):
        while (await tasks_state(client))["messages"]:  # noqa: ASYNC110 - no event
            await trio.sleep(0.02)


async def durable(client: PlainClient) -> dict[str, Any]:
    return await client.api("CONSUMER.INFO.TASKS.work-work")


# By mutant: the case that must notice it.
CASES = {
    "ack_before_the_results_puback": result_is_refused,
    "result_published_without_waiting": result_is_refused,
    "no_msg_id": task_is_cut_from_its_puback,
    "no_first_result_rule": somebody_else_is_first,
    "no_lease_renewal": handler_is_long,
    "no_look_up_after_reconnect": result_is_missed,
    "no_dead_letter": task_is_poison,
    "newer_version_without_delay": task_is_newer,
    "more_held_than_max_in_flight": worker_is_busy,
    "start_before_the_puback": queue_is_full,
    "give_back_while_the_pull_stands": worker_leaves,
    "no_look_up_after_a_servers_death": server_has_forgotten,
    "no_look_for_cancellations": push_is_missed,
}
