# How to reach a NATS server, and what to make there: NATSConfig.
#
# Secrets: a password or token may stand in its own field or in the URL. Neither may show in a
# repr, a log or an error, so whatever prints a URL prints `safe_url`.

from __future__ import annotations

import math
import os
import ssl
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path

_DEFAULT_URL: Final = "nats://127.0.0.1:4222"
_SECRET: Final = ("password", "token")


@dataclass(frozen=True, repr=False)
class NATSConfig:
    """How to reach a NATS server, and what to make there.

    Raises:
      ValueError: naming the setting that can't be, and what it may be.
      TypeError: for one of a wrong type.
    """

    url: str = ""
    """``nats://…``, ``tls://…``, or a comma-separated list. Empty: the environment's ``NATS_URL``,
    else ``nats://127.0.0.1:4222``."""

    _: KW_ONLY

    name: str | None = None
    """Shown by the server's monitoring. None: the role's name."""

    user: str | None = None
    password: str | None = None
    token: str | None = None

    credentials: str | Path | None = None
    """Path of a credentials file (JWT and seed). Needs the extra ``nkeys``."""

    nkey_seed: str | Path | None = None
    """Path of a file that holds an nkey seed. Needs the extra ``nkeys``."""

    tls: ssl.SSLContext | None = None
    """Asks for TLS with this context; ``tls://`` asks for it with the system's authorities."""

    connect_timeout: float = 5.0
    """Seconds until a server must have answered. A refused connection is tried again until then."""

    manage_streams: bool = True
    """Make the streams and durables that are missing. False: only use what is there."""

    replicas: int = 1
    """Of the streams that are made. 3 outlives the loss of a machine, a power cut included."""

    result_ttl: float = 24 * 60 * 60.0
    """Seconds that a result is kept, where the stream of results is made."""

    ack_wait: float = 30.0
    """Seconds after which a silent worker's task goes to another, where a durable is made."""

    reconnect_timeout: float = math.inf
    """Seconds without a server after which the connection counts as lost for good."""

    def __post_init__(self) -> None:
        url = self.url or os.environ.get("NATS_URL") or _DEFAULT_URL
        object.__setattr__(self, "url", url)
        for server in self.servers:
            _check_server(server)
        for setting in ("connect_timeout", "result_ttl", "ack_wait", "reconnect_timeout"):
            seconds = getattr(self, setting)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(f"{setting} must be a number of seconds, not {seconds!r}")
            if not seconds > 0:
                raise ValueError(f"{setting} must be more than 0 seconds, not {seconds!r}")
        if isinstance(self.replicas, bool) or self.replicas not in (1, 2, 3, 4, 5):
            raise ValueError(f"replicas must be a whole number from 1 to 5, not {self.replicas!r}")
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            raise TypeError(f"tls must be an ssl.SSLContext, not {type(self.tls).__name__}")

    def __repr__(self) -> str:
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            if item.name in _SECRET:
                value = "***"
            elif item.name == "url":
                value = self.safe_url
            shown.append(f"{item.name}={value!r}")
        return f"NATSConfig({', '.join(shown)})"

    @property
    def servers(self) -> list[str]:
        """The URLs, one by one."""
        return [server.strip() for server in self.url.split(",")]

    @property
    def safe_url(self) -> str:
        """The URLs without user, password or token: for logs and errors."""
        return ",".join(_without_secrets(server) for server in self.servers)

    @property
    def wants_tls(self) -> bool:
        """Whether an unencrypted connection must be refused."""
        return self.tls is not None or any(url.startswith("tls://") for url in self.servers)


def _check_server(server: str) -> None:
    safe = _without_secrets(server)
    try:
        parts = urlsplit(server)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    if parts.scheme not in ("nats", "tls") or not host or port == 0:
        raise ValueError(
            f"{safe!r} is not the URL of a NATS server; write nats://host:port or tls://host:port"
        ) from None


def _without_secrets(server: str) -> str:
    scheme, mark, rest = server.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
