# Bytes from the network, read into fixed types: the one place where that is done.
#
# Whatever comes from the network was written by somebody else: a newer version, another program, an
# attacker, a server that is broken. So each reader of bytes is made here, and whoever uses one
# decides what becomes of what can't be read: a dead letter, a question that is asked again, a line
# in the log. What is read never ends more than its message.
#
# Invariant: a reader raises `Malformed` and nothing else, whatever the bytes. msgspec itself lets
# out UnicodeDecodeError, RecursionError and OverflowError, too.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# What encoding or decoding raises for a value or bytes that JSON or a type can't hold.
# (UnicodeError and msgspec's ValidationError are ValueErrors.)
UNFIT: Final = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


class Malformed(ValueError):
    """What came from the network is not what it should be."""


def reader(type_: type[T]) -> Callable[[bytes | msgspec.Raw], T]:
    """What reads the JSON of a value of this type."""
    decode = msgspec.json.Decoder(type_).decode

    def read(data: bytes | msgspec.Raw) -> T:
        try:
            return decode(data)
        except UNFIT as exc:
            raise Malformed(str(exc)) from exc

    return read


def fits(type_: object) -> Callable[[object], None]:
    """What raises `Malformed` unless plain data, as it was read, would fit a type as well."""

    def check(value: object) -> None:
        try:
            msgspec.convert(value, type_)
        except UNFIT as exc:
            raise Malformed(str(exc)) from exc

    return check


read_json: Final[Callable[[bytes | msgspec.Raw], Any]] = reader(Any)
"""Any JSON at all. It also tells whether there is more in a `msgspec.Raw` than can be read."""
