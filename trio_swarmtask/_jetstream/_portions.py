# Many stored messages by one request, in portions that the link can carry.
#
# A server writes all of an answer at once, and closes a connection that does not take it within its
# `write_deadline` (10 seconds). So each request asks for no more bytes than arrive in about a
# second; a larger message comes alone. Each message is handed on as it comes, and is not lost if
# the connection breaks, or the end of the answer never comes. The end says whether there is more:
# the server ends an answer at `max_bytes`, and near 64 MiB in any case.
#
# Source: JetStream's batches of direct gets (ADR-31): `multi_last`, `next_by_subj`, `max_bytes`.

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from .._nats._requests import NoAnswer, NoResponders, status_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._nats._protocol import Incoming
    from .._nats._requests import Requests

BATCH: Final = 500
"""Subjects a request; the server takes about a thousand, and says 413 past that."""
_LEAST: Final = 1  # byte: one message
_FIRST: Final = 256 * 1024
_MOST: Final = 4 * 1024 * 1024
_SHORT: Final = 0.5  # seconds
_LONG: Final = 2.0


class Portions:
    """Asks one stream after the other for batches, for one role."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._size = _FIRST

    async def fetch(self, stream: str, take: Callable[[Incoming], None], **which: object) -> bool:
        """Call ``take`` with each message as it comes; return whether there are more.

        Args:
          which: What is asked for, as the server's API has it.

        Raises:
          NoResponders, and what `Requests.collect` raises: what has come was taken.
        """
        came = 0

        def on_message(message: Incoming) -> None:
            nonlocal came
            came += 1
            take(message)

        asked_at = trio.current_time()
        body = msgspec.json.encode({**which, "max_bytes": self._size})
        try:
            end = await self._requests.collect(f"$JS.API.DIRECT.GET.{stream}", body, on_message)
        except NoAnswer:
            self._size = max(_LEAST, self._size // 4)
            raise
        status = status_of(end)
        if status not in ("204", "404"):
            raise NoResponders(f"a direct get of {stream}")
        # A message that was deleted meanwhile ends an answer with a 404.
        more = came > 0 and (status == "404" or end.header(b"Nats-Num-Pending") not in ("", "0"))
        self._adapt(trio.current_time() - asked_at, full=more)
        return more

    async def find(
        self,
        stream: str,
        prefix: str,
        missing: dict[str, None],
        take: Callable[[str, Incoming], None],
    ) -> list[str]:
        """Look up the last message of ``prefix`` and each of these: of the first, a portion.

        ``take`` is called with the name and the message, as they come; that may be stale. What
        needs no further look is taken out of ``missing``; that is at least one.

        Returns:
          Those of them that have no message.
        """
        asked, before = list(itertools.islice(missing, BATCH)), len(missing)

        def on_message(message: Incoming) -> None:
            name = message.header(b"Nats-Subject").removeprefix(prefix)
            if name in missing:
                del missing[name]
                take(name, message)

        subjects = [prefix + name for name in asked]
        more = await self.fetch(stream, on_message, multi_last=subjects)
        if more and len(missing) < before:
            return []
        gone = [name for name in asked if name in missing]
        for name in gone:
            del missing[name]
        return gone

    def _adapt(self, seconds: float, *, full: bool) -> None:
        if seconds > _LONG:
            self._size = max(_LEAST, self._size // 2)
        elif full and seconds < _SHORT:
            self._size = min(_MOST, self._size * 2)
