"""An orchestrator: plan, research in parallel, write, review, all within one deadline.

    python examples/orchestrator.py GOAL [nats://host:port]

Each step is a task for whichever worker has the capability, and all of them are children of one
group: they end before its block does, however that is left. One researcher loses its connection,
and its task is tried again; another one gets stuck, is cancelled where it runs, and somebody is
asked anew. The agents share this program's connection here; they might as well be on other
machines. Without a URL the server is that of NATS_URL, else nats://127.0.0.1:4222.
"""

from __future__ import annotations

import sys

import msgspec
import trio

from trio_swarmtask import (
    Dispatcher,
    Message,
    Retry,
    TaskFailedError,
    TaskGroup,
    TaskTimeoutError,
    Worker,
    current_task,
    open_broker,
    open_dispatcher,
    open_worker,
)

DEADLINE = 30.0
"""Seconds for all of it. It goes out with each task, so no agent works longer, either."""

PATIENCE = 1.0
"""Seconds for one researcher."""


# The orchestrator


async def orchestrate(dispatcher: Dispatcher, goal: str) -> str:
    """The reviewed text."""
    async with dispatcher.open_group() as group:
        planned = await group.run("planner", Message(inputs={"goal": goal}))
        topics = planned.outputs_as(list[str])
        notes: dict[str, str] = {}
        async with trio.open_nursery() as nursery:
            for topic in topics:
                nursery.start_soon(research, group, topic, notes)
        written = await group.run("writer", Message(inputs={"goal": goal}, prior={"notes": notes}))
        reviewed = await group.run(
            "reviewer", Message(prior={written.id: written.outputs}, parent=written.id)
        )
        return reviewed.outputs_as(str)


async def research(group: TaskGroup, topic: str, notes: dict[str, str]) -> None:
    """Ask researchers for a note until one gives it in time."""
    while topic not in notes:
        message = Message(inputs={"topic": topic}, max_attempts=3)
        future = await group.start("researcher", message)
        with trio.move_on_after(PATIENCE):
            async for update in future.updates():
                show(topic, (update.metadata or {}).get("note", ""))
            notes[topic] = (await future.wait()).outputs_as(str)
            show(topic, "done")
            return
        await future.cancel()  # at its worker, too; the group takes this for no failure
        show(topic, "no answer in time: cancelled, and somebody else is asked")


def show(topic: str, text: str) -> None:
    print(f"{topic:>12}  {text}", flush=True)


# The agents


async def plan(message: Message) -> list[str]:
    return ["nurseries", "deadlines", f"{message.inputs['goal']}"]


class Researchers:
    """They have a bad day: each of the first two who look for these topics has bad luck."""

    def __init__(self) -> None:
        self.flaky, self.stuck = {"nurseries"}, {"deadlines"}

    async def __call__(self, message: Message) -> str:
        topic = message.inputs["topic"]
        task = current_task()
        await task.report(0.0, f"attempt {task.attempt}: in the library")
        await trio.sleep(0.1)  # stands for the work
        if topic in self.flaky:
            self.flaky.remove(topic)
            raise ConnectionError("the library has closed the connection")
        if topic in self.stuck:
            self.stuck.remove(topic)
            await trio.sleep_forever()
        await task.report(0.5, "found a book")
        await trio.sleep(0.1)
        return f"all about {topic}"


class Draft(msgspec.Struct):
    """What the writer gives."""

    title: str
    paragraphs: list[str]


async def write(message: Message) -> Draft:
    notes = message.prior_as("notes", dict[str, str])
    return Draft(message.inputs["goal"].title(), [f"{note}." for note in notes.values()])


async def review(message: Message) -> str:
    draft = message.prior_as(message.parent, Draft)
    return "\n".join([draft.title, *(text.capitalize() for text in sorted(draft.paragraphs))])


async def employ(worker: Worker) -> None:
    """Put the agents to work."""
    await worker.handle("planner", plan)
    await worker.handle("researcher", Researchers(), retry=Retry(on=OSError, first_delay=0.1))
    await worker.handle("writer", write)
    await worker.handle("reviewer", review)


async def main(goal: str, url: str | None) -> None:
    async with (
        open_broker(url) as broker,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        await employ(worker)
        try:
            with trio.fail_after(DEADLINE):
                print(await orchestrate(dispatcher, goal))
        except* (TaskFailedError, TaskTimeoutError) as failures:
            for failure in failures.exceptions:
                print(f"given up: {failure}", file=sys.stderr)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
