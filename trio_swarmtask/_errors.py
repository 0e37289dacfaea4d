# The errors that users see.
#
# All errors have one root. Where Python or Trio has a class for the case, the error inherits from
# that class too, so code written for sockets and channels also catches this library's errors. Only
# `_nats/` translates what nats-py and asyncio raise. A message holds the wrong value and says what
# to do about it; it never holds a password or token.

from __future__ import annotations

import trio


class SwarmTaskError(Exception):
    """The root of every error that this library raises itself."""


class ClosedError(SwarmTaskError, trio.ClosedResourceError):
    """The dispatcher or worker is closed, or closed while a future was outstanding."""


class InvalidMessageError(SwarmTaskError, ValueError):
    """A message or result fails validation: a field's type, the ID, its size, or no envelope."""


class InvalidCapabilityError(SwarmTaskError, ValueError):
    """A capability that is not 1 to 64 of ``A-Z a-z 0-9 _ -``."""


class UnsupportedVersionError(SwarmTaskError, ValueError):
    """An envelope of a newer version than this library knows."""


class BrokerError(SwarmTaskError, ConnectionError):
    """The server can't be reached, refused what was asked, or is lost for good."""


class AuthenticationError(BrokerError):
    """The server refused the credentials."""


class BusClosedError(SwarmTaskError, trio.ClosedResourceError):
    """The message bus is closed, or was closed while a request waited for its reply."""


class NoRespondersError(SwarmTaskError):
    """A request on a subject that nobody listens to."""

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.subject = subject

    def __str__(self) -> str:
        return f"nobody listens on {self.subject!r}; subscribe there first, or try again later"


class InvalidSubjectError(SwarmTaskError, ValueError):
    """A subject or queue name that is not allowed: empty tokens, white space, a stray wildcard."""


class InvalidResultError(SwarmTaskError, ValueError):
    """A result or filter with a field of a wrong type; a result too large, or malformed."""
