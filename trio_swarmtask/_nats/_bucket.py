# A key-value bucket, on its stream.
#
# An entry is the last message of `$KV.<bucket>.<key>`; its sequence is the revision. A deleted key
# leaves a marker: a message with `KV-Operation`, or with `Nats-Marker-Reason` where the server
# let it expire.
#
# Replicas may lag behind a PubAck, so a stream that has some asks its leader for a single entry.
# Pages come from any replica: a listing is no snapshot anyway.

from __future__ import annotations

import base64
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from .._bucket import Bucket, Entry, Page
from .._util import open_flat_nursery
from ._bucket_stream import BucketStream, find_bucket
from ._client import Client
from ._jetstream import (
    NO_MESSAGE,
    NO_STREAM,
    WRONG_LAST_SEQUENCE,
    APIError,
    NoResponders,
    call,
    in_time,
    persist,
    publish,
)
from ._requests import Requests, open_requests, status_of
from ._streams import Streams
from ._watch import Watches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nats.aio.msg import Msg

    from ._connection import Connection

T = TypeVar("T")

# A page: at most so many entries, and about so many bytes.
_PAGE: Final = 1000
_PAGE_BYTES: Final = 4 * 1024 * 1024
# Without direct gets every entry is a request of its own.
_SINGLY: Final = 100
# The server takes about a thousand subjects a request; 413 past that.
_BATCH: Final = 500

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

    async def stream(self) -> BucketStream:
        """The stream, found or made again if it was gone."""
        if self._stream is None:
            self._stream = await find_bucket(self._streams, self._name, self._ttl)
        return self._stream

    async def get(self, key: str) -> Entry | None:
        return await self._persist(f"look up {key}", lambda stream: self._get(stream, key))

    async def get_many(self, keys: list[str]) -> dict[str, Entry]:
        """The newest entries of these keys, of those that have one; they may be stale."""
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            entries = await self._persist("look up keys", partial(self._get_batch, keys=batch))
            found.update((entry.key, entry) for entry in entries)
        return found

    async def put(self, key: str, data: bytes, revision: int) -> int | None:
        async def attempt(stream: BucketStream) -> int | None:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
            if stream.ttl_header is not None:
                headers["Nats-TTL"] = stream.ttl_header
            return await self._publish(key, data, headers)

        return await self._persist(f"store {key}", attempt)

    async def remove(self, key: str, revision: int) -> bool:
        async def attempt(stream: BucketStream) -> int | None:
            headers = {
                "KV-Operation": "DEL",
                "Nats-Expected-Last-Subject-Sequence": str(revision),
            }
            if stream.marker_ttl is not None:
                headers["Nats-TTL"] = stream.marker_ttl
            return await self._publish(key, b"", headers)

        return await self._persist(f"delete {key}", attempt) is not None

    async def page(self, after: int) -> Page:
        return await self._persist(
            f"list the bucket {self._name}", lambda stream: self._page(stream, after)
        )

    def watch(
        self, key: str, on_entry: Callable[[Entry], None]
    ) -> AbstractAsyncContextManager[None]:
        return self.watches.open(key, on_entry)

    async def _persist(self, what: str, attempt: Callable[[BucketStream], Awaitable[T]]) -> T:
        async def on_the_stream() -> T:
            try:
                return await attempt(await self.stream())
            except NoResponders:
                self._stream = None  # deleted, perhaps; or between two leaders
                raise

        return await persist(self._connection, what, on_the_stream)

    async def _publish(self, key: str, data: bytes, headers: dict[str, str]) -> int | None:
        try:
            ack = await publish(self._requests, self.prefix + key, data, headers)
        except APIError as exc:
            if exc.err_code in WRONG_LAST_SEQUENCE:
                return None
            raise
        return ack.seq

    async def _get(self, stream: BucketStream, key: str) -> Entry | None:
        subject = self.prefix + key
        if not stream.direct or stream.replicated:
            return await self._get_at_leader(stream, last_by_subj=subject)
        reply = await self._requests.request(f"$JS.API.DIRECT.GET.{stream.name}.{subject}")
        status = status_of(reply)
        if status is None:
            return self.read(reply)
        if status == "404":
            return None
        raise NoResponders(f"a direct get of {stream.name}")

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
        headers = Client._parse_header_lines(base64.b64decode(message.get("hdrs", "")))
        data = base64.b64decode(message.get("data", ""))
        return self._entry(message["subject"], message["seq"], headers, data)

    async def _get_batch(self, stream: BucketStream, keys: list[str]) -> list[Entry]:
        if stream.direct:
            return (await self._collect(stream, multi_last=[self.prefix + key for key in keys]))[0]
        entries = [await self._get(stream, key) for key in keys]
        return [entry for entry in entries if entry is not None]

    async def _page(self, stream: BucketStream, after: int) -> Page:
        # By `*`, for a key with a dot in it is not a task's.
        subject = f"{self.prefix}*"
        entries: list[Entry] = []
        if stream.direct:
            entries, more = await self._collect(
                stream, seq=after + 1, next_by_subj=subject, batch=_PAGE, max_bytes=_PAGE_BYTES
            )
            return Page(entries, entries[-1].revision if entries else after, more)
        while len(entries) < _SINGLY:
            entry = await self._get_at_leader(stream, seq=after + 1, next_by_subj=subject)
            if entry is None:
                return Page(entries, after, more=False)
            entries.append(entry)
            after = entry.revision
        return Page(entries, after, more=True)

    async def _collect(self, stream: BucketStream, **which: object) -> tuple[list[Entry], bool]:
        """A batch of direct gets, and whether there are more."""
        replies = await self._requests.collect(
            f"$JS.API.DIRECT.GET.{stream.name}", msgspec.json.encode(which)
        )
        end = replies.pop()
        if status_of(end) not in ("204", "404"):
            raise NoResponders(f"a direct get of {stream.name}")
        more = (end.headers or {}).get("Nats-Num-Pending", "0") != "0"
        return [self.read(reply) for reply in replies], more

    def read(self, message: Msg) -> Entry:
        """The entry in a message that the server hands out by another subject than its own."""
        headers = message.headers or {}
        subject, sequence = headers.get("Nats-Subject", ""), headers.get("Nats-Sequence", "0")
        return self._entry(subject, int(sequence), headers, message.data)

    def _entry(self, subject: str, sequence: int, headers: dict[str, str], data: bytes) -> Entry:
        gone = headers.get("KV-Operation") in _GONE or "Nats-Marker-Reason" in headers
        return Entry(subject.removeprefix(self.prefix), sequence, None if gone else data)


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
            nursery.cancel_scope.cancel()
