"""Where a Ctrl-C is raised: in handlers, and at checkpoints; never within the library."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import signal
import sys
from typing import TYPE_CHECKING, cast

import pytest
import trio

import trio_swarmtask
from trio_swarmtask import MemoryBroker, Message, open_dispatcher, open_worker
from trio_swarmtask._interrupts import block, codes_of
from trio_swarmtask._worker._runner import JobRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import CodeType, FrameType


pytestmark = pytest.mark.usefixtures("ctrl_c")


def all_codes() -> set[CodeType]:
    for module in pkgutil.walk_packages(trio_swarmtask.__path__, "trio_swarmtask."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    modules = [module for name, module in sys.modules.items() if name.startswith("trio_swarmtask")]
    return {code for module in modules for code in codes_of(module)}


async def use(broker: MemoryBroker) -> None:
    async def handle(message: Message) -> str:
        await trio.lowlevel.checkpoint()
        return "done"

    async with open_worker(broker) as worker, open_dispatcher(broker) as dispatcher:
        await worker.handle("coder", handle)
        await dispatcher.run("coder", Message())
        async with dispatcher.open_group() as group:
            await group.start("coder", Message())
        async with dispatcher.map("coder", [Message()] * 3, limit=2) as results:
            async for _ in results:
                pass


def test_all_functions_are_protected() -> None:
    """Every one that a program calls, but for the one that calls the handlers."""
    known, seen = all_codes(), cast("dict[CodeType, bool]", {})

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in known and frame.f_code not in seen:
            seen[frame.f_code] = trio.lowlevel.currently_ki_protected()

    sys.setprofile(look)
    try:
        trio.run(use, MemoryBroker())
    finally:
        sys.setprofile(None)
    assert len(seen) > 200
    assert [code for code in seen if not seen[code]] == [JobRunner.handle.__code__]


def test_all_kinds_of_functions_are_found() -> None:
    names = {code.co_qualname for code in all_codes()}
    assert names >= {
        "open_worker",  # made by a decorator
        "Future.id",  # a property
        "Message.decode",  # of a class
        "drain_in_batches.<locals>.run_batch",  # nested
        "Worker._cut_short",
    }


def test_handler_is_interrupted_at_once() -> None:
    """It may be busy, without a checkpoint, for as long as it likes."""
    came_on = False

    async def handle(message: Message) -> None:
        nonlocal came_on
        signal.raise_signal(signal.SIGINT)
        came_on = True

    async def main() -> None:
        broker = MemoryBroker()
        async with open_worker(broker) as worker, open_dispatcher(broker) as dispatcher:
            await worker.handle("coder", handle)
            await dispatcher.run("coder", Message())

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert not came_on


def test_end_of_a_block_is_not_interrupted() -> None:
    """Before its own code runs: the frames of contextlib are ours to protect."""
    events: list[str] = []
    end = (contextlib.__file__, "__aexit__")

    @block
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        try:
            yield
        finally:
            events.append("end")

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (frame.f_code.co_filename, frame.f_code.co_name) == end:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        try:
            async with opened():
                sys.setprofile(interrupt)
            await trio.lowlevel.checkpoint()
        except KeyboardInterrupt:
            events.append("interrupt")

    trio.run(main)
    assert events == ["end", "interrupt"]
