"""What a real server refuses: by its permissions, or because it is too large."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import within
from tests._helpers.buses import NATSBuses, answer, beside, rest, settle
from trio_swarmtask import BrokerError, InvalidMessageError, NATSConfig
from trio_swarmtask.bus import InvalidSubjectError, NoRespondersError, open_nats_bus
from trio_swarmtask.server import _open_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_swarmtask.bus import MessageBus


@asynccontextmanager
async def configured(directory: Path, text: str) -> AsyncIterator[MessageBus]:
    """A bus on a server with this configuration, as the user whom it may name."""
    config = directory / "nats.conf"
    config.write_text(text)
    async with (
        _open_server(["-c", str(config)]) as server,
        open_nats_bus(NATSConfig(server.url, user="some", password="s3cret")) as bus,
    ):
        yield bus


def permitting(directory: Path, permissions: str) -> AbstractAsyncContextManager[MessageBus]:
    """The bus of a user with these permissions, on a server without JetStream."""
    users = f"users = [{{user: some, password: s3cret, permissions: {{{permissions}}}}}]"
    return configured(directory, f"authorization {{ {users} }}")


def refusal(action: str) -> str:
    return rf"^nats://127\.0\.0\.1:\d+ does not permit this user to {re.escape(action)}$"


@pytest.mark.parametrize(
    "subject",
    [
        *("secret.a", "secret.A.b", "secret.*", "secret.>", "secret.é", "secret." + "x" * 1017),
        *('secret.a"b', "secret.a\\b"),
    ],
)
@within(20)
async def test_subscribing_refused(tmp_path: Path, subject: str) -> None:
    """In each way; and the bus works on."""
    async with permitting(tmp_path, 'subscribe: {deny: ["secret.>"]}') as bus:
        for block in (
            bus.subscribe(subject),
            bus.queue_subscribe(subject, "q"),
            bus.listen(subject, lambda _: None),
        ):
            with pytest.raises(BrokerError, match=refusal(f"subscribe to {subject}")):
                async with block:
                    pytest.fail("it was entered")
        await settle(bus)
        assert not NATSBuses("").has_listeners(bus)  # nor is it tried again by a reconnect


@within(20)
async def test_refusal_of_one_is_nothing_to_others(tmp_path: Path) -> None:
    """Entered at the same time."""
    outcomes: dict[str, str] = {}

    async def enter(subject: str) -> None:
        try:
            async with bus.subscribe(subject):
                outcomes[subject] = "entered"
        except BrokerError as exc:
            outcomes[subject] = str(exc)

    async with (
        permitting(tmp_path, 'subscribe: {deny: ["secret.>"]}') as bus,
        trio.open_nursery() as nursery,
    ):
        for subject in ("a", "secret.a", "secretly.a", "b"):
            nursery.start_soon(enter, subject)
    assert re.search(refusal("subscribe to secret.a"), outcomes.pop("secret.a"))
    assert outcomes == dict.fromkeys(("a", "secretly.a", "b"), "entered")


@pytest.mark.parametrize("subject", ["secret.a", "secret.A.b", "secret.é", 'secret.a"b'])
@within(5)
async def test_request_refused(
    tmp_path: Path, subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A publish has no answer, so its refusal is in the log; a request's is raised."""
    async with permitting(tmp_path, 'publish: {deny: ["secret.>"]}') as bus:
        async with bus.subscribe("secret.>") as messages, bus.subscribe("a") as requests:
            with pytest.raises(BrokerError, match=refusal(f"publish to {subject}")):
                await bus.request(subject, b"")
            caplog.clear()
            await bus.publish(subject, b"")
            await settle(bus)
            assert "permissions violation for publish to " in caplog.text
            async with beside(answer, bus, requests):
                assert (await bus.request("a", b"1")).data == b"[1]"
        assert await rest(messages) == []


@pytest.mark.parametrize("subject", ["secret.\x80", "secret.\u200b", "secret.\U000e0001"])
@within(5)
async def test_refusal_of_what_is_not_printable(tmp_path: Path, subject: str) -> None:
    """The server quotes it in another way; it is told all the same, or can be no subject at all."""
    denied = 'subscribe: {deny: ["secret.>"]}, publish: {deny: ["secret.>"]}'
    told = "does not permit this user to|can't subscribe to subject|can't publish on subject"
    async with permitting(tmp_path, denied) as bus:
        with pytest.raises((BrokerError, InvalidSubjectError), match=told):
            async with bus.subscribe(subject):
                pytest.fail("it was entered")
        with pytest.raises((BrokerError, InvalidSubjectError), match=told):
            await bus.request(subject, b"")


@within(20)
async def test_inbox_refused(tmp_path: Path) -> None:
    """No reply can come, so a request says so at once, and no subscription can be confirmed."""
    async with permitting(tmp_path, 'subscribe: {deny: ["_INBOX.>"]}') as bus:
        for _ in range(2):
            with pytest.raises(BrokerError, match=r"not permit this user to subscribe to _INBOX\."):
                await bus.request("a", b"")
            with pytest.raises(BrokerError, match=r"not permit this user to subscribe to _INBOX\."):
                async with bus.subscribe("a"):
                    pytest.fail("it was entered")
        await bus.publish("a", b"")


@within(20)
async def test_refusal_shows_no_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with permitting(tmp_path, 'subscribe: {deny: ["secret.>"]}') as bus:
        with pytest.raises(BrokerError) as raised:
            async with bus.subscribe("secret.a"):
                pytest.fail("it was entered")
    assert "s3cret" not in f"{raised.value}{raised.value!r}{bus!r}{caplog.text}"


@within(20)
async def test_payload_over_the_limit(tmp_path: Path) -> None:
    """Is refused before it is sent, for the server would close the connection; its size is fine."""
    async with configured(tmp_path, "max_payload: 1000") as bus, bus.subscribe("a.>") as messages:
        assert bus.max_payload == 1000
        told = "^1001 bytes are more than the 1000 that the server takes; keep large data elsewhere"
        for act in (bus.publish, bus.request):
            with pytest.raises(InvalidMessageError, match=told):
                await act("a.b", b"x" * 1001)
        await bus.publish("a." + "b" * 1000, b"x" * 1000)
        assert len((await anext(messages)).data) == 1000
        with pytest.raises(NoRespondersError, match="'nobody'"):
            await bus.request("nobody", b"x" * 1000)
        async with trio.open_nursery() as nursery:

            async def reply() -> None:
                request = await anext(messages)
                await bus.publish(request.reply, request.data)

            nursery.start_soon(reply)
            assert (await bus.request("a.b", b"x" * 1000)).data == b"x" * 1000
        await settle(bus)
    assert await rest(messages) == []
