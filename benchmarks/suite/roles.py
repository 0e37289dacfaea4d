# A role: one dispatcher or one worker, in a process of its own, driven through its streams
#
# ../README.md has the protocol. What a role writes to its standard error is kept, for its last
# line says why it ended.

from __future__ import annotations

import json
import subprocess
from contextlib import asynccontextmanager
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .runners import Runner

ANSWER_SECONDS: Final = 120.0  # a role that says nothing for so long is stuck
END_SECONDS: Final = 10.0  # it may still have handlers that run, or connections to close


class RoleError(Exception):
    """A role ended, is stuck, or can't run here."""


class Role:
    """A dispatcher or a worker in a process of its own. Made by `open_role`."""

    def __init__(self, title: str, process: trio.Process, errors: IO[bytes]) -> None:
        self._title = title
        self._process = process
        self._errors = errors
        self._received = bytearray()

    async def wait_ready(self) -> None:
        """Wait until it can work."""
        if (line := await self._read_line()) != "ready":
            raise RoleError(f"{self._title} said {line!r}, not that it is ready")

    async def ask(self, **order: int | str) -> dict[str, Any]:
        """Send one order, and wait for the answer."""
        await self.send(**order)
        return await self.receive()

    async def send(self, **order: int | str) -> None:
        """Send one order."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(json.dumps(order).encode() + b"\n")
        except trio.BrokenResourceError:
            raise RoleError(await self._reason()) from None

    async def receive(self) -> dict[str, Any]:
        """Wait for the answer to an order."""
        answer: dict[str, Any] = json.loads(await self._read_line())
        return answer

    async def _read_line(self) -> str:
        assert self._process.stdout is not None
        with trio.move_on_after(ANSWER_SECONDS):
            while b"\n" not in self._received:
                data = await self._process.stdout.receive_some()
                if not data:
                    raise RoleError(await self._reason())
                self._received += data
            line, _, self._received = self._received.partition(b"\n")
            return line.decode()
        raise RoleError(f"{self._title} said nothing for {ANSWER_SECONDS:g} s")

    async def _reason(self) -> str:
        with trio.move_on_after(END_SECONDS):
            await self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip(" |") for line in reversed(lines) if line.strip(" |+-")), "")
        return last or f"{self._title} ended with status {self._process.returncode}"

    async def aclose(self) -> None:
        """Let it end, and kill it if it does not."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.aclose()
            with trio.move_on_after(END_SECONDS):
                await self._process.wait()
        finally:
            self._process.kill()  # without effect on one that has ended
            with trio.CancelScope(shield=True):  # ends: nothing survives SIGKILL
                await self._process.wait()


@asynccontextmanager
async def open_role(
    runner: Runner,
    role: str,
    url: str,
    capability: str,
    *,
    python: Sequence[str] = (),
    **options: float | str,
) -> AsyncIterator[Role]:
    """Start one role; leaving the block ends it.

    It need not be ready yet: see `Role.wait_ready`.
    """
    command = runner.command(role, url, capability, python)
    with TemporaryFile() as errors:
        try:
            process = await trio.lowlevel.open_process(
                [*command, json.dumps({**runner.options, **options})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except OSError as exc:
            raise RoleError(f"{command[0]} can't be started: {exc}") from exc
        started = Role(f"{role} of {runner.name}", process, errors)
        try:
            yield started
        finally:
            await started.aclose()
