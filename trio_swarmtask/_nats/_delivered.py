# How far a durable has come, asked of the server once for all who want to know.
#
# Cancelling a group asks for each of its tasks, at the same time. An answer is good for everybody
# who had done all that has to come before it when the question was sent.
#
# A durable knows what it has delivered itself. One that was deleted and made anew knows nothing of
# the deliveries of the one before, whose tasks may still run. So a durable speaks of the tasks that
# are younger than itself alone, and one that is not there speaks of none.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from ._connection import NotConnected
from ._jetstream import APIError, call
from ._refusals import NO_CONSUMER
from ._requests import NoAnswer
from ._stored import gone

if TYPE_CHECKING:
    from ._requests import Requests
    from ._stored import StoredMessage


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a durable has come."""

    created: str
    """When it was made, by the server's clock; as `StoredMessage.time`."""
    sequence: int
    """Of the last task that it has delivered."""

    def is_short_of(self, message: StoredMessage) -> bool:
        """Whether ``message`` was never delivered, for sure."""
        return self.created < message.time and self.sequence < message.seq


class Delivered:
    """Looks up what the durables of tasks have delivered, for one role."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._durables: dict[str, _Durable] = {}

    async def find(self, stream: str, capability: str) -> Progress | None:
        """How far the durable had come, at some time from now on; None if there is none.

        Raises:
          What a request raises, or was raised to another one who has asked: what the caller has
            published before may be lost with it.
        """
        name = f"{stream}.work-{capability}"
        durable = self._durables.get(name)
        if durable is None:
            durable = self._durables[name] = _Durable(self._requests, stream, name)
        return await durable.find()


class _Durable:
    def __init__(self, requests: Requests, stream: str, name: str) -> None:
        self._requests = requests
        self._stream = stream
        self._name = name
        self._asked = 0  # by how many, ever
        self._answered = 0  # of them
        self._failures = 0
        self._progress: Progress | None = None
        self._round: trio.Event | None = None  # set when the answer is here

    async def find(self) -> Progress | None:
        self._asked += 1
        mine, failures = self._asked, self._failures
        while self._answered < mine:
            if self._failures > failures:
                raise NoAnswer("the connection was lost, or the server is overloaded")
            if self._round is None:
                await self._ask()
            else:
                await self._round.wait()
        return self._progress

    async def _ask(self) -> None:
        self._round = trio.Event()
        asked = self._asked
        try:
            self._progress = await self._look_up()
            self._answered = asked
        except (NoAnswer, NotConnected):
            self._failures += 1
            raise
        finally:
            self._round.set()
            self._round = None

    async def _look_up(self) -> Progress | None:
        try:
            info = await call(self._requests, f"CONSUMER.INFO.{self._name}")
        except APIError as exc:
            if exc.err_code == NO_CONSUMER:
                return None
            raise gone(exc, self._stream) from exc
        return Progress(info["created"].removesuffix("Z"), info["delivered"]["stream_seq"])
