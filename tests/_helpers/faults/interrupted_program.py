# Programs that end by Ctrl-C: `python interrupted_program.py <settings as JSON>`.
#
# One Trio run after another in one process, each of which uses all there is of a dispatcher and a
# worker, and is interrupted once: at the first entry of a function of the package, or after some
# seconds. A line for each says where, how it ended, and which tasks it had started. A run that has
# not ended after `SECONDS` hangs: its stack goes to the standard error, and the process ends.
#
#     {"url": "nats://…"}                       the entries that there are, one a line
#     {"url": …, "entries": ["file:name", …]}   an interrupt at each of these
#     {"url": …, "moments": [0.113, …]}         after so many seconds of a run
#     {…, "again": true}                        second ones: a run interrupts itself first

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

sys.path.insert(0, str(Path(__file__).parents[3]))

import trio_swarmtask
from tests._helpers.public_api import use_public_api_if_asked
from trio_swarmtask import (
    Dispatcher,
    Message,
    NATSConfig,
    Retry,
    RetryTask,
    current_task,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._util import leaves

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, FrameType

SECONDS = 15
PACKAGE = str(Path(trio_swarmtask.__file__).parent)


def entry_of(code: CodeType) -> str:
    return f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_firstlineno}:{code.co_qualname}"


class Entries:
    """Interrupts the program at the first entry of ``wanted``; notes all entries."""

    def __init__(self, wanted: str = "", *, begun: bool = True) -> None:
        self.wanted = wanted
        self.seen: dict[str, None] = {}
        self.hit = False
        self.begun = begun

    def __call__(self, frame: FrameType, event: str, function: object) -> None:
        code = frame.f_code
        if event == "c_call" and not self.begun:
            self.begun = function is signal.raise_signal
        elif event == "call" and self.begun and code.co_filename.startswith(PACKAGE):
            entry = entry_of(code)
            self.seen[entry] = None
            if entry == self.wanted and not self.hit:
                self.hit = True
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)


async def handle(message: Message) -> dict[str, Any]:
    task = current_task()
    await task.report(0.5, "half")
    if message.inputs.get("retry") and task.attempt == 1:
        raise RetryTask("once more", delay=0)
    if message.inputs.get("child"):
        await (await task.dispatcher()).run("coder", Message())
    await trio.lowlevel.checkpoint()
    for _ in range(30 if message.inputs.get("long") else 0):
        await task.report(0.5, "half")
        await trio.sleep(0.01)
    return dict(message.inputs)


async def use(dispatcher: Dispatcher, ids: list[str]) -> None:
    async def start(message: Message) -> trio_swarmtask.Future:
        future = await dispatcher.start("coder", message)
        ids.append(future.id)
        return future

    future = await start(Message())
    await future.wait()
    await dispatcher.run("coder", Message(inputs={"child": "1"}))
    await dispatcher.run("coder", Message(inputs={"retry": "1"}, max_attempts=2))
    future = await start(Message(inputs={"long": "1"}))
    async with future.updates() as updates:
        async for _ in updates:
            break
    await future.cancel()
    await (await start(Message())).wait()
    async with dispatcher.open_group() as group:
        await group.start("coder", Message())
        await group.run("coder", Message())
    with trio.CancelScope() as scope:
        async with dispatcher.open_group(grace=1) as group:
            for _ in range(3):
                await group.start("coder", Message(inputs={"long": "1"}))
            scope.cancel()
    messages = [Message(inputs={"n": str(number)}) for number in range(6)]
    async with dispatcher.map("coder", messages, limit=3) as results:
        async for _ in results:
            pass


async def program(url: str, ids: list[str], again: bool, until_interrupted: bool) -> None:
    async with (
        open_broker(NATSConfig(url, ack_wait=2)) as broker,
        open_worker(broker) as worker,
        open_dispatcher(broker) as dispatcher,
    ):
        await worker.handle("coder", handle, retry=Retry(first_delay=0.01))
        await use(dispatcher, ids)
        while until_interrupted:
            await use(dispatcher, ids)
        if again:
            for number in range(4):
                await dispatcher.start("coder", Message(inputs={"long": f"{number}"}))
            async with dispatcher.open_group() as group:
                await group.start("coder", Message(inputs={"long": "1"}))
                signal.raise_signal(signal.SIGINT)
        await worker.shutdown(2)


def how_it_ended(url: str, ids: list[str], again: bool, until_interrupted: bool = False) -> str:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        trio.run(program, url, ids, again, until_interrupted)
    except BaseException as exc:  # noqa: ASYNC103, BLE001 - that is what is looked for
        others = [leaf for leaf in leaves(exc) if not isinstance(leaf, KeyboardInterrupt)]
        if not others:
            return "interrupted"  # noqa: ASYNC104 - Trio has ended by then
        traceback.print_exception(exc)
        problems = sorted({f"{type(leaf).__name__}: {leaf}" for leaf in others})
        return ", ".join(problems)  # noqa: ASYNC104 - see above
    finally:
        sys.setprofile(None)
        faulthandler.cancel_dump_traceback_later()
    return "ended"


def say(*words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def interrupt_at(entry: str, url: str, again: bool) -> None:
    entries, ids = Entries(entry, begun=not again), []
    sys.setprofile(entries)
    outcome = how_it_ended(url, ids, again)
    say(entry, outcome if entries.hit else "not reached", ids)


def interrupt_after(seconds: float, url: str) -> None:
    ids: list[str] = []
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    try:
        outcome = how_it_ended(url, ids, again=False, until_interrupted=True)
        timer.join()
    except KeyboardInterrupt:
        outcome = "before its run"
    say(f"{seconds}", outcome, ids)


def main(
    *,
    url: str,
    entries: Sequence[str] | None = None,
    moments: Sequence[float] = (),
    again: bool = False,
) -> None:
    use_public_api_if_asked()
    warnings.simplefilter("error")
    how_it_ended(url, [], again)  # loads what is loaded when it is first used
    if entries is None and not moments:
        found = Entries(begun=not again)
        sys.setprofile(found)
        how_it_ended(url, [], again)
        say(list(found.seen))
    for entry in entries or []:
        interrupt_at(entry, url, again)
    for moment in moments:
        interrupt_after(moment, url)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
