# Following keys of a bucket: one core subscription for each, and one get.
#
# The stream republishes each change after it was stored. Nothing is missed at the beginning:
# subscribe, then get, then drop what was heard meanwhile and is not newer than what was got. What
# is stored while we are away is never heard; so after each reconnect, and now and then, all keys
# are looked up.
#
# A bucket that does not republish is followed by its own subjects. They also show what the stream
# then refuses, so what comes there is a hint to look, no more; of changes in quick succession the
# look-up may find the last one only.
#
# An answer that is not newer than what was told counts only if nothing was told since it was asked
# for. A change that is heard and not newer is looked up: it was got before it was heard, or the
# bucket was made anew and counts from one.

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

import trio

from .._bucket import Entry
from .._errors import BrokerError
from .._util import open_flat_nursery
from ._subscribe import subscribe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from ._bucket import NATSBucket
    from ._requests import Requests

logger: Final = logging.getLogger("trio_swarmtask.nats")

SWEEP_SECONDS: Final = 30.0
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 1.0


class Watches:
    """The keys of a bucket that are followed."""

    def __init__(self, bucket: NATSBucket, requests: Requests) -> None:
        self.bucket = bucket
        self.requests = requests
        self.open_ones: dict[Watch, None] = {}
        self._looks: trio.Nursery
        self._missed = trio.Event()
        self._ended = False

    def open(
        self, key: str, on_entry: Callable[[Entry], None]
    ) -> AbstractAsyncContextManager[None]:
        """See `Bucket.watch`."""
        return Watch(self, key, on_entry)

    def start(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look something up in the background, unless the bucket is being closed."""
        if not self._ended:
            self._looks.start_soon(self._unless_refused, look)

    def on_down(self) -> None:
        self._missed.set()

    async def keep(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Look up what may have been missed, until closed."""
        async with open_flat_nursery() as self._looks:
            task_status.started()
            try:
                while True:
                    with trio.move_on_after(SWEEP_SECONDS):
                        await self._missed.wait()
                    self._missed = trio.Event()
                    await self.requests.connection.wait_up()
                    await self._unless_refused(self._sweep)
            finally:
                self._ended = True

    async def _unless_refused(self, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        except BrokerError as exc:
            if self.requests.connection.lost is not None:
                raise
            # What is stored reaches us all the same, unless there is an outage.
            logger.warning("changes that were missed can't be looked up: %s", exc)

    async def _sweep(self) -> None:
        before = {watch: watch.revision for watch in self.open_ones}
        found = await self.bucket.get_many([watch.key for watch in before])
        for watch, revision in before.items():
            entry = found.get(watch.key)
            if entry is not None and entry.revision >= revision:
                watch.take(entry, revision)
            elif revision:
                await watch.look()  # gone, unless a replica lags behind


class Watch(AbstractAsyncContextManager[None]):
    """One key that is followed, from the entering of its block to the leaving."""

    def __init__(self, watches: Watches, key: str, on_entry: Callable[[Entry], None]) -> None:
        self.key = key
        self.revision = 0  # of what was told last; 0: nothing, or gone
        self._watches = watches
        self._on_entry = on_entry
        self._early: list[Entry] | None = []
        self._hinted = False
        self._following = False
        self._subscription: Subscription

    async def __aenter__(self) -> None:
        bucket, requests = self._watches.bucket, self._watches.requests
        stream = await bucket.stream()
        if stream.updates is None:
            subject, callback = bucket.prefix + self.key, self._on_hint
        else:
            subject, callback = stream.updates + self.key, self._on_update
        self._subscription = await subscribe(requests, subject, callback)
        try:
            entry = await bucket.get(self.key)
        except BaseException:
            requests.connection.unsubscribe(self._subscription)
            raise
        self._watches.open_ones[self] = None
        self.take(entry, self.revision)
        early, self._early = self._early, None
        for heard in early or ():
            if heard.revision > self.revision:
                self.take(heard, self.revision)
        self._follow_hints()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._watches.open_ones[self]
        self._watches.requests.connection.unsubscribe(self._subscription)

    def take(self, entry: Entry | None, seen: int) -> None:
        """Tell of ``entry``, or that there is none, if that is news.

        ``seen``: the revision when it was asked for.
        """
        revision = 0 if entry is None else entry.revision
        if revision == self.revision or (revision < self.revision != seen):
            return
        self.revision = revision
        self._on_entry(entry or Entry(self.key, 0, None))

    async def look(self) -> None:
        """Look the key up."""
        seen = self.revision
        entry = await self._watches.bucket.get(self.key)
        if self in self._watches.open_ones:
            self.take(entry, seen)

    def _on_update(self, message: Msg) -> None:
        entry = self._watches.bucket.read(message)
        if self._early is not None:
            self._early.append(entry)
        elif entry.revision > self.revision:
            self.take(entry, self.revision)
        else:
            self._watches.start(self.look)

    def _on_hint(self, message: Msg) -> None:
        self._hinted = True
        self._follow_hints()

    def _follow_hints(self) -> None:
        if self._hinted and self._early is None and not self._following:
            self._following = True
            self._watches.start(self._look_for_hints)

    async def _look_for_hints(self) -> None:
        # A hint may come before the stream has stored the change, or be of one that it refuses.
        pause = _FIRST_LOOK
        try:
            while self in self._watches.open_ones and (self._hinted or pause <= _LAST_LOOK):
                if self._hinted:
                    self._hinted, pause = False, _FIRST_LOOK
                await self.look()
                await trio.sleep(pause)
                pause *= 2
        finally:
            self._following = False
