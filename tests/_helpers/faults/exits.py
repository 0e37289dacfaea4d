# What ends other programs, raised out of a handler from all the places where it may come from.

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from trio_swarmtask import Message, current_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Panic(BaseException):
    """As compiled code raises it."""


def parse() -> None:
    argparse.ArgumentParser(exit_on_error=True).parse_args(["--no-such-option"])


async def leave() -> NoReturn:
    sys.exit(3)


async def in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await trio.sleep_forever()


async def in_a_group() -> None:
    dispatcher = await current_task().dispatcher()
    async with dispatcher.open_group() as group:
        await group.start("nobody", Message(id=f"{current_task().message.id}-child"))
        sys.exit(3)


async def in_clean_up() -> None:
    with trio.move_on_after(0.01):
        try:
            await trio.sleep_forever()
        finally:
            sys.exit(3)


@contextmanager
def exiting() -> Iterator[None]:
    yield
    sys.exit(3)


async def at_the_end_of_a_block() -> None:
    with exiting():
        await trio.lowlevel.checkpoint()


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return fail


PLACES: Final[dict[str, Callable[[], Awaitable[None]]]] = {
    "SystemExit": leave,
    "SystemExit in a nursery": in_a_nursery,
    "SystemExit in a group": in_a_group,
    "SystemExit in clean-up": in_clean_up,
    "SystemExit at the end of a block": at_the_end_of_a_block,
    "SystemExit in a thread": lambda: trio.to_thread.run_sync(sys.exit, 3),
    "SystemExit of a parser in a thread": lambda: trio.to_thread.run_sync(parse),
    "GeneratorExit": raising(GeneratorExit()),
    "CancelledError": raising(asyncio.CancelledError()),
    "Panic": raising(Panic("index out of range")),
    "BaseExceptionGroup": raising(BaseExceptionGroup("two", [SystemExit(3), Panic("one")])),
}
