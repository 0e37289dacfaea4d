"""Tasks that are cancelled together, in a nursery that goes on."""

from __future__ import annotations

import trio
import trio.testing

from trio_swarmtask._sync import Background


async def test_are_cancelled_together() -> None:
    ended: list[str] = []

    async def wait(name: str, running: trio.Event) -> None:
        try:
            running.set()
            await trio.sleep_forever()
        finally:
            ended.append(name)

    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        for name in ("a", "b"):
            running = trio.Event()
            background.start_soon(wait, name, running)
            await running.wait()
        background.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(ended) == ["a", "b"]
        background.start_soon(ended.append, "c")  # nothing is started any more
        background.cancel()
    assert sorted(ended) == ["a", "b"]


async def test_begun_and_cancelled_at_once() -> None:
    """Before the task had its first turn."""
    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        background.start_soon(trio.sleep_forever)
        background.cancel()


async def test_start_while_the_nursery_is_cancelled() -> None:
    """Whoever is shielded may go on to start some."""
    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        background.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            background.start_soon(trio.sleep_forever)
