# Child processes that live as long as a block: the server, and the demo's workers.
#
# A process is ready when a line of its output says so; nothing here asks again and again. One task
# reads the output from the start to the end, so the lines before the readiness, which hold the
# reason when there is none, are kept in the same place as those after it.
#
# The child leads a process group of its own. A terminal sends Ctrl-C to every process of the
# foreground group: a server that ended at once would be gone before the program has given back its
# tasks and closed its connections.
#
# Invariants: a process that was started is ended and reaped before its block is left, however it is
# left. What it writes is read all along, so it never waits for a full pipe. The block's own
# exception comes out as it was raised.
#
# If this process itself is killed, nothing of the above can run. So a shell waits beside each child
# for the end of a pipe whose other end only this process holds, and then sends the SIGTERM. (Not
# taken: Linux's PR_SET_PDEATHSIG. Its signal is tied to the thread that forked, prctl(2), and Trio
# forks in a worker thread, which ends when it has been idle for ten seconds.)

from __future__ import annotations

import subprocess
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from ._util import open_flat_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

KEPT_LINES: Final = 50
"""How many of the last lines of the output are kept for an error's message."""
LINE_BYTES: Final = 4096
"""A longer line is cut."""
END_SECONDS: Final = 5.0
"""Seconds between the SIGTERM at the end of the block and the SIGKILL."""


@final
class Process:
    """A running child. Made by `open_process`."""

    def __init__(self, name: str, process: trio.Process, on_line: Callable[[str], bool]) -> None:
        self._name = name
        self._process = process
        self._on_line = on_line
        self._is_ready = False
        self._ready_or_ended = trio.Event()
        self._unfinished = b""
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal's number; None while it runs."""
        return self._process.returncode

    def kill(self) -> None:
        """Send SIGKILL. Does nothing if the process has ended."""
        self._process.kill()

    async def wait_ready(self, seconds: float) -> str:
        """Wait for the line that says the process is ready.

        Args:
          seconds: How long that may take.

        Returns:
          ``""`` if it is ready; otherwise the reason with the last lines of the output.
        """
        with trio.move_on_after(seconds):
            await self._ready_or_ended.wait()
            if self._is_ready:
                return ""
            status = await self._process.wait()
            return self._reason(f"ended with status {status} before it was ready")
        return self._reason(f"was not ready within {seconds:g} seconds")

    def _reason(self, what: str) -> str:
        lines = "\n".join(f"  {line}" for line in self.last_lines)
        return f"{self._name} {what}; the end of its output:\n{lines or '  (none)'}"

    # A Ctrl-C that Python would raise in here belongs to the block, not to the reader.
    @trio.lowlevel.enable_ki_protection
    async def _read(self, scope: trio.CancelScope) -> None:
        assert self._process.stdout is not None
        with scope:
            async with self._process.stdout as output:
                async for chunk in output:
                    self._split(chunk)
            self._split(b"\n")
            self._ready_or_ended.set()

    def _split(self, chunk: bytes | bytearray) -> None:
        *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        self._unfinished = self._unfinished[:LINE_BYTES]

    def _take(self, raw: bytes) -> None:
        line = raw[:LINE_BYTES].decode(errors="replace").rstrip()
        if not line:
            return
        self.last_lines.append(line)
        if self._on_line(line):
            self._is_ready = True
            self._ready_or_ended.set()

    async def aclose(self) -> None:
        """SIGTERM, SIGKILL after `END_SECONDS`, and reap; within a cancelled scope too."""
        try:
            self._process.terminate()
            with trio.move_on_after(END_SECONDS, shield=True):
                await self._process.wait()
        finally:
            # Also where a second Ctrl-C has cut the wait above short. Without effect on a process
            # that has ended.
            self._process.kill()
            with trio.move_on_after(END_SECONDS, shield=True):
                await self._process.wait()


@asynccontextmanager
async def open_process(
    name: str, command: Sequence[str], on_line: Callable[[str], bool]
) -> AsyncIterator[Process]:
    """Run a command for the length of a block.

    Leaving the block sends SIGTERM, waits 5 s at most, sends SIGKILL if that was not
    enough, and reaps the process; so does a cancellation, or an exception, which comes
    out unwrapped. If this process is killed, the other one gets a SIGTERM all the same.

    Args:
      name: What the reasons call it.
      command: The program and its arguments. It gets no standard input; its standard
        output and error are read as one.
      on_line: Called with each line. True says: the process is ready. It must neither
        wait nor raise.

    Raises:
      OSError: if the command can't be started.
    """
    child = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    process = Process(name, child, on_line)
    async with open_flat_nursery() as nursery:
        # Shielded: a block that is cancelled may take its time, and the process still writes.
        # Ended below, with the process.
        reading = trio.CancelScope(shield=True)
        nursery.start_soon(process._read, reading)
        try:
            async with _open_guard(child.pid):
                yield process
        finally:
            await process.aclose()
            reading.cancel()


@asynccontextmanager
async def _open_guard(pid: int) -> AsyncIterator[None]:
    """Let the process ``pid`` be ended if this one is killed within the block."""
    guard = await trio.lowlevel.open_process(
        ["/bin/sh", "-c", 'read line; kill "$0"', str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        yield
    finally:
        guard.kill()
        with trio.move_on_after(END_SECONDS, shield=True):
            await guard.wait()
