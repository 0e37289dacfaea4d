# Handlers for tests, that wait, fail and clean up as they are told.

from __future__ import annotations

import trio

from trio_swarmtask import Message


class Waiting:
    """Waits until it is cancelled, and cleans up for so many seconds."""

    def __init__(self, clean_up: float = 0) -> None:
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.calls = self.running = self.clean_ups = 0
        self._clean_up = clean_up

    async def __call__(self, message: Message) -> None:
        self.calls += 1
        self.running += 1
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()
            with trio.move_on_after(self._clean_up + 1, shield=True):
                await trio.sleep(self._clean_up)
                self.clean_ups += 1
            self.running -= 1


class Staff:
    """Does what the message says: succeeds, fails, or waits until it is cancelled."""

    def __init__(self) -> None:
        self.running = 0
        self.clean_ups = 0
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> str:
        self.messages.append(message)
        self.running += 1
        try:
            if message.inputs.get("do") == "fail":
                raise ValueError("no luck")
            if message.inputs.get("do") == "wait":
                await trio.sleep_forever()
        finally:
            with trio.move_on_after(5, shield=True):
                await trio.sleep(float(message.inputs.get("clean_up", 0)))
            self.clean_ups += 1
            self.running -= 1
        return "done"


WAIT = Message(inputs={"do": "wait"})
FAIL = Message(inputs={"do": "fail"})
