# Stored results, fetched: one by one, or many after an outage.
#
# The first result of a task is the one that counts. A stream that keeps one a task and refuses
# others is asked for the last; any other is asked for the first from sequence 1. Replicas may lag
# behind a PubAck, so a stream that has some asks its leader for a single one; in bulk a result
# that is missed is found by the next sweep.

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

import msgspec

from ._jetstream import NO_MESSAGE, NO_STREAM, APIError, NoResponders, call
from ._requests import Requests, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._incoming import Incoming
    from ._streams import ResultStream

# The server takes about a thousand subjects a request; 413 past that.
BATCH: Final = 500


async def fetch_result(requests: Requests, stream: ResultStream, task_id: str) -> bytes | None:
    """The first result stored for a task, or None."""
    subject = f"done.{task_id}"
    if stream.direct and stream.one_each and not stream.replicated:
        reply = await requests.request(f"$JS.API.DIRECT.GET.{stream.name}.{subject}")
        status = status_of(reply)
        if status is None:
            return reply.data
        if status == "404":
            return None
        raise NoResponders(f"a direct get of {stream.name}")
    body = {"last_by_subj": subject} if stream.one_each else {"seq": 1, "next_by_subj": subject}
    try:
        answer = await call(requests, f"STREAM.MSG.GET.{stream.name}", **body)
    except APIError as exc:
        if exc.err_code == NO_MESSAGE:
            return None
        if exc.err_code == NO_STREAM:
            raise NoResponders(f"the stream {stream.name}") from exc
        raise
    return base64.b64decode(answer["message"].get("data", ""))


async def fetch_results(
    requests: Requests, stream: ResultStream, task_ids: Iterable[str]
) -> dict[str, bytes]:
    """The results stored for these tasks, at most `BATCH` of them."""
    found: dict[str, bytes] = {}
    if stream.direct and stream.one_each:
        body = msgspec.json.encode({"multi_last": [f"done.{task_id}" for task_id in task_ids]})
        replies = await requests.collect(f"$JS.API.DIRECT.GET.{stream.name}", body)
        status = status_of(replies[-1])
        if status not in ("204", "404"):
            raise NoResponders(f"a direct get of {stream.name}")
        for reply in replies[:-1]:
            found[result_id(reply)] = reply.data
        return found
    for task_id in task_ids:
        data = await fetch_result(requests, stream, task_id)
        if data is not None:
            found[task_id] = data
    return found


def result_id(message: Incoming) -> str:
    """The task of a result that the server hands out by another subject than its own."""
    return message.header(b"Nats-Subject").removeprefix("done.")
