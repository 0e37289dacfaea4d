# A plain client of a server, for what no public function does.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from trio_swarmtask._jetstream._api import APIError, call, publish

if TYPE_CHECKING:
    from trio_swarmtask._nats._connection import Connection
    from trio_swarmtask._nats._requests import Requests


class Raw:
    """A plain client of a server: the JSON API, publishes and subscriptions."""

    def __init__(self, connection: Connection, requests: Requests) -> None:
        self.connection = connection
        self.requests = requests

    async def api(self, request: str, /, **body: Any) -> dict[str, Any]:
        return await call(self.requests, request, **body)

    async def store(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        await publish(self.requests, subject, data, headers)

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        try:
            info = await self.api(f"STREAM.INFO.{stream}", subjects_filter=pattern)
        except APIError:
            return []
        return sorted(info["state"].get("subjects") or {})

    async def get(self, stream: str, subject: str) -> tuple[bytes, str]:
        """The last message of a subject: its bytes, and why it is a dead letter."""
        answer = await self.api(f"STREAM.MSG.GET.{stream}", last_by_subj=subject)
        message = answer["message"]
        headers = msgspec.json.decode(f'"{message.get("hdrs", "")}"', type=bytes).decode()
        reason = [
            line.removeprefix("Swarm-Reason: ")
            for line in headers.split("\r\n")
            if line.startswith("Swarm-Reason: ")
        ]
        data = msgspec.json.decode(f'"{message.get("data", "")}"', type=bytes)
        return data, reason[0] if reason else ""
