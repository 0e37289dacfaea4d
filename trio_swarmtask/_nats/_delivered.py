# How far a durable has come, asked of the server once for all who want to know.
#
# Cancelling a group asks for each of its tasks, at the same time. An answer is good for everybody
# who had done all that has to come before it when the question was sent.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._connection import NotConnected
from ._jetstream import APIError, call
from ._refusals import NO_CONSUMER
from ._requests import NoAnswer
from ._stored import gone

if TYPE_CHECKING:
    from ._requests import Requests


class Delivered:
    """Looks up what the durables of tasks have delivered, for one role."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._durables: dict[str, _Durable] = {}

    async def find(self, stream: str, capability: str) -> int:
        """The sequence of the last task that the durable had delivered, at some time from now on.

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
        self._delivered = 0
        self._round: trio.Event | None = None  # set when the answer is here

    async def find(self) -> int:
        self._asked += 1
        mine, failures = self._asked, self._failures
        while self._answered < mine:
            if self._failures > failures:
                raise NoAnswer("the connection was lost, or the server is overloaded")
            if self._round is None:
                await self._ask()
            else:
                await self._round.wait()
        return self._delivered

    async def _ask(self) -> None:
        self._round = trio.Event()
        asked = self._asked
        try:
            self._delivered = await self._look_up()
            self._answered = asked
        except (NoAnswer, NotConnected):
            self._failures += 1
            raise
        finally:
            self._round.set()
            self._round = None

    async def _look_up(self) -> int:
        try:
            info = await call(self._requests, f"CONSUMER.INFO.{self._name}")
        except APIError as exc:
            if exc.err_code == NO_CONSUMER:
                return 0
            raise gone(exc, self._stream) from exc
        return int(info["delivered"]["stream_seq"])
