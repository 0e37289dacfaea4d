# Subjects of the bus, and which pattern matches which.
#
# A subject is tokens with dots between them. In a subscription `*` stands for one token and a
# last `>` for one or more. A server stores a published wildcard literally, and a space or a line
# break would end the protocol line it stands in; so each subject is checked before it is used.

from __future__ import annotations

from typing import Final

from ._errors import InvalidSubjectError
from ._util import shorten

# The server closes the connection over a line of more than 4,096 bytes, and a request's line holds
# two subjects.
_MOST_BYTES: Final = 1024


def check_subject(subject: object) -> None:
    """Raise `InvalidSubjectError` unless a message can be published on ``subject``."""
    problem = _problem(subject) or _wildcard(subject)
    if problem:
        raise InvalidSubjectError(f"can't publish on subject {shorten(subject)}: {problem}")


def check_pattern(pattern: object) -> None:
    """Raise `InvalidSubjectError` unless ``pattern`` can be subscribed to."""
    problem = _problem(pattern) or _misplaced_wildcard(pattern)
    if problem:
        raise InvalidSubjectError(f"can't subscribe to subject {shorten(pattern)}: {problem}")


def check_queue(queue: object) -> None:
    """Raise `InvalidSubjectError` unless ``queue`` can be the name of a queue."""
    problem = _problem(queue) or _wildcard(queue)
    if problem:
        raise InvalidSubjectError(f"can't share queue {shorten(queue)}: {problem}")


def matches(pattern: str, subject: str) -> bool:
    """Whether a subscription to ``pattern`` gets what is published on ``subject``."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(want in ("*", token) for want, token in zip(wanted, tokens, strict=False))


def is_literal(pattern: str) -> bool:
    """Whether ``pattern`` has no wildcard, and so matches itself alone."""
    return not any(token in ("*", ">") for token in pattern.split("."))


def _problem(text: object) -> str:
    if not isinstance(text, str):
        return f"it must be a string, not {type(text).__name__}"
    if not text:
        return "it is empty"
    # White space would end the protocol's line, a lone surrogate can't be sent, and the server's
    # refusals show other characters that are not printable as escapes.
    if bad := next((char for char in text if char == " " or not char.isprintable()), None):
        return f"it holds {bad!r}; use letters, digits, '-', '_' and dots"
    if "" in text.split("."):
        return "it has an empty token; write one dot between two tokens, none at the ends"
    if len(text.encode()) > _MOST_BYTES:
        return f"it is longer than {_MOST_BYTES} bytes"
    return ""


def _wildcard(subject: object) -> str:
    if "*" in str(subject) or ">" in str(subject):
        return "'*' and '>' are for subscribing"
    return ""


def _misplaced_wildcard(pattern: object) -> str:
    tokens = str(pattern).split(".")
    for token in tokens:
        if ("*" in token or ">" in token) and len(token) > 1:
            return f"a wildcard is a token of its own, unlike in {token!r}"
    if ">" in tokens[:-1]:
        return "'>' stands for the rest, so it comes last"
    return ""


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that ``subject`` matches is matched by ``pattern`` too."""
    held, needed = pattern.split("."), subject.split(".")
    for index, token in enumerate(held):
        if token == ">":
            return index < len(needed)
        if index >= len(needed) or needed[index] == ">":
            return False
        if token not in ("*", needed[index]):
            return False
    return len(held) == len(needed)
