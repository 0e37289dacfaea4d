# The bus inside one process.
#
# Publishing calls every listener at once. The bus behaves as NATS does where users can see it: one
# queue name is one queue, whatever the subjects of its members, and a request finds no responders
# if nobody is subscribed.

from __future__ import annotations

import random
from typing import final

import trio

from .._bus import BusMessage, Listener, MessageBus, check_open
from .._check import make_key
from .._errors import BusClosedError, NoRespondersError
from .._subjects import is_literal, matches


@final
class MemoryBus(MessageBus):
    """A `MessageBus` inside one process: for tests, and for programs of one process.

    Args:
      buffer_size: Messages that a subscription holds before it drops the oldest.
    """

    def __init__(self, buffer_size: int = 256) -> None:
        super().__init__(buffer_size)
        self._literal: dict[str, list[Listener]] = {}
        self._patterns: list[Listener] = []

    async def publish(self, subject: str, data: bytes) -> None:
        self._check_message(subject, data)
        await trio.lowlevel.checkpoint()
        check_open(self)
        self._send(BusMessage(subject, data))

    async def request(self, subject: str, data: bytes) -> BusMessage:
        self._check_message(subject, data)
        await trio.lowlevel.checkpoint()
        replies: list[BusMessage] = []
        done = trio.Event()

        def on_reply(message: BusMessage) -> None:
            replies.append(message)
            done.set()

        inbox = f"_INBOX.{make_key()}"
        async with Listener(self, inbox, "", on_reply, lambda _: done.set()):
            if not self._send(BusMessage(subject, data, inbox)):
                raise NoRespondersError(subject)
            await done.wait()
        if not replies:
            raise BusClosedError("the bus was closed before the reply came")
        return replies[0]

    async def _attach(self, listener: Listener) -> None:
        await trio.lowlevel.checkpoint()
        check_open(self)
        if is_literal(listener.subject):
            self._literal.setdefault(listener.subject, []).append(listener)
        else:
            self._patterns.append(listener)

    def _detach(self, listener: Listener) -> None:
        if is_literal(listener.subject):
            others = self._literal[listener.subject]
            others.remove(listener)
            if not others:
                del self._literal[listener.subject]
        else:
            self._patterns.remove(listener)

    def _send(self, message: BusMessage) -> bool:
        """Call each listener that is to get ``message``; return whether there was one.

        Raises:
          KeyboardInterrupt: if a listener was interrupted. All were called.
        """
        found = list(self._literal.get(message.subject, ()))
        found += [other for other in self._patterns if matches(other.subject, message.subject)]
        queues: dict[str, list[Listener]] = {}
        for listener in found:
            if listener.queue:
                queues.setdefault(listener.queue, []).append(listener)
            else:
                listener.hear(message)
        for members in queues.values():
            random.choice(members).hear(message)
        self._raise_interrupts()
        return bool(found)
