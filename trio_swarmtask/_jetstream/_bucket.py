# A key-value bucket, on its stream: entries that are read, put, listed, and followed.
#
# An entry is the last message of `$KV.<bucket>.<key>`; its sequence is the revision. A deleted key
# leaves a marker: a message with `KV-Operation`, or with `Nats-Marker-Reason` where the server
# let it expire.
#
# Replicas may lag behind a PubAck, so in a replicated stream the leader is asked for a single
# entry. Pages come from any replica: a listing is no snapshot anyway. Of many entries, those that
# have come are kept, even if the connection breaks in between (see `_portions.py`).

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from .._abc import Bucket, Entry, Page, Refused, Watch
from .._errors import BrokerError, ClosedError
from .._nats._connection import NotConnected
from .._nats._requests import (
    NoAnswer,
    NoResponders,
    Requests,
    in_time,
    open_requests,
    persist,
    subscribe,
)
from .._util import get_logger, open_flat_nursery
from ._api import NO_ANSWER_YET, APIError, direct_get, last_message, next_message, publish
from ._bucket_stream import BucketStream, find_bucket, look_at_bucket, make_bucket
from ._headers import parse_count
from ._portions import Portions
from ._refusals import STORED_BEFORE
from ._streams import JetStream, Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from .._nats._connection import Connection, Subscription
    from .._nats._protocol import Incoming
    from ._api import StoredMessage

logger: Final = get_logger("trio_swarmtask.nats")

T = TypeVar("T")

# A page: at most so many entries.
_PAGE: Final = 1000

# Without direct gets every entry is a request of its own.
_SINGLY: Final = 100
_GONE: Final = ("DEL", "PURGE")

# Bytes of the headers, at most: the expected sequence and the TTL.
_HEADER_BYTES: Final = 128


