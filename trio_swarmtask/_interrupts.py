# Where a Ctrl-C is raised.
#
# Python raises KeyboardInterrupt between any two instructions of the main thread: in the reader of
# a connection, say, which would be dead, with all that waits for it. Trio lets functions ask for
# protection: what they run is not interrupted, and the main task gets the interrupt at its next
# checkpoint, as an exception like any other. Here everything asks for it, by `protect`: each
# function of this package, since any of them keeps state that others rely on. A handler is called
# without protection, by `unprotected`: that is the user's code, and may be busy for long.
#
# The mark is on the code of a function, once; nothing is done when it is called.
#
# What Python does between two functions of the user's can't be protected, nor the loop of a
# trio-asyncio that is not known (see `_nats/_versions.py`): ``trio.run(…,
# restrict_keyboard_interrupt_to_checkpoints=True)`` is for programs that need that too.

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from functools import wraps
from types import CellType, CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType, TracebackType

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_PACKAGE: Final = __name__.partition(".")[0]
_marked: Final[set[str]] = set()  # modules
_unprotected: Final[set[CodeType]] = set()


def unprotected(function: F) -> F:
    """Let interrupts be raised in what ``function`` calls, if that does not ask for protection."""
    _unprotected.add(function.__code__)
    return trio.lowlevel.disable_ki_protection(function)


def protect() -> None:
    """Protect the functions of all modules of this package that have been imported by now."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == _PACKAGE and name not in _marked:
            _marked.add(name)
            for code in codes_of(module):
                if code not in _unprotected:
                    cells = tuple(CellType() for _ in code.co_freevars)
                    trio.lowlevel.enable_ki_protection(FunctionType(code, {}, None, None, cells))


def codes_of(module: ModuleType) -> Iterator[CodeType]:
    """The code of each function that ``module`` holds, nested ones and those of classes too."""
    for value in list(vars(module).values()):
        yield from _codes_in(value, str(module.__file__))


def _codes_in(value: Any, file: str) -> Iterator[CodeType]:  # noqa: ANN401 - whatever a module holds
    if isinstance(value, type):
        if value.__module__.partition(".")[0] == _PACKAGE:
            for member in list(vars(value).values()):
                yield from _codes_in(member, file)
    elif isinstance(value, property):
        for accessor in (value.fget, value.fset):
            yield from _codes_in(accessor, file)
    else:
        while (
            wrapped := getattr(value, "__wrapped__", getattr(value, "__func__", None))
        ) is not None:
            yield from _with_nested(value, file)
            value = wrapped
        yield from _with_nested(value, file)


def _with_nested(value: Any, file: str) -> Iterator[CodeType]:  # noqa: ANN401 - see above
    codes = [value.__code__] if isinstance(value, FunctionType) else []
    for code in codes:
        if code.co_filename == file:
            codes += [const for const in code.co_consts if isinstance(const, CodeType)]
            yield code


class _Block(AbstractAsyncContextManager[T]):
    # The frames of contextlib ask for no protection, and stand between ours and the user's. If the
    # block's end were interrupted before it has begun, its tasks would be left behind.

    __slots__ = ("_inner",)

    def __init__(self, inner: AbstractAsyncContextManager[T]) -> None:
        self._inner = inner

    async def __aenter__(self) -> T:
        return await self._inner.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._inner.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - the end


def block(
    make: Callable[P, AbstractAsyncContextManager[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """Over `contextlib.asynccontextmanager`, for what users open: its end is whole."""

    @wraps(make)
    def open_block(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _Block(make(*args, **kwargs))

    return open_block
