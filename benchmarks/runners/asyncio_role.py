# Orders carried out in asyncio: for the runners that are asyncio programs
#
# As trio_role.py does it in Trio.

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from role import Order, Stopwatch, read_order, say_ready

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from role import Meter


async def serve_worker(meter: Meter) -> None:
    """Answer the driver until it is done; the work is done elsewhere."""
    say_ready()
    while await asyncio.to_thread(sys.stdin.readline):
        meter.answer()


async def serve_dispatcher(
    run: Callable[[str], Awaitable[None]], start: Callable[[str], Awaitable[None]]
) -> None:
    """Carry out the driver's orders.

    Args:
      run: Sends one task with this text, and waits for its result.
      start: Sends one task with this text.
    """
    say_ready()
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = read_order(line)
        await carry_out(order, run if order.do == "run" else start)


async def carry_out(order: Order, send: Callable[[str], Awaitable[None]]) -> None:
    left, text = order.tasks, order.text

    async def lane() -> None:
        nonlocal left
        while left:
            left -= 1
            since = time.perf_counter()
            await send(text)
            stopwatch.took(since)

    stopwatch = Stopwatch(order)
    await asyncio.gather(*(lane() for _ in range(min(order.in_flight, order.tasks))))
    stopwatch.answer()
