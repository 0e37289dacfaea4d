# What users pass in, checked: capabilities, task IDs and buckets, and durations; and what task IDs
# are made of, where the user gives none.
#
# The first two end up in NATS subjects, where '.', '*', '>' and white space have a meaning, and a
# server stores a published wildcard literally. So each is checked here, once, before it gets
# anywhere.

from __future__ import annotations

import math
import re
import secrets
from typing import TYPE_CHECKING, Final

from ._errors import InvalidCapabilityError, InvalidMessageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CAPABILITY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

_BUCKET: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LONGEST: Final = 9.2e9  # seconds; JetStream counts nanoseconds in 64 bits

_URL: Final = re.compile(r"\b(nats|tls|wss?)://.*", re.DOTALL)

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
    """``seconds`` as a duration: what is left of a deadline that has passed is none.

    Raises:
      TypeError, ValueError: if it is no number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {shorten(seconds)}")
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
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"ttl must be a number of seconds, not {shorten(seconds)}")
    if not (1 <= seconds <= _LONGEST or seconds == math.inf):
        raise ValueError(
            f"ttl must be from 1 to {_LONGEST:g} seconds, or math.inf for ever, not {seconds!r}"
        )


def is_task_id(text: object) -> bool:
    """Whether ``text`` is 1 to 128 of ``A-Z a-z 0-9 _ -``."""
    return isinstance(text, str) and _TASK_ID.fullmatch(text) is not None


def make_key() -> str:
    """A dispatcher's own part of its task IDs: random, and without a dash."""
    return _draw(_KEY_LENGTH)


def make_secrets() -> Iterator[str]:
    """A part of an ID that nobody can guess, whatever others he knows: for ever, and each new."""
    while True:
        # One call of the operating system for many of them: it would be most of the cost.
        drawn = _draw(_SECRETS_AT_ONCE * _SECRET_LENGTH)
        for start in range(0, len(drawn), _SECRET_LENGTH):
            yield drawn[start : start + _SECRET_LENGTH]


def _draw(count: int) -> str:
    """So many random letters and digits."""
    return secrets.token_bytes(count).translate(_TO_ALPHABET).decode()


def shorten(value: object, limit: int = 160) -> str:
    """The repr of ``value`` for an error message, cut to ``limit`` characters.

    The URL of a server, which somebody has put into the wrong place, may hold a password: it is cut
    off behind its scheme.
    """
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001 - a user's __repr__ may raise anything
        text = f"<a {type(value).__name__}, whose repr raised {type(exc).__name__}>"
    text = _URL.sub(r"\1://… (not shown: it may hold a password)", text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
