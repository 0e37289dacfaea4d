# Calls that end when what they belong to is closed, wherever they wait.
#
# Each role has an error of its own for that. What a role stands on (a bus, a bucket, the inbox of
# its requests) is closed after it, and has another one. A call that has just got its answer meets
# that one before it notices that it is cancelled: it is told the role's all the same.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Lifetime:
    """From the opening of something to its closing."""

    def __init__(self) -> None:
        self._make_error: Callable[[], Exception] | None = None
        self._scopes: set[trio.CancelScope] = set()

    @property
    def is_over(self) -> bool:
        return self._make_error is not None

    def check(self) -> None:
        """Raise if it is over."""
        if self._make_error is not None:
            raise self._make_error()

    async def run(self, act: Callable[[], Awaitable[T]]) -> T:
        """What ``act`` gives; if the lifetime ends first, ``act`` is cancelled, and this raises."""
        self.check()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await act()
            except trio.ClosedResourceError as exc:
                if self._make_error is None:
                    raise
                raise self._make_error() from exc
            finally:
                self._scopes.discard(scope)
        assert self._make_error is not None
        raise self._make_error()

    def end(self, make_error: Callable[[], Exception]) -> None:
        """End every call, and refuse further ones. The first end counts."""
        if self._make_error is None:
            self._make_error = make_error
            for scope in self._scopes:
                scope.cancel()
