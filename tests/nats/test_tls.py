"""TLS: never in the clear where it was asked for, and errors that end it at once."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from tests._helpers.brokers import within
from tests._helpers.nats_servers import greeting, listening
from tests.nats.test_connect import refusal, use
from trio_swarmtask import NATSConfig
from trio_swarmtask.server import Server, _open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def tls_server(
    directory: Path, authority: trustme.CA, name: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    certificate = authority.issue_cert(name)
    key, chain = directory / "key.pem", directory / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(chain)
    arguments = ["--jetstream", "--tls", "--tlscert", str(chain), "--tlskey", str(key)]
    async with _open_server([*arguments, "--user", "ada", "--pass", "right"]) as server:
        yield server


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("scheme", ["tls", "nats"])
@within(30)
async def test_good_tls(tmp_path: Path, scheme: str) -> None:
    authority = trustme.CA()
    async with tls_server(tmp_path, authority) as server:
        url = f"{scheme}://ada:right@127.0.0.1:{server.port}"
        await use(NATSConfig(url, tls=trusting(authority)))


@within(30)
async def test_unknown_authority(tmp_path: Path) -> None:
    async with tls_server(tmp_path, trustme.CA()) as server:
        before = trio.current_time()
        error = await refusal(
            NATSConfig(server.url, tls=trusting(trustme.CA()), user="ada", password="right")
        )
        system = await refusal(NATSConfig(f"tls://ada:right@127.0.0.1:{server.port}"))
        assert trio.current_time() - before < 5
    assert str(error).startswith(f"TLS with {server.url} failed: ")
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert "CERTIFICATE_VERIFY_FAILED" in str(system)


@within(30)
async def test_wrong_host_name(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with tls_server(tmp_path, authority, "elsewhere.example") as server:
        error = await refusal(NATSConfig(server.url, tls=trusting(authority)))
    assert "IP address mismatch" in str(error)


@pytest.mark.parametrize("asked_by", ["scheme", "context"])
@within(30)
async def test_password_never_goes_out_in_the_clear(asked_by: str) -> None:
    """A server, or somebody in between, that offers no TLS gets nothing but a closed connection."""
    received = bytearray()

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(greeting(auth_required=True))
        async for chunk in stream:
            received.extend(chunk)

    async with listening(serve) as port:
        if asked_by == "scheme":
            config = NATSConfig(f"tls://ada:right@127.0.0.1:{port}")
        else:
            config = NATSConfig(
                f"nats://127.0.0.1:{port}",
                tls=ssl.create_default_context(),
                user="ada",
                password="right",
            )
        error = await refusal(config)
    assert "offers no TLS, and TLS was asked for" in str(error)
    assert received == b""


@within(30)
async def test_broken_handshake_ends_in_time(tmp_path: Path) -> None:
    """A server that asks for TLS and then says nothing, or nonsense."""

    async def silent(stream: trio.SocketStream) -> None:
        await stream.send_all(greeting(tls_required=True))
        await trio.sleep_forever()

    async def nonsense(stream: trio.SocketStream) -> None:
        await stream.send_all(greeting(tls_required=True))
        await stream.receive_some()
        await stream.send_all(b"no TLS at all\r\n" * 10)

    for serve, words in ((silent, "within 0.5 seconds"), (nonsense, "failed")):
        async with listening(serve) as port:
            config = NATSConfig(f"tls://127.0.0.1:{port}", connect_timeout=0.5)
            assert words in str(await refusal(config))
