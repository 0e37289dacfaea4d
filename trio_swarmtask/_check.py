# What comes from outside, checked: what users pass in, and what comes from the network.
#
# Users pass capabilities, task IDs, buckets, counts and durations; where they give no task ID, one
# is made here. Capabilities and IDs end up in NATS subjects, where '.', '*', '>' and white space
# have a meaning, and a server stores a published wildcard literally. So each is checked here, once,
# before anything uses it.

from __future__ import annotations

import math
import re
import secrets
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from ._errors import InvalidCapabilityError, InvalidMessageError
from ._util import LONGEST_SECONDS, check_seconds, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_CAPABILITY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_BUCKET: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ALPHABET: Final = b"0123456789abcdefghjkmnpqrstvwxyz"  # 32 of them: five bits of a random byte
_TO_ALPHABET: Final = bytes(_ALPHABET[byte % len(_ALPHABET)] for byte in range(256))
_KEY_LENGTH: Final = 12  # 60 bits: no two dispatchers of a swarm draw the same
_SECRET_LENGTH: Final = 12  # 60 bits: a million guesses a second hit one in 36,000 years
_SECRETS_AT_ONCE: Final = 256


def check_capability(text: object) -> None:
    """Raise `InvalidCapabilityError` unless ``text`` is 1 to 64 of ``A-Z a-z 0-9 _ -``."""
    if not is_capability(text):
        raise InvalidCapabilityError(
            f"capability {shorten(text)} must be a string of 1 to 64 letters, digits, '-' or '_', "
            "for example 'code-review'"
        )


def is_capability(text: object) -> bool:
    """Whether ``text`` is 1 to 64 of ``A-Z a-z 0-9 _ -``."""
    return isinstance(text, str) and _CAPABILITY.fullmatch(text) is not None


def check_task_id(text: object) -> None:
    """Raise `InvalidMessageError` unless ``text`` is 1 to 128 of ``A-Z a-z 0-9 _ -``."""
    if not is_task_id(text):
        raise InvalidMessageError(
            f"task ID {shorten(text)} must be a string of 1 to 128 letters, digits, '-' or '_'; "
            "leave it empty to have one made"
        )


def check_count(name: str, count: object) -> None:
    """Raise TypeError or ValueError unless ``count``, a setting, is a whole number from 1 up."""
    if type(count) is not int:
        raise TypeError(f"{name} must be a whole number, not {shorten(count)}")
    if count < 1:
        raise ValueError(f"{name} must be from 1 up, not {count}")


def check_timeout(seconds: float, name: str = "timeout") -> float:
    """``seconds`` as a duration; below 0, as after a deadline that has passed, it is 0.

    Raises:
      TypeError, ValueError: if it is no number.
    """
    seconds = check_seconds(name, seconds)
    try:
        duration = float(seconds)
    except OverflowError:  # an int may be larger than any float
        duration = math.inf if seconds > 0 else 0.0
    if math.isnan(duration):
        raise ValueError(f"{name} must be a number of seconds, not NaN")
    return max(0.0, duration)


def check_bucket(text: object) -> None:
    """Raise ValueError unless ``text`` is 1 to 128 of ``A-Z a-z 0-9 _ -``."""
    if not isinstance(text, str) or _BUCKET.fullmatch(text) is None:
        raise ValueError(
            f"bucket {shorten(text)} must be a string of 1 to 128 letters, digits, '-' or '_'"
        )


def check_ttl(seconds: object) -> None:
    """Raise TypeError or ValueError unless ``seconds`` is a time that an entry may be kept."""
    seconds = check_seconds("ttl", seconds)
    if not (1 <= seconds <= LONGEST_SECONDS or seconds == math.inf):
        raise ValueError(
            f"ttl must be from 1 to {LONGEST_SECONDS:g} seconds, or math.inf for ever, "
            f"not {seconds!r}"
        )


def is_task_id(text: object) -> bool:
    """Whether ``text`` is 1 to 128 of ``A-Z a-z 0-9 _ -``."""
    return isinstance(text, str) and _TASK_ID.fullmatch(text) is not None


def make_key() -> str:
    """A dispatcher's own part of its task IDs: random, and without a dash."""
    return _draw(_KEY_LENGTH)


def make_secrets() -> Iterator[str]:
    """Endless new parts of IDs; nobody can guess one, even if he knows all the others."""
    while True:
        # One system call for many secrets: a call for each would be most of the cost.
        drawn = _draw(_SECRETS_AT_ONCE * _SECRET_LENGTH)
        for start in range(0, len(drawn), _SECRET_LENGTH):
            yield drawn[start : start + _SECRET_LENGTH]


def _draw(count: int) -> str:
    """``count`` random letters and digits."""
    return secrets.token_bytes(count).translate(_TO_ALPHABET).decode()


# Bytes from the network are read into fixed types here, and nowhere else.
#
# Whatever comes from the network was written by somebody else: a newer version, another program, an
# attacker, a server that is broken. So each reader of bytes is made here, and whoever uses one
# decides what happens to bytes that can't be read: a dead letter, a question that is asked again, a
# line in the log. Bad bytes never end more than their own message.
#
# Invariant: a reader raises `Malformed` and nothing else, whatever the bytes. msgspec itself also
# raises UnicodeDecodeError, RecursionError and OverflowError.

# What encoding or decoding raises for a value or bytes that JSON or a type can't hold.
# (UnicodeError and msgspec's ValidationError are ValueErrors.)
UNFIT: Final = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


class Malformed(ValueError):
    """What came from the network is not what it should be."""


def reader(type_: type[T]) -> Callable[[bytes | msgspec.Raw], T]:
    """Make a function that reads the JSON of a value of this type."""
    decode = msgspec.json.Decoder(type_).decode

    def read(data: bytes | msgspec.Raw) -> T:
        try:
            return decode(data)
        except UNFIT as exc:
            raise Malformed(str(exc)) from exc

    return read


def fits(type_: object) -> Callable[[object], None]:
    """Make a function that raises `Malformed` unless plain data, as read, would fit a type."""

    def check(value: object) -> None:
        try:
            msgspec.convert(value, type_)
        except UNFIT as exc:
            raise Malformed(str(exc)) from exc

    return check


read_json: Final[Callable[[bytes | msgspec.Raw], Any]] = reader(Any)
"""Any JSON at all. It also tells whether there is more in a `msgspec.Raw` than can be read."""
