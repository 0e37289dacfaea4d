# Servers and workers that can be killed, stopped and started again at any moment.

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from trio_swarmtask._process import Process, open_process
from trio_swarmtask.server import READY_SECONDS, _find_program, _Log

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = Path(__file__).with_name("worker_program.py")


class FaultServer:
    """A nats-server on one port and one store, whichever process it is just now.

    What it logs is in a file beside its store.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        port: int,
        store_dir: Path,
        arguments: Sequence[str] = ("--jetstream",),
    ) -> None:
        self.port = port
        self.store_dir = store_dir
        self._arguments = arguments
        self._nursery = nursery
        self._leaving = trio.Event()
        self._left = trio.Event()
        self.process: Process

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.store_dir.with_suffix(".log")

    async def start(self) -> None:
        """Return once it is ready."""
        self._leaving, self._left = trio.Event(), trio.Event()
        self.process = await self._nursery.start(self._serve)

    async def kill(self) -> None:
        """As the kernel may: nothing is said, nothing is flushed. Returns once it is gone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self._leaving.set()
        await self._left.wait()

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    async def _serve(self, *, task_status: trio.TaskStatus[Process]) -> None:
        # `_open_server` would keep the last lines of the log alone.
        command = [_find_program(), "--addr", "127.0.0.1", "--port", str(self.port)]
        command += ["--store_dir", str(self.store_dir), *self._arguments]
        log = _Log()

        def on_line(line: str) -> bool:
            file.write(f"{line}\n")
            return log.read(line)

        with self.log.open("a", buffering=1) as file:
            async with open_process("nats-server", command, on_line) as process:
                if reason := await process.wait_ready(READY_SECONDS):
                    raise RuntimeError(reason)
                task_status.started(process)
                await self._leaving.wait()
        self._left.set()


class WorkerProcess:
    """One worker in a process of its own, which keeps its part of the ledger."""

    def __init__(self, process: trio.Process, name: str, log: Path, ledger: Path) -> None:
        self._process = process
        self.name = name
        self._log = log
        self._ledger = ledger

    @classmethod
    async def start(
        cls, nursery: trio.Nursery, directory: Path, name: str, url: str, **settings: Any
    ) -> WorkerProcess:
        """Return once it takes tasks. What the settings mean: worker_program.py."""
        log, ledger = directory / f"{name}.log", directory / f"{name}.ledger"
        settings = {"name": name, "url": url, "ledger": str(ledger), **settings}
        with log.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [sys.executable, str(PROGRAM), json.dumps(settings)],
                stdin=subprocess.PIPE,  # its end ends the worker: when this process is killed
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        worker = cls(process, name, log, ledger)
        nursery.start_soon(worker._reap)
        assert process.stdout is not None
        told = await process.stdout.receive_some()
        if told != b"ready\n":
            raise AssertionError(f"{name} did not start, but told {told!r}: {worker.log}")
        return worker

    async def _reap(self) -> None:
        try:
            await self._process.wait()
        finally:
            self._process.kill()  # also one that is stopped
            with trio.CancelScope(shield=True):
                await self._process.wait()
                for pipe in (self._process.stdin, self._process.stdout):
                    assert pipe is not None
                    await pipe.aclose()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def ledger(self) -> str:
        return self._ledger.read_text() if self._ledger.exists() else ""

    @property
    def running(self) -> set[str]:
        """The tasks whose handler has begun and not ended."""
        running: set[str] = set()
        for line in self.ledger.splitlines():
            _, event, task = line.split(" ", 2)
            (running.add if event == "began" else running.discard)(task)
        return running

    async def wait_running(self, count: int = 1) -> None:
        """Wait until so many handlers run at once."""
        while len(self.running) < count:  # noqa: ASYNC110 - a file has no event
            await trio.sleep(0.01)

    async def kill(self) -> None:
        """SIGKILL; return once it is gone."""
        self._process.kill()
        await self._process.wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        self._process.terminate()

    async def wait(self) -> int:
        return await self._process.wait()