class NATSBucket(Bucket):
    """Made by `open_nats_bucket`."""

    def __init__(self, jetstream: JetStream, nursery: trio.Nursery, name: str, ttl: float) -> None:
        self.prefix = f"$KV.{name}."
        self._connection = jetstream.connection
        self._requests = jetstream.requests
        self._portions = Portions(jetstream.requests)
        self._streams = jetstream.streams
        self._name = name
        self._ttl = ttl
        self._stream: BucketStream | None = None
        self.watches = Watches(self, jetstream.requests, nursery)

    @property
    def one_each(self) -> bool:  # type: ignore[override]  # it is only read
        return self._stream is not None and self._stream.one_each

    @property
    def max_size(self) -> int | None:
        most = self._connection.client.max_payload
        if self._stream is not None and self._stream.max_size is not None:
            most = min(most, self._stream.max_size)
        return most - _HEADER_BYTES

    @property
    def lost(self) -> Exception | None:
        return None if self._connection.lost is None else self._connection.lost_error()

    async def stream(self) -> BucketStream:
        """The stream, made if there is none."""
        if self._stream is None:
            self._stream = await make_bucket(self._streams, self._name, self._ttl)
        return self._stream

    async def look(self) -> BucketStream | None:
        """The stream as it is now, if it is there: an operator may have changed it.

        Raises:
          What a request raises.
        """
        if self._stream is not None:
            self._stream = await look_at_bucket(self._streams, self._stream, self._name, self._ttl)
        return self._stream

    async def get(self, key: str) -> Entry | None:
        async def attempt(stream: BucketStream) -> Entry | None:
            return await self._get(stream, key)

        return await self._read(f"look up {key}", attempt, None)

    async def get_some(
        self, missing: dict[str, None], take: Callable[[Entry], None]
    ) -> Sequence[str]:
        """Look up some of these keys: the first, as many entries as the link carries well.

        ``take`` is called with the newest entry of each, as they come; it may be stale. What needs
        no further look is taken out of ``missing``; that is at least one.

        Returns:
          Those of them that have no entry.
        """
        attempt = partial(self._get_some, missing, take)
        gone = await self._read("look up keys", attempt, None)
        if gone is None:  # the bucket itself
            gone = list(missing)
            missing.clear()
        return gone

    async def put(self, key: str, data: bytes, revision: int) -> None:
        def headers(stream: BucketStream) -> dict[str, str]:
            return {} if stream.ttl_header is None else {"Nats-TTL": stream.ttl_header}

        await self._write(f"store {key}", key, data, revision, headers)

    async def remove(self, key: str, revision: int) -> None:
        def headers(stream: BucketStream) -> dict[str, str]:
            ttl = {} if stream.marker_ttl is None else {"Nats-TTL": stream.marker_ttl}
            return {"KV-Operation": "DEL", **ttl}

        await self._write(f"delete {key}", key, b"", revision, headers)

    async def page(self, after: int) -> Page:
        nothing = Page((), after, more=False)
        what = f"list the bucket {self._name}"
        return await self._read(what, partial(self._page, after=after), nothing)

    def watch(self, key: str, on_entry: Callable[[Entry], None]) -> Watch:
        return self.watches.open(key, on_entry)

    async def _read(
        self, what: str, attempt: Callable[[BucketStream], Awaitable[T]], nothing: T
    ) -> T:
        """What ``attempt`` gives; ``nothing`` if the bucket was deleted: reading makes none."""

        async def on_the_stream() -> T:
            if self._stream is None:
                self._stream = await find_bucket(self._streams, self._name, self._ttl)
            if self._stream is None:
                return nothing
            try:
                return await attempt(self._stream)
            except NoResponders:
                self._stream = None  # deleted, perhaps; or between two leaders
                raise

        return await persist(self._connection, what, on_the_stream)

    async def _write(
        self,
        what: str,
        key: str,
        data: bytes,
        revision: int,
        make_headers: Callable[[BucketStream], dict[str, str]],
    ) -> None:
        unsure = False

        async def attempt() -> None:
            nonlocal unsure
            headers = make_headers(await self.stream())
            headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
            try:
                await publish(self._requests, self.prefix + key, data, headers)
            except NoAnswer:
                unsure = True
                raise
            except NoResponders:
                self._stream = None
                raise
            except APIError as exc:
                if exc.err_code == STORED_BEFORE:
                    raise Refused(unsure=unsure) from exc
                raise

        await persist(self._connection, what, attempt)

    async def _get(self, stream: BucketStream, key: str) -> Entry | None:
        subject = self.prefix + key
        if not stream.direct or stream.replicated:
            return self._read_stored(await last_message(self._requests, stream.name, subject))
        reply = await direct_get(self._requests, stream.name, subject)
        return None if reply is None else self.read(reply)

    def _read_stored(self, message: StoredMessage | None) -> Entry | None:
        if message is None:
            return None
        time = f"{message.time}Z"  # as a direct get has it
        return self._entry(message.subject, message.seq, time, message.headers, message.data)

    async def _get_some(
        self, missing: dict[str, None], take: Callable[[Entry], None], stream: BucketStream
    ) -> Sequence[str]:
        if not missing:
            return ()  # all has come, but for the end of the answer
        if stream.direct:
            return await self._portions.find(
                stream.name, self.prefix, missing, lambda _, message: take(self.read(message))
            )
        key = next(iter(missing))
        entry = await self._get(stream, key)
        del missing[key]
        if entry is None:
            return (key,)
        take(entry)
        return ()

    async def _page(self, stream: BucketStream, after: int) -> Page:
        entries: list[Entry] = []

        def take(entry: Entry) -> None:
            if entry.revision > after:  # no other was asked for
                entries.append(entry)

        try:
            more = await self._fetch_page(stream, after, take) and bool(entries)
        except (NoAnswer, NotConnected):
            if not entries:
                raise
            more = True  # what has come is a page too
        return Page(entries, entries[-1].revision if entries else after, more)

    async def _fetch_page(
        self, stream: BucketStream, after: int, take: Callable[[Entry], None]
    ) -> bool:
        # By `*`, because a key with a dot in it is not a task's.
        subject = f"{self.prefix}*"
        if stream.direct:
            return await self._portions.fetch(
                stream.name,
                lambda message: take(self.read(message)),
                seq=after + 1,
                next_by_subj=subject,
                batch=_PAGE,
            )
        for _ in range(_SINGLY):
            message = await next_message(self._requests, stream.name, subject, after + 1)
            entry = self._read_stored(message)
            if entry is None:
                return False
            take(entry)
            after = entry.revision
        return True

    def read(self, message: Incoming) -> Entry:
        """The entry in a message that comes on another subject than the entry's own."""
        headers = message.headers
        sequence = headers.get("Nats-Sequence", "")
        return self._entry(
            headers.get("Nats-Subject", ""),
            parse_count(sequence) or 0,
            headers.get("Nats-Time-Stamp", ""),
            headers,
            message.data,
        )

    def _entry(
        self, subject: str, sequence: int, stored_at: str, headers: dict[str, str], data: bytes
    ) -> Entry:
        gone = headers.get("KV-Operation") in _GONE or "Nats-Marker-Reason" in headers
        key = subject.removeprefix(self.prefix)
        return Entry(key, sequence, None if gone else data, stored_at)


