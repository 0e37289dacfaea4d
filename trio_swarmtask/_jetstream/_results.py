# The results of tasks on the server: stored, and fetched, one by one or many after an outage.
#
# The first result of a task is the one that counts. The header FIRST lets that one in and no other,
# so a result that is published twice because its PubAck got lost is stored once. A refusal alone
# proves nothing: what counts is a PubAck, or a result that is found. Until there is one of these,
# the result is published again.
#
# A stream that keeps one result a task and refuses others is asked for the last; any other is asked
# for the first from sequence 1. Replicas may lag behind a PubAck, so in a replicated stream the
# leader is asked for a single result; in bulk, the next sweep finds a result that was missed:
# there, to find none proves nothing.
#
# Many results are handed on as they come, and asked for until there is an answer for each: what has
# come is not asked for again, even if the connection breaks in between (see `_portions.py`).

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .._nats._io import encode_headers
from .._nats._requests import NoAnswer, Requests, check_size
from ._api import (
    NO_ANSWER_YET,
    APIError,
    Publish,
    direct_get,
    last_message,
    next_message,
    publish,
    publish_soon,
    refused_for_its_size,
)
from ._portions import Portions
from ._refusals import STORED_BEFORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .._nats._protocol import Incoming
    from ._streams import JetStream, ResultStream

FIRST: Final = {"Nats-Expected-Last-Subject-Sequence": "0"}
FIRST_BLOCK: Final = encode_headers(FIRST)
FIRST_BYTES: Final = len(FIRST_BLOCK)
_SUBJECT: Final = b"\r\nNats-Subject: done."


class ResultStore:
    """Results, stored and fetched through outages, for one role."""

    def __init__(self, jetstream: JetStream) -> None:
        self._requests = jetstream.requests
        self._streams = jetstream.streams
        self._portions = Portions(jetstream.requests)

    def put_soon(
        self, task_id: str, result: bytes, answer: Publish, *, checked: bool = False
    ) -> bool:
        """Begin `put`: ``answer`` is told whether it was stored; if not, `put` finds out why.

        ``checked``: have the server look for a first result, whatever is known of the stream. A
        worker looks at the stream in each round of renewal; who cancels may know an old state.

        Returns:
          False if nothing was sent.
        """
        # A stream that keeps one result a task refuses a second one by itself.
        stream = self._streams.known_results
        one_each = stream is not None and stream.one_each and not checked
        block = b"" if one_each else FIRST_BLOCK
        subject = b"done.%b" % task_id.encode()
        return publish_soon(self._requests, answer, subject, result, block, FIRST_BYTES)

    async def put(self, task_id: str, result: bytes) -> bytes:
        """Store the result of a task, unless one is there; return the one that counts.

        Raises:
          InvalidMessageError: if it is larger than the server or the stream takes.
        """
        check_size(self._requests.connection, result, FIRST_BYTES)
        refused = False
        # Nearly every result takes this short way, without the calls that the others need.
        try:
            await publish(self._requests, f"done.{task_id}", result, FIRST)
        except NO_ANSWER_YET as exc:
            refused = isinstance(exc, APIError) and exc.err_code == STORED_BEFORE
        else:
            return result
        with refused_for_its_size(len(result), "results"):
            return await self._put_with_retries(task_id, result, refused=refused)

    async def _put_with_retries(self, task_id: str, result: bytes, *, refused: bool) -> bytes:
        is_there = refused

        async def attempt() -> bytes:
            nonlocal is_there
            # The stream is made again, if it was deleted and we may make it.
            stream = await self._streams.results()
            if not is_there:
                try:
                    await publish(self._requests, f"done.{task_id}", result, FIRST)
                except APIError as exc:
                    if exc.err_code != STORED_BEFORE:
                        raise
                else:
                    return result
            # It is ours, if only the answer to an earlier attempt was lost.
            found = await fetch_result(self._requests, stream, task_id)
            is_there = found is not None
            if found is None:
                # It has just expired, or the server that was asked does not know of it yet.
                raise NoAnswer(f"a result of task {task_id} is said to be there, and is not found")
            return found

        return await self._streams.persist(f"store the result of task {task_id}", attempt)

    async def get(self, task_id: str) -> bytes | None:
        """The first result stored for a task, or None."""

        async def fetch() -> bytes | None:
            return await fetch_result(self._requests, await self._streams.results(), task_id)

        return await self._streams.persist(f"look up task {task_id}", fetch)

    async def get_many(self, task_ids: Iterable[str]) -> dict[str, bytes]:
        """The results stored for these tasks."""
        found: dict[str, bytes] = {}
        missing = dict.fromkeys(task_ids)
        while missing:
            await self.get_some(missing, found.__setitem__)
        return found

    async def get_some(self, missing: dict[str, None], take: Callable[[str, bytes], None]) -> None:
        """Look up some of these tasks: the first, as many results as the link carries well.

        ``take`` is called with each task and its result, as they come. What needs no further look,
        for it was found or is not there, is taken out of ``missing``; that is at least one.
        """

        async def fetch() -> None:
            stream = await self._streams.results()
            if not missing:
                return  # all has come, but for the end of the answer
            if stream.direct and stream.one_each:
                await self._portions.find(
                    stream.name,
                    "done.",
                    missing,
                    lambda task_id, message: take(task_id, message.data),
                )
                return
            task_id = next(iter(missing))
            data = await fetch_result(self._requests, stream, task_id)
            del missing[task_id]
            if data is not None:
                take(task_id, data)

        await self._streams.persist("look up results", fetch)


async def fetch_result(requests: Requests, stream: ResultStream, task_id: str) -> bytes | None:
    """The first result stored for a task, or None."""
    subject = f"done.{task_id}"
    if stream.direct and stream.one_each and not stream.replicated:
        reply = await direct_get(requests, stream.name, subject)
        return None if reply is None else reply.data
    if stream.one_each:
        message = await last_message(requests, stream.name, subject)
    else:
        message = await next_message(requests, stream.name, subject, 1)
    return None if message is None else message.data


def result_id(message: Incoming) -> str:
    """The task of a result that comes on another subject than the result's own."""
    head = message.head
    begin = head.rfind(_SUBJECT)  # the server's own is the last
    if begin < 0:
        return ""
    begin += len(_SUBJECT)
    return head[begin : head.find(b"\r", begin)].decode(errors="replace")
