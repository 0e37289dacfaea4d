# Orders carried out in Trio: for the runners that are Trio programs
#
# As many Trio tasks as are to be in flight, each with one task after another.

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import trio
from role import Order, Stopwatch, read_order, say_ready

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from role import Meter


async def serve_worker(meter: Meter) -> None:
    """Answer the driver until it is done; the work is done elsewhere."""
    say_ready()
    while await read_line():
        meter.answer()


async def serve_dispatcher(
    run: Callable[[str], Awaitable[object]], start: Callable[[str], Awaitable[object]]
) -> None:
    """Carry out the driver's orders.

    Args:
      run: Sends one task with this text, and waits for its result.
      start: Sends one task with this text.
    """
    say_ready()
    while line := await read_line():
        order = read_order(line)
        await carry_out(order, run if order.do == "run" else start)


async def read_line() -> str:
    # Abandoned when the program fails meanwhile, so that it ends and its reason is seen.
    return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def carry_out(order: Order, send: Callable[[str], Awaitable[object]]) -> None:
    left, text = order.tasks, order.text

    async def lane() -> None:
        nonlocal left
        while left:
            left -= 1
            since = time.perf_counter()
            await send(text)
            stopwatch.took(since)

    stopwatch = Stopwatch(order)
    async with trio.open_nursery() as nursery:
        for _ in range(min(order.in_flight, order.tasks)):
            nursery.start_soon(lane)
    stopwatch.answer()
