# Leases of groups: while one is renewed, the tasks of its group may run.
#
# A lease is the last message of `lease.<group>`, which the stream drops after its max_age. So
# nobody has to notice that the program that renewed it is gone. Source: JetStream's max_age. The
# groups make the stream; a lease that is in no stream has lapsed, whoever wrote its name into a
# task.

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .._errors import BrokerError
from ._api import last_message, publish

if TYPE_CHECKING:
    from collections.abc import Collection

    from ._streams import JetStream


class GroupLeases:
    """The leases on one server, as one role sees them."""

    def __init__(self, jetstream: JetStream) -> None:
        self._requests = jetstream.requests
        self._streams = jetstream.streams

    async def renew(self, name: str) -> float:
        """As `Outbox.renew_group_lease`."""

        async def attempt() -> float:
            await self._streams.look_at_leases()
            stream = await self._streams.leases()
            if not stream.seconds:
                raise BrokerError(
                    f"stream {stream.name} keeps leases for ever: give it a max_age, of 30 seconds "
                    "say"
                )
            await publish(self._requests, f"lease.{name}", b"", None)
            return stream.seconds

        return await self._streams.persist(f"renew the lease {name}", attempt)

    async def find(self, names: Collection[str]) -> set[str]:
        """Those of them that have not lapsed, as far as is known.

        Raises:
          BrokerError: if they may not be looked up.
        """

        async def look(name: str) -> bool:
            stream = await self._streams.find_lease_stream()
            if stream is None:
                return False
            if await last_message(self._requests, stream.name, f"lease.{name}") is not None:
                return True
            await self._streams.look_at_leases()
            return self._streams.doubts_leases

        found = set()
        for name in names:
            if await self._streams.persist(f"look up the lease {name}", partial(look, name)):
                found.add(name)
        return found
