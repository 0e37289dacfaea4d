# What the handler of a task reports, as its future hears it.
#
# No generator and no Trio task hears the progress, but an object that anybody may drop half way.
# Its subscription ends when its future ends, in whatever way, or before, when the object is closed.

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from .._errors import InvalidResultError, SwarmTaskError
from .._record import Result as Record, ResultStatus, decode
from .._sync import Buffered, Lifetime
from .._util import NoPublicConstructor, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._abc import Source

logger: Final = get_logger("trio_swarmtask.dispatcher")

# Reports that wait for a slow reader.
_BUFFER_SIZE: Final = 16


@final
class Updates(Buffered[Record], metaclass=NoPublicConstructor):
    """What the handler of a task reports, as it comes. Made by `Future.updates`.

    ``async for`` it, or ``async with`` it first to end it before the task does.
    """

    def __init__(
        self,
        task_id: str,
        follow: Callable[[str, Callable[[bytes], None]], Source],
        is_ended: Callable[[], bool],
        watch: Callable[[Callable[[object], None]], None],
        unwatch: Callable[[Callable[[object], None]], None],
    ) -> None:
        super().__init__(_BUFFER_SIZE)
        self._task_id = task_id
        self._source = follow(task_id, self._hear)
        self._is_ended = is_ended
        self._watch = watch
        self._unwatch = unwatch
        self._lifetime = Lifetime()
        self._entering = trio.Lock()
        self._entered = False
        self._has_told = False

    async def aclose(self) -> None:
        """End the iteration now; what was not read is dropped."""
        self._leave()
        await trio.lowlevel.checkpoint()

    async def __anext__(self) -> Record:
        if not self._entered:
            await self._enter()
        return await super().__anext__()

    def _check_entered(self) -> None:
        """Nothing to check: reading enters the block."""

    async def _enter(self) -> None:
        async with self._entering:  # several tasks may begin to read
            if self._entered or self._lifetime.is_over:
                return
            if self._is_ended():
                self._end()
                return
            self._watch(self._on_future_end)
            try:
                await self._lifetime.run(self._source.__aenter__)
                self._entered = True
            except SwarmTaskError:
                if not self._lifetime.is_over:  # else it ends as the future does, which says why
                    raise
            finally:
                if not self._entered:
                    self._unwatch(self._on_future_end)
                elif self._lifetime.is_over:  # just as it began
                    self._source.end()

    def _hear(self, data: bytes) -> None:
        try:
            record = decode(data, self._task_id)
        except InvalidResultError as exc:
            if not self._has_told:
                self._has_told = True
                logger.error("skipped what came as progress of task %s: %s", self._task_id, exc)
            return
        if record.status is ResultStatus.PENDING:
            self._buffer.put(record)

    def _on_future_end(self, _: object) -> None:
        self._end()

    def _leave(self) -> None:
        self._end(discard=True)

    def _end(self, *, discard: bool = False) -> None:
        self._unwatch(self._on_future_end)
        self._buffer.end(discard=discard)
        self._source.end()
        self._lifetime.end(partial(_Ended, "the task has ended"))


class _Ended(SwarmTaskError):
    """Never seen by users."""
