# What errors of nats-py and of the server mean for a connection, as this library's errors.

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from .._errors import AuthenticationError, BrokerError
from ._client import PlaintextError
from ._error_lines import Meaning, line_of

if TYPE_CHECKING:
    from .._config import NATSConfig


def fatal_error(exc: Exception, config: NATSConfig) -> BrokerError | None:
    """Our error if no second try would help; None otherwise."""
    line = line_of(exc)
    if line is not None and line.meaning is Meaning.LOGIN:
        return AuthenticationError(f"{config.safe_url} refuses the credentials: {line}")
    if line is not None and line.meaning is Meaning.FINAL:
        return BrokerError(f"{config.safe_url} can't be used: {line}. Raise that limit of its")
    if isinstance(exc, PlaintextError):
        return BrokerError(
            f"{config.safe_url} offers no TLS, and TLS was asked for; nothing secret was sent. "
            "Set up TLS on the server, or use nats:// without a TLS context"
        )
    if isinstance(exc, ssl.SSLError):
        return BrokerError(f"TLS with {config.safe_url} failed: {exc}")
    return None


def connect_error(exc: Exception | None, config: NATSConfig) -> BrokerError:
    """Why the first connect has failed."""
    if exc is None:
        return BrokerError(
            f"{config.safe_url} did not answer within {config.connect_timeout:g} seconds"
        )
    if isinstance(exc, BrokerError):
        return exc
    error, line = fatal_error(exc, config), line_of(exc)
    if error is None and line is not None:
        error = BrokerError(
            f"{config.safe_url} did not let us in within {config.connect_timeout:g} seconds: {line}"
        )
    if error is None and isinstance(exc, BrokenPipeError | ConnectionResetError):
        # What the server has said before is lost with the connection.
        error = BrokerError(
            f"{config.safe_url} hangs up on every login within {config.connect_timeout:g} seconds: "
            f"{exc}. It may have as many connections as its max_connections allows"
        )
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
