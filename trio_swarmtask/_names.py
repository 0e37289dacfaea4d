# Capabilities and task IDs: what may become a token of a subject.
#
# Both end up in NATS subjects, where '.', '*', '>' and white space have a meaning, and a server
# stores a published wildcard literally. So each is checked here, once, before it gets anywhere.

from __future__ import annotations

import re
import secrets
from typing import Final

from ._errors import InvalidCapabilityError, InvalidMessageError

_CAPABILITY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

_KEY_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_KEY_LENGTH: Final = 16  # 82 bits: no two dispatchers of a swarm draw the same


def check_capability(text: object) -> None:
    """Raise `InvalidCapabilityError` unless ``text`` is 1 to 64 of ``A-Z a-z 0-9 _ -``."""
    if not isinstance(text, str) or _CAPABILITY.fullmatch(text) is None:
        raise InvalidCapabilityError(
            f"capability {shorten(text)} must be a string of 1 to 64 letters, digits, '-' or '_', "
            "for example 'code-review'"
        )


def check_task_id(text: object) -> None:
    """Raise `InvalidMessageError` unless ``text`` is 1 to 128 of ``A-Z a-z 0-9 _ -``."""
    if not is_task_id(text):
        raise InvalidMessageError(
            f"task ID {shorten(text)} must be a string of 1 to 128 letters, digits, '-' or '_'; "
            "leave it empty to have one made"
        )


def is_task_id(text: object) -> bool:
    """Whether ``text`` is 1 to 128 of ``A-Z a-z 0-9 _ -``."""
    return isinstance(text, str) and _TASK_ID.fullmatch(text) is not None


def make_key() -> str:
    """A dispatcher's own part of its task IDs: random, and without a dash."""
    return "".join(secrets.choice(_KEY_ALPHABET) for _ in range(_KEY_LENGTH))


def shorten(value: object, limit: int = 160) -> str:
    """The repr of ``value`` for an error message, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
