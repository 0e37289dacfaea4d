"""NKeys and credentials files."""

from __future__ import annotations

import base64
import sys
import traceback
from typing import TYPE_CHECKING

import nkeys
import pytest

from tests._helpers.brokers import within
from tests._helpers.nats_servers import configured
from tests.nats.test_connect import refusal, use
from trio_swarmtask import AuthenticationError, NATSConfig

if TYPE_CHECKING:
    from pathlib import Path

    from trio_swarmtask.server import Server


def make_seed(fill: int = 7) -> bytes:
    return nkeys.encode_seed(bytes([fill]) * 32, nkeys.PREFIX_BYTE_USER)


def nkey_user(seed: bytes) -> str:
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    return "authorization { users = [ {nkey: %s} ] }" % public  # noqa: UP031 - it holds braces


@within(20)
async def test_good_nkey(tmp_path: Path) -> None:
    seed_file = tmp_path / "seed.nk"
    seed_file.write_bytes(make_seed() + b"\n")
    async with configured(tmp_path, nkey_user(make_seed())) as server:
        await use(NATSConfig(server.url, nkey_seed=seed_file))


@within(20)
async def test_wrong_nkey(tmp_path: Path) -> None:
    seed_file = tmp_path / "seed.nk"
    seed_file.write_bytes(make_seed(fill=8))
    async with configured(tmp_path, nkey_user(make_seed())) as server:
        error = await refusal(NATSConfig(server.url, nkey_seed=seed_file), AuthenticationError)
    assert "refuses the credentials" in str(error)


@pytest.mark.parametrize("setting", ["nkey_seed", "credentials"])
@within(20)
async def test_missing_file(server: Server, tmp_path: Path, setting: str) -> None:
    error = await refusal(NATSConfig(server.url, connect_timeout=1, **{setting: tmp_path / "gone"}))
    assert str(tmp_path / "gone") in str(error)
    assert "No such file" in str(error)


NONSENSE = [
    b"",
    b"nonsense-s3cret",
    b"SUs3cret",
    b"\xff\xfe\x00",
    b"-----BEGIN NATS USER JWT-----",
    b"-----BEGIN NATS USER JWT-----\ns3cret\n------END NATS USER JWT------\n",
    b"-----BEGIN USER NKEY SEED-----",
    b"-----BEGIN NATS USER JWT-----\ns3cret\n-----BEGIN USER NKEY SEED-----\nSUs3cret\n",
]
ONLY_A_SEED = b"-----BEGIN USER NKEY SEED-----\n" + make_seed() + b"\n"


@pytest.mark.parametrize("content", NONSENSE)
@pytest.mark.parametrize("setting", ["nkey_seed", "credentials"])
@within(20)
async def test_file_of_nonsense(tmp_path: Path, setting: str, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    async with configured(tmp_path, nkey_user(make_seed())) as server:
        error = await refusal(NATSConfig(server.url, connect_timeout=1, **{setting: file}))
    assert str(file) in str(error)
    assert "s3cret" not in "".join(traceback.format_exception(error))


@within(20)
async def test_credentials_without_a_token(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(ONLY_A_SEED)
    async with configured(tmp_path, nkey_user(make_seed())) as server:
        error = await refusal(NATSConfig(server.url, connect_timeout=1, credentials=file))
    assert str(file) in str(error)


@within(20)
async def test_credentials_that_nobody_asks_for(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "user.creds"
    seed = make_seed().decode()
    file.write_text(
        "-----BEGIN NATS USER JWT-----\nheader.claims.signature\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    await use(NATSConfig(server.url, credentials=file))


@pytest.mark.parametrize("setting", ["nkey_seed", "credentials"])
@within(20)
async def test_without_nkeys_the_error_names_the_extra(
    server: Server, tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)
    file = tmp_path / "file"
    file.write_bytes(make_seed())
    error = await refusal(NATSConfig(server.url, connect_timeout=1, **{setting: file}))
    assert "pip install 'trio-swarmtask[nkeys]'" in str(error)


def test_repr_shows_paths_only(tmp_path: Path) -> None:
    config = NATSConfig(credentials=tmp_path / "a.creds", nkey_seed=tmp_path / "b.nk")
    assert str(tmp_path / "a.creds") in repr(config)
    assert base64.b32encode(b"x").decode() not in repr(config)
