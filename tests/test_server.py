# `open_server`, against the real nats-server.

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_swarmtask import BrokerError, server as server_module
from trio_swarmtask._process import open_process
from trio_swarmtask.server import Server, _open_server, open_server

if TYPE_CHECKING:
    from pathlib import Path


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even one that waits to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        line += await stream.receive_some(1)
    return line


async def read_info(server: Server) -> dict[str, Any]:
    """Connect and return the INFO with which a server greets every client."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        verb, _, body = (await read_line(stream)).partition(b" ")
    assert verb == b"INFO"
    info = json.loads(body)
    assert isinstance(info, dict)
    return info


async def ask(server: Server, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request to the JetStream API, in the plain NATS protocol."""
    data = json.dumps(body).encode()
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await read_line(stream)
        await stream.send_all(
            b'CONNECT {"verbose":false}\r\nSUB answer 1\r\n'
            + f"PUB {subject} answer {len(data)}\r\n".encode()
            + data
            + b"\r\n"
        )
        await read_line(stream)  # MSG answer 1 <size>
        reply = json.loads(await read_line(stream))
    assert isinstance(reply, dict)
    return reply


async def test_ready_on_entering_and_ended_after_leaving() -> None:
    """The server answers at once, on the loopback interface alone, and goes with the block."""
    with trio.fail_after(20):
        async with open_server() as server:
            info = await read_info(server)
            assert info["jetstream"] is True
            assert info["host"] == "127.0.0.1"
            assert server.url == f"nats://127.0.0.1:{server.port}"
            assert await trio.Path(server.store_dir).is_dir()
            assert not is_gone(server.pid)
    assert is_gone(server.pid)
    assert not await trio.Path(server.store_dir).exists()
    with pytest.raises(OSError, match=str(server.port)):
        await read_info(server)


async def test_two_at_once() -> None:
    """Each gets a free port and a store of its own."""
    with trio.fail_after(20):
        async with open_server() as one, open_server() as other:
            assert one.port != other.port
            assert one.store_dir != other.store_dir


async def test_store_and_port_kept_across_restarts(tmp_path: Path) -> None:
    """A second server on the same directory and port has the first one's streams."""
    store = tmp_path / "made" / "if-missing"
    with trio.fail_after(20):
        async with open_server(store) as first:
            made = await ask(
                first, "$JS.API.STREAM.CREATE.KEPT", {"name": "KEPT", "subjects": ["kept"]}
            )
            assert "error" not in made
        async with open_server(store, port=first.port) as second:
            assert second.port == first.port
            assert second.store_dir == store
            info = await ask(second, "$JS.API.STREAM.INFO.KEPT", {})
    assert info["config"]["subjects"] == ["kept"]


async def test_killed_in_the_middle_and_restarted(tmp_path: Path) -> None:
    """The block of a killed server ends cleanly, and its port can be used again."""
    with trio.fail_after(20):
        async with open_server(tmp_path) as first:
            os.kill(first.pid, signal.SIGKILL)
            async with open_server(tmp_path, port=first.port) as second:
                assert (await read_info(second))["port"] == first.port
    assert is_gone(first.pid)


async def test_block_exception_is_not_wrapped() -> None:
    """What the block raises comes out as itself."""
    error = LookupError("mine")
    with trio.fail_after(20):
        with pytest.raises(LookupError) as caught:
            async with open_server() as server:
                raise error
    assert caught.value is error
    assert is_gone(server.pid)


async def test_cancelled_block() -> None:
    """A cancelled block ends its server."""
    with trio.fail_after(20), trio.CancelScope() as scope:
        async with open_server() as server:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert is_gone(server.pid)
    assert not await trio.Path(server.store_dir).exists()


async def test_program_killed(tmp_path: Path) -> None:
    """A server whose program is killed, so that no block is ever left, ends all the same."""
    program = """
import pathlib, sys, trio
from trio_swarmtask.server import open_server

async def main():
    async with open_server(pathlib.Path(sys.argv[1])) as server:
        print("port", server.port, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    ports: list[int] = []

    def on_line(line: str) -> bool:
        ports.extend(map(int, re.findall(r"^port (\d+)$", line)))
        return bool(ports)

    command = [sys.executable, "-c", program, str(tmp_path)]
    with trio.fail_after(20):
        async with open_process("program", command, on_line) as process:
            assert await process.wait_ready(10) == ""
            async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as stream:
                assert await stream.receive_some(4) == b"INFO"
                process.kill()
                async for _ in stream:  # until the server is gone
                    pass


async def test_port_in_use() -> None:
    """The error holds the server's own words and its status."""
    with trio.fail_after(20):
        async with open_server() as server:
            with pytest.raises(BrokerError, match=r"(?s)status 1 .*address already in use"):
                async with open_server(port=server.port):
                    pytest.fail("two servers on one port")
            assert not is_gone(server.pid)


async def test_store_that_is_a_file(tmp_path: Path) -> None:
    """So it does for a directory that is none."""
    file = tmp_path / "file"
    file.touch()
    with trio.fail_after(20):
        with pytest.raises(BrokerError, match="not a directory"):
            async with open_server(file):
                pytest.fail("a server whose store is a file")


async def test_not_ready_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose log goes elsewhere never says that it is ready."""
    monkeypatch.setattr(server_module, "READY_SECONDS", 0.1)
    with trio.fail_after(20):
        with pytest.raises(BrokerError, match=r"not ready within 0\.1 seconds"):
            async with _open_server(["--log", str(tmp_path / "log")]):
                pytest.fail("ready without having said so")


async def test_arguments_of_ones_own(tmp_path: Path) -> None:
    """Arguments and a configuration file come through; the address stays ours."""
    config = tmp_path / "nats.conf"
    config.write_text("listen: 0.0.0.0:4222\nauthorization { token: secret }\n")
    with trio.fail_after(20):
        async with _open_server(["--config", str(config)]) as server:
            info = await read_info(server)
    assert info["auth_required"] is True
    assert info["host"] == "127.0.0.1"
    assert "jetstream" not in info


async def test_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a nats-server the error names the extra that brings one."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BrokerError, match=re.escape("pip install 'trio-swarmtask[server]'")):
        async with open_server():
            pytest.fail("a server out of nothing")


async def test_program_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wheel is not installed, the program on PATH is taken."""

    def files(distribution: str) -> None:
        raise importlib.metadata.PackageNotFoundError(distribution)

    program = server_module._find_program()
    monkeypatch.setattr(importlib.metadata, "files", files)
    (tmp_path / "nats-server").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_module._find_program() == str(tmp_path / "nats-server")
    with trio.fail_after(20):
        async with open_server() as server:
            assert (await read_info(server))["jetstream"] is True


async def test_program_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program for another machine, say, is a BrokerError that names it."""
    program = tmp_path / "nats-server"
    program.write_text("not a program")
    program.chmod(0o755)
    monkeypatch.setattr(server_module, "_find_program", lambda: str(program))
    with pytest.raises(BrokerError, match=re.escape(f"{program} can't be started")):
        async with open_server():
            pytest.fail("a server out of a text")
