# What is published, as bytes, and when it is written.
#
# nats-py's `publish` is a coroutine, and wakes an asyncio task that writes. Here the bytes are put
# where that task finds them too, in their order with nats-py's own commands. All that was published
# while Trio went once round its tasks goes out by one write, just before Trio waits for the
# network again: no task has to be woken for it.
#
# Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from .._errors import InvalidMessageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._client import Client

logger: Final = logging.getLogger("trio_swarmtask.nats")


class Outgoing(trio.abc.Instrument):
    """The sending half of one client."""

    def __init__(self, client: Client) -> None:
        self._client = client

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
            head_size = (len(head) if head.isascii() else len(head.encode())) + 12
            size += head_size
            line = f"HPUB {subject} {reply} {head_size} {size}\r\nNATS/1.0\r\n{head}\r\n"
        limit = self._client.max_payload
        if size > limit:
            raise InvalidMessageError(f"{size} bytes on {subject}: the server takes {limit}")
        self._client.hold(b"%b%b\r\n" % (line.encode(), data))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write what is published, for as long as the block lasts."""
        self._token = trio.lowlevel.current_trio_token()
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        """Trio's hook: every task that could run has had its turn."""
        try:
            again = self._client.write_held()
        except Exception:  # Trio would disable the hook, and nothing be sent any more
            logger.exception("writing to the connection failed")
            again = True
        if again:
            # Trio has made up its mind how long it waits. This wakes it.
            self._token.run_sync_soon(lambda: None, idempotent=True)
