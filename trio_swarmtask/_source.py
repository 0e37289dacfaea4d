# What calls back for a while: the end of it never waits, so it can stand in any `finally`.

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Source(AbstractAsyncContextManager[None]):
    """Calls back, from the entering of its block to the leaving."""

    @abstractmethod
    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    @abstractmethod
    def end(self) -> None:
        """What leaving the block does."""


class NoSource(Source):
    """Nothing calls back."""

    async def __aenter__(self) -> None:
        pass

    def end(self) -> None:
        pass
