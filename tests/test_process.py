# `open_process`, with small Python programs as the children.
#
# A child that is to be ended by its block waits for that in `signal.pause`. One that is ended while
# it exits by itself leaves half a file of coverage data behind.

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trio

from trio_swarmtask import _process
from trio_swarmtask._process import KEPT_LINES, LINE_BYTES, open_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from trio_swarmtask._process import Process

WAIT = "import signal; print('ready', flush=True); signal.pause()"
# SIGTERM does not end it: it says so, and waits on. (By `os.write`, for the signal may come in the
# middle of the `print`, and a print in a print is an error.)
STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"not yet\\n"))
print("ready", flush=True)
while True:
    signal.pause()
"""


def says_ready(line: str) -> bool:
    return line == "ready"


def run(
    program: str, on_line: Callable[[str], bool] = says_ready
) -> AbstractAsyncContextManager[Process]:
    return open_process("child", [sys.executable, "-c", program], on_line)


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even one that waits to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_ready_then_ended_with_the_block() -> None:
    """The block starts with a running process and leaves none; SIGTERM is enough."""
    with trio.fail_after(10):
        async with run(WAIT) as process:
            assert await process.wait_ready(10) == ""
            assert process.returncode is None
            assert not is_gone(process.pid)
            # A terminal's Ctrl-C, which goes to our group, does not reach it.
            assert os.getpgid(process.pid) == process.pid
    assert process.returncode == -signal.SIGTERM
    assert is_gone(process.pid)


async def test_ended_before_ready() -> None:
    """The reason holds the status and the last lines of both outputs, unfinished ones too."""
    program = "import sys; print('one'); print(); sys.stderr.write('two'); sys.exit(3)"
    with trio.fail_after(10):
        async with run(program) as process:
            reason = await process.wait_ready(10)
    assert reason.startswith("child ended with status 3 before it was ready")
    assert {"  one", "  two"} == set(reason.splitlines()[1:])


async def test_not_ready_in_time() -> None:
    """A process that says nothing is given up on, and ended."""
    with trio.fail_after(10):
        async with run("import signal; signal.pause()") as process:
            reason = await process.wait_ready(0.01)
    assert reason.startswith("child was not ready within 0.01 seconds")
    assert reason.endswith("(none)")
    assert is_gone(process.pid)


async def test_killed_in_the_middle() -> None:
    """A process that somebody kills is reaped like any other."""
    with trio.fail_after(10):
        async with run(WAIT) as process:
            assert await process.wait_ready(10) == ""
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert is_gone(process.pid)


async def test_killed_if_it_ignores_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM first; SIGKILL when the time is over."""
    monkeypatch.setattr(_process, "END_SECONDS", 0.2)
    with trio.fail_after(10):
        async with run(STUBBORN) as process:
            assert await process.wait_ready(10) == ""
    assert process.returncode == -signal.SIGKILL
    assert is_gone(process.pid)


async def test_block_exception_is_not_wrapped() -> None:
    """What the block raises comes out as itself, without a context that we added."""
    error = LookupError("mine")
    with trio.fail_after(10):
        with pytest.raises(LookupError) as caught:
            async with run(WAIT) as process:
                raise error
    assert caught.value is error
    assert error.__context__ is None
    assert is_gone(process.pid)


async def test_cancelled_block() -> None:
    """A cancelled block ends its process; until then the output is still read."""
    program = """
import signal
print("ready", flush=True)
for number in range(20_000):
    print(number)
print("written", flush=True)
signal.pause()
"""
    written = trio.Event()

    def on_line(line: str) -> bool:
        if line == "written":
            written.set()
        return line == "ready"

    with trio.fail_after(20), trio.CancelScope() as scope:
        async with run(program, on_line) as process:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await written.wait()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert is_gone(process.pid)


async def test_output_in_bounded_memory() -> None:
    """Of much output the last lines are kept, and of a long line its beginning."""
    program = """
import signal
for number in range(1000):
    print("line", number)
print(1_000_000 * "x")
print("ready", flush=True)
signal.pause()
"""
    with trio.fail_after(10):
        async with run(program) as process:
            assert await process.wait_ready(10) == ""
    assert len(process.last_lines) == KEPT_LINES
    assert list(process.last_lines)[-3:] == ["line 999", LINE_BYTES * "x", "ready"]


async def test_failing_on_line_is_not_swallowed() -> None:
    """A mistake in the reader of the lines shows, and ends the process."""

    def on_line(line: str) -> bool:
        raise LookupError(line)

    with trio.fail_after(10):
        with pytest.raises(LookupError, match="ready"):
            async with run(WAIT, on_line) as process:
                await trio.sleep_forever()
    assert is_gone(process.pid)


async def test_missing_program() -> None:
    """A program that can't be started is the system's own error."""
    with pytest.raises(FileNotFoundError):
        async with open_process("child", ["/no/such/program"], says_ready):
            pass  # pragma: no cover, the line above raises


def test_ctrl_c_while_ending() -> None:
    """Ctrl-C while a stubborn process is given its time kills it at once."""
    pids = []

    def on_line(line: str) -> bool:
        if line == "not yet":
            signal.raise_signal(signal.SIGINT)
        return line == "ready"

    async def main() -> None:
        async with run(STUBBORN, on_line) as process:
            pids.append(process.pid)
            assert await process.wait_ready(10) == ""

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert is_gone(pids[0])
    assert time.perf_counter() - started < _process.END_SECONDS
