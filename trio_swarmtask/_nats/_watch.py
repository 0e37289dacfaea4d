# Following keys of a bucket: one core subscription for each, and one get.
#
# The stream republishes each change after it was stored. Nothing is missed at the beginning:
# subscribe, then get, then drop what was heard meanwhile and is not newer than what was got. What
# is stored while we are away is never heard, nor what a partition keeps from us while our own
# connection stands. So after each reconnect, and now and then, all keys are looked up.
#
# A bucket that does not republish is followed by its own subjects. They also show what the stream
# then refuses, so what comes there is a hint to look, no more; of changes in quick succession the
# look-up may find the last one only. As often as keys, the stream is looked at: where an operator
# has taken the republishing away, or given it, keys are followed in the other way from there on.
#
# An answer that is not newer than what was told counts only if nothing was told since it was asked
# for. A change that is heard and not newer is a hint: it was got before it was heard, or the
# bucket was made anew and counts from one.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from .._bucket import Entry, Watch
from .._errors import BrokerError, ClosedError
from .._util import open_flat_nursery
from ._jetstream import NO_ANSWER_YET
from ._subscribe import subscribe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.subscription import Subscription

    from ._bucket import NATSBucket
    from ._bucket_stream import BucketStream
    from ._incoming import Incoming
    from ._requests import Requests

logger: Final = logging.getLogger("trio_swarmtask.nats")

SWEEP_SECONDS: Final = 10.0
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 1.0


class Watches:
    """The keys of a bucket that are followed."""

    def __init__(self, bucket: NATSBucket, requests: Requests) -> None:
        self.bucket = bucket
        self.requests = requests
        self.open_ones: dict[NATSWatch, None] = {}
        self._looks: trio.Nursery
        self._missed = trio.Event()
        self._ended = False

    def open(self, key: str, on_entry: Callable[[Entry], None]) -> Watch:
        """See `Bucket.watch`."""
        return NATSWatch(self, key, on_entry)

    def start(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look something up in the background, unless the bucket is being closed."""
        if not self._ended:
            self._looks.start_soon(self._unless_refused, look)

    def on_down(self) -> None:
        self._missed.set()

    def end(self) -> None:
        """Begin no more look-ups; one about to run may find all closed, and does no harm."""
        self._ended = True

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
                    await self._unless_refused(self._round)
            finally:
                self.end()

    async def _unless_refused(self, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        except BrokerError as exc:
            if self.requests.connection.lost is not None:
                raise
            # What is stored reaches us all the same, unless there is an outage.
            logger.warning("changes that were missed can't be looked up: %s", exc)
        except ClosedError:
            assert self._ended  # nothing else closes the requests

    async def _round(self) -> None:
        await self._sweep()
        if self.open_ones and await self._hear_otherwise():
            await self._sweep()  # what came before we heard it so

    async def _hear_otherwise(self) -> bool:
        """Whether some key is followed in another way now, as the stream was changed."""
        try:
            stream = await self.bucket.look()
        except NO_ANSWER_YET:
            return False  # the next round looks again
        if stream is None:
            return False
        old = [watch for watch in self.open_ones if watch.updates != stream.updates]
        for watch in old:
            await watch.hear_otherwise(stream)
        return bool(old)

    async def _sweep(self) -> None:
        watches = {watch.key: watch for watch in self.open_ones}
        missing = dict.fromkeys(watches)
        while missing:
            seen = {watch: watch.told for watch in watches.values()}

            def take(entry: Entry, seen: dict[NATSWatch, Told] = seen) -> None:
                watch = watches[entry.key]
                watch.take(entry, seen[watch])

            for key in await self.bucket.get_some(missing, take):
                if watches[key].told != NOTHING:
                    await watches[key].look()  # gone, unless a replica lags behind


Told = tuple[int, str]
"""What tells an entry from others of its key: its revision, and when it was stored."""

NOTHING: Final = (0, "")


class NATSWatch(Watch):
    """One key that is followed."""

    def __init__(self, watches: Watches, key: str, on_entry: Callable[[Entry], None]) -> None:
        self.key = key
        self.told: Told = NOTHING
        self._watches = watches
        self._on_entry = on_entry
        self._early: list[Entry] | None = []
        self._hinted = False
        self._following = False
        self._subscription: Subscription
        self.updates: str | None
        """Where it hears of changes, see `BucketStream.updates`."""

    async def __aenter__(self) -> None:
        bucket, requests = self._watches.bucket, self._watches.requests
        stream = await bucket.stream()
        self._subscription = await self._subscribe(stream)
        self.updates = stream.updates
        try:
            entry = await bucket.get(self.key)
        except BaseException:
            requests.connection.unsubscribe(self._subscription)
            raise
        self._watches.open_ones[self] = None
        self.take(entry, self.told)
        early, self._early = self._early, None
        for heard in early or ():
            if heard.revision > self.told[0]:
                self.take(heard, self.told)
        self._follow_hints()

    async def _subscribe(self, stream: BucketStream) -> Subscription:
        bucket, requests = self._watches.bucket, self._watches.requests
        if stream.updates is None:
            return await subscribe(requests, bucket.prefix + self.key, self._on_hint)
        return await subscribe(requests, stream.updates + self.key, self._on_update)

    async def hear_otherwise(self, stream: BucketStream) -> None:
        """Hear of changes as the stream tells them now. What was missed is to be looked up."""
        self.updates = stream.updates
        connection = self._watches.requests.connection
        try:
            new = await self._subscribe(stream)
        except BrokerError as exc:
            if connection.lost is not None:
                raise
            logger.warning("changes of %s are not heard, and looked up alone: %s", self.key, exc)
            return
        if self in self._watches.open_ones:
            new, self._subscription = self._subscription, new
        connection.unsubscribe(new)  # by now the old one, unless this watch has ended meanwhile

    def end(self) -> None:
        del self._watches.open_ones[self]
        self._watches.requests.connection.unsubscribe(self._subscription)

    def take(self, entry: Entry | None, seen: Told) -> None:
        """Tell of ``entry``, or that there is none, if that is news.

        ``seen``: what had been told when it was asked for.
        """
        found = NOTHING if entry is None else (entry.revision, entry.stored_at)
        if self not in self._watches.open_ones or found == self.told:
            return
        if found[0] <= self.told[0] and self.told != seen:
            return
        self.told = found
        try:
            self._on_entry(entry or Entry(self.key, 0, None))
        except Exception:  # it would end all that follows the bucket
            logger.exception("an entry of %r could not be handled", self.key)

    async def look(self) -> None:
        seen = self.told
        self.take(await self._watches.bucket.get(self.key), seen)

    def _on_update(self, message: Incoming) -> None:
        entry = self._watches.bucket.read(message)
        if entry.key != self.key or not entry.revision:  # not the stream's: anybody may publish it
            self._on_hint(message)
        elif self._early is not None:
            self._early.append(entry)
        elif entry.revision > self.told[0]:
            self.take(entry, self.told)
        elif (entry.revision, entry.stored_at) != self.told:
            self._on_hint(message)

    def _on_hint(self, message: Incoming) -> None:
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
