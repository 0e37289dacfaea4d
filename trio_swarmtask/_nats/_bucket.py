# A key-value bucket, on its stream.
#
# An entry is the last message of `$KV.<bucket>.<key>`; its sequence is the revision. A deleted key
# leaves a marker: a message with `KV-Operation`, or with `Nats-Marker-Reason` where the server
# let it expire.
#
# Replicas may lag behind a PubAck, so a stream that has some asks its leader for a single entry.
# Pages come from any replica: a listing is no snapshot anyway. What comes of many entries is kept,
# whatever becomes of the connection in between (see `_portions.py`).

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._bucket import Bucket, Entry, Page, Refused, Watch
from .._util import open_flat_nursery
from ._ack_subject import parse_count
from ._bucket_stream import BucketStream, find_bucket, look_at_bucket, make_bucket
from ._connection import NotConnected
from ._incoming import Incoming, parse_headers
from ._jetstream import APIError, NoResponders, call, direct_get, in_time, persist, publish
from ._portions import Portions
from ._refusals import NO_MESSAGE, NO_STREAM, STORED_BEFORE
from ._requests import NoAnswer, Requests, open_requests
from ._streams import Streams
from ._watch import Watches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from ._connection import Connection

T = TypeVar("T")

# A page: at most so many entries.
_PAGE: Final = 1000
# Without direct gets every entry is a request of its own.
_SINGLY: Final = 100
_GONE: Final = ("DEL", "PURGE")

# What may stand before the data: the expected sequence and the TTL.
_HEADER_BYTES: Final = 128


class NATSBucket(Bucket):
    """Made by `open_nats_bucket`."""

    def __init__(self, requests: Requests, streams: Streams, name: str, ttl: float) -> None:
        self.prefix = f"$KV.{name}."
        self.watches: Watches  # set by open_nats_bucket before anyone sees the bucket
        self._connection = requests.connection
        self._requests = requests
        self._portions = Portions(requests)
        self._streams = streams
        self._name = name
        self._ttl = ttl
        self._stream: BucketStream | None = None

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
            return await self._get_at_leader(stream, last_by_subj=subject)
        reply = await direct_get(self._requests, stream.name, subject)
        return None if reply is None else self.read(reply)

    async def _get_at_leader(self, stream: BucketStream, **which: object) -> Entry | None:
        try:
            answer = await call(self._requests, f"STREAM.MSG.GET.{stream.name}", **which)
        except APIError as exc:
            if exc.err_code == NO_MESSAGE:
                return None
            if exc.err_code == NO_STREAM:
                raise NoResponders(f"the stream {stream.name}") from exc
            raise
        message: dict[str, Any] = answer["message"]
        headers = parse_headers(base64.b64decode(message.get("hdrs") or ""))
        data = base64.b64decode(message.get("data") or "")
        return self._entry(message["subject"], message["seq"], message["time"], headers, data)

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
            if entry.revision > after:  # nothing else was asked for
                entries.append(entry)

        try:
            more = await self._fetch_page(stream, after, take) and bool(entries)
        except (NoAnswer, NotConnected):
            if not entries:
                raise
            more = True  # what has come is a page as well
        return Page(entries, entries[-1].revision if entries else after, more)

    async def _fetch_page(
        self, stream: BucketStream, after: int, take: Callable[[Entry], None]
    ) -> bool:
        # By `*`, for a key with a dot in it is not a task's.
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
            entry = await self._get_at_leader(stream, seq=after + 1, next_by_subj=subject)
            if entry is None:
                return False
            take(entry)
            after = entry.revision
        return True

    def read(self, message: Incoming) -> Entry:
        """The entry in a message that the server hands out by another subject than its own."""
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
        bucket = NATSBucket(requests, Streams(connection, requests), name, ttl)
        await in_time(connection, f"give the bucket {name}", bucket.stream)
        bucket.watches = Watches(bucket, requests)
        await nursery.start(bucket.watches.keep)
        connection.on_down.append(bucket.watches.on_down)
        try:
            yield bucket
        finally:
            connection.on_down.remove(bucket.watches.on_down)
            bucket.watches.end()
            nursery.cancel_scope.cancel()
