# Dispatcher.map: what it is given, and the block that its results are read in.

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

from ._errors import BrokerError, ClosedError
from ._map import MapResults, Messages
from ._names import check_capability, check_count, shorten
from ._util import flatten

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._group import OnFailure, TaskGroup
    from ._open_group import Orphans
    from ._wire import Message, Result

logger: Final = logging.getLogger("trio_swarmtask.map")


class _OpensGroups(Protocol):
    def open_group(
        self, *, parent: Message | None, on_failure: OnFailure, grace: float, orphans: Orphans
    ) -> AbstractAsyncContextManager[TaskGroup]: ...


class CanMap:
    """A dispatcher, as far as it starts many tasks in a row."""

    def map(
        self: _OpensGroups,
        capability: str,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        limit: int = 100,
        ordered: bool = False,
        parent: Message | None = None,
        grace: float = 5.0,
        orphans: Orphans = "finish",
    ) -> AbstractAsyncContextManager[AsyncIterator[Result]]:
        """Start a task for each message, and iterate over the results as they come.

        A task of the block's own takes the messages, never more than ``limit`` ahead of the results
        that were read: so many tasks at most are outstanding, or finished and not read. A failure
        is a reply, as in `run`. Leaving the block cancels what is outstanding, in the queue and at
        the workers, and waits for the clean-up, as a group does; the block's own exception leaves
        it as it was raised. An async generator is closed then.

        What ``messages`` raises, and what `start` raises for one of them, is raised to the reader
        as one more result would come, and nothing is taken after it; if it was not read, out of
        the block. Several tasks may read: each result goes to one of them. Reading raises
        `ClosedError` after the block was left. If the dispatcher is closed, or loses its server for
        good, while tasks are outstanding, the block raises what `Future.wait` does, in the end.

        Args:
          capability: 1 to 64 of ``A-Z a-z 0-9 _ -``, for example ``"coder"``.
          messages: May be endless.
          limit: From 1 up.
          ordered: Results in the order of the messages; else in that of completion.
          parent, grace, orphans: As for `open_group`.

        Raises:
          InvalidCapabilityError: if ``capability`` has another form.
          ClosedError: if this dispatcher is closed.
          What `start` and `Future.wait` raise, to the reader.
        """
        check_capability(capability)
        _check_messages(messages)
        check_count("limit", limit)
        opening = self.open_group(parent=parent, on_failure="collect", grace=grace, orphans=orphans)
        return _open_map(opening, capability, messages, limit, ordered=ordered)


def _check_messages(messages: object) -> None:
    if isinstance(messages, AsyncIterable | Iterable):
        return
    if inspect.iscoroutine(messages):
        messages.close()
        raise TypeError(f"{shorten(messages)} has to be awaited: pass the messages that it returns")
    raise TypeError(
        f"messages must be an iterable or an async iterable of Message, not {shorten(messages)}"
    )


@asynccontextmanager
async def _open_map(
    opening: AbstractAsyncContextManager[TaskGroup],
    capability: str,
    messages: Messages,
    limit: int,
    *,
    ordered: bool,
) -> AsyncIterator[MapResults]:
    unread: list[Exception] = []
    try:
        async with flatten(opening) as group:
            results = MapResults(group, capability, messages, limit, ordered=ordered)
            unread = results.unread
            group._nursery.start_soon(results._feed)
            try:
                yield results
            finally:
                results._leave()
    except BaseException:
        _log(unread)
        raise
    if unread:
        _log(unread[1:])
        raise unread[0]


def _log(unread: list[Exception]) -> None:
    for error in unread:
        if not isinstance(error, ClosedError | BrokerError):  # those end everything else, too
            logger.warning("a map was left before its error was read", exc_info=error)
