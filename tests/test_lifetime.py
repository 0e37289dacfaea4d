"""Calls that end when what they belong to is closed."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from trio_swarmtask import ClosedError
from trio_swarmtask._sync import Lifetime


def closed() -> ClosedError:
    return ClosedError("closed")


async def test_call_gives_its_value() -> None:
    async def give() -> int:
        await trio.lowlevel.checkpoint()
        return 42

    lifetime = Lifetime()
    assert await lifetime.run(give) == 42
    lifetime.check()
    assert not lifetime.is_over


async def test_end_cancels_what_waits_and_refuses_the_rest() -> None:
    """The first end counts."""
    lifetime = Lifetime()

    async def wait() -> None:
        with pytest.raises(ClosedError, match="closed"):
            await lifetime.run(trio.sleep_forever)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        lifetime.end(closed)
        lifetime.end(ValueError)
    assert lifetime.is_over
    with pytest.raises(ClosedError):
        lifetime.check()
    with pytest.raises(ClosedError):
        await lifetime.run(trio.sleep_forever)


async def test_cancellation_from_outside_is_one() -> None:
    lifetime = Lifetime()
    with trio.move_on_after(0) as scope:
        await lifetime.run(trio.sleep_forever)
    assert scope.cancelled_caught
    lifetime.end(closed)  # nothing is left to end


async def test_own_error_comes_out() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        await Lifetime().run(fail)


async def test_what_lies_below_is_closed_after_it() -> None:
    """And then meets a call that runs on: whoever called is told what they know of."""

    class BelowClosedError(trio.ClosedResourceError): ...

    lifetime = Lifetime()

    async def meet(*, ending: bool) -> None:
        await trio.lowlevel.checkpoint()
        if ending:
            lifetime.end(closed)
        raise BelowClosedError

    with pytest.raises(BelowClosedError):
        await lifetime.run(partial(meet, ending=False))
    with pytest.raises(ClosedError, match="closed"):
        await lifetime.run(partial(meet, ending=True))