@asynccontextmanager
async def open_nats_bucket(connection: Connection, name: str, ttl: float) -> AsyncIterator[Bucket]:
    """The bucket, found or made."""
    async with open_flat_nursery() as nursery, open_requests(connection, nursery) as requests:
        jetstream = JetStream(requests, Streams(connection, requests))
        bucket = NATSBucket(jetstream, nursery, name, ttl)
        await in_time(connection, f"give the bucket {name}", bucket.stream)
        nursery.start_soon(bucket.watches.keep)
        try:
            with connection.listening(on_down=bucket.watches.on_down):
                yield bucket
        finally:
            bucket.watches.end()
            nursery.cancel_scope.cancel()


# A key is followed by one core subscription, and one get.
#
# The stream republishes each change after it was stored. Nothing is missed at the beginning:
# subscribe, then get, then drop changes that were heard meanwhile and are not newer than what was
# got. A change that is stored during an outage is never heard, nor one that a partition keeps from
# us while our own connection stands. So after each reconnect, and now and then, all keys are looked
# up.
#
# A bucket that does not republish is followed by its own subjects. They also show changes that the
# stream then refuses, so a message there is only a hint to look; of several quick changes the
# look-up may find only the last one. The stream is looked at as often as the keys: if an operator
# has switched the republishing off or on, keys are followed in the other way from then on.
#
# An answer that is not newer than the last entry told counts only if nothing was told since the
# question. A change that is heard and is not newer is a hint: it was got before it was heard, or
# the bucket was made again and counts from one.

SWEEP_SECONDS: Final = 10.0
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 1.0


class Watches:
    """The keys of a bucket that are followed."""

    def __init__(self, bucket: NATSBucket, requests: Requests, nursery: trio.Nursery) -> None:
        self.bucket = bucket
        self.requests = requests
        self.open_ones: dict[NATSWatch, None] = {}
        self._nursery = nursery
        self._missed = trio.Event()
        self._ended = False

    def open(self, key: str, on_entry: Callable[[Entry], None]) -> Watch:
        """See `Bucket.watch`."""
        return NATSWatch(self, key, on_entry)

    def start(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look something up in the background, unless the bucket is being closed."""
        if not self._ended:
            self._nursery.start_soon(self._unless_refused, look)

    def on_down(self) -> None:
        self._missed.set()

    def end(self) -> None:
        """Start no more look-ups; one about to run may find all closed, and does no harm."""
        self._ended = True

    async def keep(self) -> None:
        """Look up what may have been missed, until closed."""
        while True:
            with trio.move_on_after(SWEEP_SECONDS):
                await self._missed.wait()
            self._missed = trio.Event()
            await self.requests.connection.wait_up()
            await self._unless_refused(self._round)

    async def _unless_refused(self, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        except BrokerError as exc:
            if self.requests.connection.lost is not None:
                raise
            # New changes still reach us, unless there is an outage.
            logger.warning("changes that were missed can't be looked up: %s", exc)
        except ClosedError:
            assert self._ended  # nothing else closes the requests

    async def _round(self) -> None:
        await self._sweep()
        if self.open_ones and await self._hear_otherwise():
            await self._sweep()  # changes from before that

    async def _hear_otherwise(self) -> bool:
        """Follow keys in the other way if the stream was changed; return whether any is."""
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
"""Tells an entry from others of its key: its revision, and when it was stored."""
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
        self._subscription: Subscription | None = None  # while it is entered
        self.updates: str | None = None
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
        """Hear of changes as the stream tells them now. The caller looks up what was missed."""
        self.updates = stream.updates
        connection = self._watches.requests.connection
        try:
            new = await self._subscribe(stream)
        except BrokerError as exc:
            if connection.lost is not None:
                raise
            logger.warning("changes of %s are not heard, and looked up alone: %s", self.key, exc)
            return
        old = new  # if this watch has ended meanwhile
        if self._subscription is not None:
            old, self._subscription = self._subscription, new
        connection.unsubscribe(old)

    def end(self) -> None:
        del self._watches.open_ones[self]
        assert self._subscription is not None
        self._watches.requests.connection.unsubscribe(self._subscription)
        self._subscription = None

    def take(self, entry: Entry | None, seen: Told) -> None:
        """Tell of ``entry``, or that there is none, if that is news.

        ``seen``: what had been told when the entry was asked for.
        """
        found = NOTHING if entry is None else (entry.revision, entry.stored_at)
        if self not in self._watches.open_ones or found == self.told:
            return
        if found[0] <= self.told[0] and self.told != seen:
            return
        self.told = found
        try:
            self._on_entry(entry or Entry(self.key, 0, None))
        except Exception:  # it would end all watches of the bucket
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
        # A hint may come before the stream has stored the change, or be about one that it refuses.
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
