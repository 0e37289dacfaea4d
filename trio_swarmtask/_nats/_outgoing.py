# What is published, as bytes, and when it is sent.
#
# nats-py's `publish` is a coroutine, and wakes an asyncio task that writes. Here the bytes are put
# where that task finds them too, in their order with nats-py's own commands; and all that was
# published while Trio went once round its tasks is sent by one write.
#
# Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import trio

from .._errors import InvalidMessageError

if TYPE_CHECKING:
    from ._client import Client


class Outgoing:
    """The sending half of one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sender: trio.lowlevel.Task | None = None  # while it sleeps

    def publish(
        self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None
    ) -> None:
        """Send with the next write. Subjects and names of headers are taken as they are.

        Raises:
          InvalidMessageError: if the server would close the connection over it.
        """
        size = len(data)
        if headers is None:
            line = f"PUB {subject} {reply} {size}\r\n" if reply else f"PUB {subject} {size}\r\n"
        else:
            head = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            if head.count("\n") != len(headers):
                raise InvalidMessageError(f"a header of more than one line: {head[:200]!r}")
            head_size = len(head.encode()) + 12
            size += head_size
            line = f"HPUB {subject} {reply} {head_size} {size}\r\nNATS/1.0\r\n{head}\r\n"
        if size > self._client.max_payload:
            raise InvalidMessageError(
                f"a message of {size} bytes on {subject}: the server takes "
                f"{self._client.max_payload}"
            )
        self._client.hold(b"%b%b\r\n" % (line.encode(), data))
        if self._sender is not None:
            trio.lowlevel.reschedule(self._sender)
            self._sender = None

    async def send(self) -> NoReturn:
        """Write what was published, for ever."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._sender = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self._client.write_held()
            self._sender = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
