# Small things that every layer needs: classes that only `open_*` makes, names that show where users
# find them, values as errors show them, and a nursery that does not show in the user's errors.
#
# A nursery wraps what leaves its block in an exception group. The nurseries of this library do not
# concern its users: the user's `except ValueError:` round `async with open_worker(...)` must work
# as if there were none. So the block's own exception leaves as it was raised, and a background
# task's error leaves bare, unless there are several. An error that stays behind because another one
# leaves is logged, and added to the other one as a note.

from __future__ import annotations

import inspect
import logging
import re
import sys
import traceback
from abc import ABCMeta
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping


class _Logger(logging.LoggerAdapter[logging.Logger]):
    """Logs for tasks that must not end by it: a user's handler of log records may raise."""

    def log(self, level: int, msg: object, *args: object, **settings: Any) -> None:
        settings["stacklevel"] = settings.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **settings)
        except Exception:  # noqa: BLE001 - as logging does it with what `emit` reports to it
            if logging.raiseExceptions and sys.stderr:
                traceback.print_exc()


def get_logger(name: str) -> logging.LoggerAdapter[logging.Logger]:
    """As `logging.getLogger`; an exception of a handler of records goes to standard error."""
    return _Logger(logging.getLogger(name), {})


logger: Final = get_logger("trio_swarmtask")

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class NoPublicConstructor(ABCMeta):
    """Metaclass of classes that users can't call: the library makes their objects."""

    def __call__(cls, *args: object, **kwargs: object) -> None:
        made_by = (cls.__doc__ or "").partition("\n")[0]
        raise TypeError(f"{cls.__name__} has no public constructor. {made_by}")

    def _create(cls: type[T], *args: Any, **kwargs: Any) -> T:
        return super().__call__(*args, **kwargs)  # type: ignore[misc, no-any-return]  # type.__call__


def show_public_paths(namespace: Mapping[str, Any]) -> None:
    """Let what a public module imports from private ones show the public path.

    Tracebacks, ``repr`` and ``help`` show it. If several public modules hold an object, the first
    one counts.
    """
    for name, value in namespace.items():
        origin = getattr(value, "__module__", None) or ""
        if not name.startswith("_") and origin.startswith("trio_swarmtask.") and "._" in origin:
            if isinstance(value, type):
                # Annotations that are text are evaluated in the module that `__module__` names.
                with suppress(NameError):  # imported for type checkers alone
                    value.__annotations__ = inspect.get_annotations(value, eval_str=True)
            value.__module__ = namespace["__name__"]


def fresh(error: E) -> E:
    """A copy of an error that several callers get: each raise adds to an error's traceback."""
    return type(error)(*error.args)


def open_flat_nursery() -> AbstractAsyncContextManager[trio.Nursery]:
    """A nursery that lets the block's own exception out as it was raised.

    An interrupt of a background task (``KeyboardInterrupt``, ``SystemExit``) comes first, then the
    block's own exception, then a background task's.
    """
    return flatten(trio.open_nursery())


@asynccontextmanager
async def flatten(nursery: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """As `open_flat_nursery`, for anything whose block ends as a nursery's does."""
    own: BaseException | None = None
    error: BaseException | None = None
    try:
        async with nursery as opened:
            try:
                yield opened
            except BaseException as exc:
                own = exc
                raise
    except BaseExceptionGroup as group:
        error = _choose(group, own)
        _tell_others(group, error)
    if error is not None:
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # not what the block was cancelled by meanwhile
            del error, own  # the traceback refers to this frame


def _choose(group: BaseExceptionGroup[BaseException], own: BaseException | None) -> BaseException:
    interrupt = find_interrupt(group)
    if interrupt is not None and (own is None or interrupt not in leaves(own)):
        return interrupt
    if own is not None and not any(isinstance(leaf, trio.Cancelled) for leaf in leaves(own)):
        return own  # what is in the group may be a copy of it: Trio takes groups apart
    errors = [exc for exc in group.exceptions if not _is_cancellation(exc)]
    if len(errors) > 1:
        return group
    return errors[0] if errors else next(leaves(group))  # a cancellation leaves bare


def _tell_others(group: BaseException, chosen: BaseException) -> None:
    """Log, and note at ``chosen``, the errors that do not leave the block."""
    shown = {(type(leaf), str(leaf)) for leaf in leaves(chosen)}
    for leaf in leaves(group):
        what = type(leaf), str(leaf)
        if what not in shown and not isinstance(leaf, trio.Cancelled):
            shown.add(what)
            chosen.add_note(f"a background task has failed as well: {what[0].__name__}: {leaf}")
            logger.error("a background task has failed as well", exc_info=leaf)


def _is_cancellation(exc: BaseException) -> bool:
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaves(exc))


def find_interrupt(exc: BaseException) -> KeyboardInterrupt | SystemExit | None:
    """The ``KeyboardInterrupt`` or ``SystemExit`` that ``exc`` is or holds, if any."""
    for leaf in leaves(exc):
        if isinstance(leaf, KeyboardInterrupt | SystemExit):
            return leaf
    return None


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """``exc`` itself, or, of a group, the exceptions in it, however deep."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


def in_task() -> bool:
    """Whether this runs in a task of Trio: else a coroutine is being thrown away."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def is_for_trio(exc: BaseException) -> bool:
    """Whether a cancellation or an interrupt is in it: neither is anything that users raise."""
    return any(isinstance(leaf, trio.Cancelled | KeyboardInterrupt) for leaf in leaves(exc)) or (
        isinstance(exc, GeneratorExit) and not in_task()
    )


_URL: Final = re.compile(r"\b(nats|tls|wss?)://.*", re.DOTALL)


def shorten(value: object, limit: int = 160) -> str:
    """The repr of ``value`` for an error message, cut to ``limit`` characters.

    A server's URL that somebody has put into the wrong place may hold a password: it is cut off
    after its scheme.
    """
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001 - a user's __repr__ may raise anything
        text = f"<a {type(value).__name__}, whose repr raised {type(exc).__name__}>"
    text = _URL.sub(r"\1://… (not shown: it may hold a password)", text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


LONGEST_SECONDS: Final = 9.2e9
"""JetStream counts nanoseconds in 64 bits."""


def check_seconds(name: str, seconds: object, or_else: str = "") -> float:
    """Return the setting ``seconds`` if it is a number; ``or_else`` says what else it may be."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds{or_else}, not {shorten(seconds)}")
    return seconds
