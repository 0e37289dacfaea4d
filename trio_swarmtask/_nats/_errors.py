# What the errors of nats-py and of the server mean for a connection, as our own.

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final

from .._errors import AuthenticationError, BrokerError
from ._client import PlaintextError

if TYPE_CHECKING:
    from .._config import NATSConfig


# The server quotes the subject as Go does: `"` and `\\` are escaped.
_VIOLATION: Final = re.compile(
    r'permissions violation for (publish|subscription) to "((?:[^"\\]|\\.)+)"'
)
_ESCAPED: Final = re.compile(r'\\(["\\])')


def parse_violation(exc: Exception) -> tuple[str, str] | None:
    """What the server's permissions forbid: ``publish`` or ``subscription``, and the subject."""
    found = _VIOLATION.search(str(exc))
    return None if found is None else (found[1], _ESCAPED.sub(r"\1", found[2]))


def fatal_error(exc: Exception, config: NATSConfig) -> BrokerError | None:
    """What no second try would change, as our error; None for the rest."""
    text = str(exc).lower()
    if "authorization violation" in text or "authentication expired" in text:
        return AuthenticationError(f"{config.safe_url} refuses the credentials: {exc}")
    if isinstance(exc, PlaintextError):
        return BrokerError(
            f"{config.safe_url} offers no TLS, and TLS was asked for; nothing secret was sent. "
            "Set up TLS on the server, or use nats:// without a TLS context"
        )
    if isinstance(exc, ssl.SSLError):
        return BrokerError(f"TLS with {config.safe_url} failed: {exc}")
    return None


def connect_error(exc: Exception | None, config: NATSConfig) -> BrokerError:
    """Why no connection came about."""
    if exc is None:
        return BrokerError(
            f"{config.safe_url} did not answer within {config.connect_timeout:g} seconds"
        )
    if isinstance(exc, BrokerError):
        return exc
    error = fatal_error(exc, config)
    if error is None:
        error = BrokerError(
            f"no NATS server at {config.safe_url} within {config.connect_timeout:g} seconds: "
            f"{exc}. Start one (nats-server --jetstream), or set the URL"
        )
    error.__cause__ = exc
    return error


def lost_error(exc: Exception | None, config: NATSConfig, reason: str) -> BrokerError:
    """Why the connection will not come back."""
    refused = exc is not None and isinstance(fatal_error(exc, config), AuthenticationError)
    kind = AuthenticationError if refused else BrokerError
    return kind(f"lost {config.safe_url} for good: {reason}")
