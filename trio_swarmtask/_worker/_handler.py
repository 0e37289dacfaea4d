# The user's handler: whether it can be one, and what its value or failure becomes as a Result.

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from .._envelope import Status, encode_success
from .._errors import InvalidMessageError
from .._message import Message, Result
from .._util import leaves, shorten

Handler = Callable[[Message], Awaitable[object]]
"""An async function of one `Message`; what it returns or raises becomes the task's `Result`."""

# Characters of a failure's text that go onto the wire: enough to say what happened, and never so
# much that the failed result itself is larger than the server takes.
_ERROR_LIMIT: Final = 8000

# The largest count on the wire.
_LARGEST: Final = 2**63 - 1


def check_handler(handler: object) -> None:
    """Raise TypeError, saying what to do, unless ``handler`` is an async callable."""
    inner = handler
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.iscoroutinefunction(inner):
        return
    if inspect.iscoroutinefunction(getattr(type(inner), "__call__", None)):  # noqa: B004 - not to call it
        return
    if inspect.iscoroutine(inner):
        inner.close()
        raise TypeError(
            f"{shorten(handler)} is the coroutine of a call: pass the async function itself, "
            "without calling it"
        )
    raise TypeError(
        f"the handler must be an async function, not {shorten(handler)}: write "
        "'async def handler(message)'; for blocking code await trio.to_thread.run_sync in it"
    )


class Value:
    """What a handler returned, where that is no `Result`: the outputs of a success."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value: object = value


def failed_result(error: str) -> Result:
    """A failure with this text, cut to what fits and to what UTF-8 can carry."""
    text = error.encode("utf-8", "backslashreplace").decode()
    if len(text) > _ERROR_LIMIT:
        text = f"{text[:_ERROR_LIMIT]}… ({len(text)} characters)"
    return Result(status=Status.FAILED, error=text)


def describe(exc: BaseException) -> str:
    """The text of an exception, or its type's name if that is empty; for a group, its leaves'."""
    return "; ".join(_text(leaf) for leaf in leaves(exc))


def _text(exc: BaseException) -> str:
    try:
        text = str(exc)
    except BaseException as broken:  # noqa: ASYNC103, BLE001 - a user's __str__ may raise anything
        text = f"{type(exc).__name__}, whose text raised {type(broken).__name__}"
    return text or type(exc).__name__


def fill_result(
    result: Result, *, task_id: str, correlation_id: str, agent: str, attempt: int, seconds: float
) -> Result:
    """``result`` with its blanks filled.

    Raises:
      InvalidMessageError: if it names another task.
    """
    if result.id not in ("", task_id):
        raise InvalidMessageError(
            f"the handler of task {task_id!r} returned a Result of task {shorten(result.id)}; "
            "leave its id empty"
        )
    return msgspec.structs.replace(
        result,
        id=task_id,
        correlation_id=correlation_id if result.correlation_id == "" else result.correlation_id,
        agent=agent if result.agent == "" else result.agent,
        attempt=attempt if result.attempt == 0 else result.attempt,
        duration=round(seconds * 1000) if result.duration == 0 else result.duration,
        completed_at=datetime.now(UTC) if result.completed_at is None else result.completed_at,
    )


def encode_result(
    result: Result | Value, message: Message, number: int, agent: str, seconds: float
) -> bytes:
    """What came of ``message`` in its delivery of that number, as it is stored.

    Raises:
      InvalidMessageError: if it can't be sent, or names another task.
    """
    attempt = count_attempt(message, number)
    if isinstance(result, Value):
        return encode_success(
            task_id=message.id,
            correlation_id=message.correlation_id,
            outputs=result.value,
            agent=agent,
            attempt=attempt,
            duration=round(seconds * 1000),
        )
    return fill_result(
        result,
        task_id=message.id,
        correlation_id=message.correlation_id,
        agent=agent,
        attempt=attempt,
        seconds=seconds,
    ).encode()


def count_attempt(message: Message, number: int) -> int:
    """Which attempt the delivery of that number is."""
    # Bounded: anybody may write any attempt into a message, and a number that Go can't read ends
    # a worker.
    return min(max(1, message.attempt) + number - 1, _LARGEST)
