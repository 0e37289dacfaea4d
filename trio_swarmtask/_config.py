# How to reach a NATS server, and what to make there: NATSConfig.
#
# Secrets: a password or token may stand in its own field or in the URL. Neither may show in a
# repr, a log or an error, so whatever prints a URL prints `safe_url`. The error about a refused URL
# shows nothing that could be a part of a login: if somebody forgets `@host`, the password stands
# where the port belongs.

from __future__ import annotations

import math
import os
import re
import ssl
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ._util import LONGEST_SECONDS, check_seconds, shorten

_DEFAULT_URL: Final = "nats://127.0.0.1:4222"
_MOST_REPLICAS: Final = 5  # JetStream's limit
_SECONDS: Final = (
    ("connect_timeout", 0.001, math.inf),
    ("reconnect_timeout", 0.001, math.inf),
    ("result_ttl", 0.001, LONGEST_SECONDS),
    ("ack_wait", 0.001, LONGEST_SECONDS),
)
_PATHS: Final = ("credentials", "nkey_seed")
_SECRET: Final = ("password", "token")

# A DNS name, or an IPv6 address. A password that stands alone seldom looks like either.
_NAME: Final = r"(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?"
_HOST: Final = re.compile(rf"{_NAME}|[0-9a-f]*:[0-9a-f:.]*(?:%[\w.-]+)?")
# Only where no URL has a scheme: else it may be the rest of a password that holds a comma.
_WITHOUT_SCHEME: Final = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}")
_HARMLESS: Final = re.compile(rf"[a-z]+://{_NAME}")  # holds no login


@dataclass(frozen=True, repr=False)
class NATSConfig:
    """How to reach a NATS server, and what to make there.

    Raises:
      ValueError: if a setting has a value that is not allowed; names both, and what is allowed.
      TypeError: if a setting has a wrong type.

    Attributes:
      url: ``nats://…``, ``tls://…``, or a comma-separated list. Empty: the environment's
        ``NATS_URL``, else ``nats://127.0.0.1:4222``.
      name: Shown by the server's monitoring. None: the role's name.
      user: For a login by name and password.
      password: Shown nowhere.
      token: For a login by token. Shown nowhere.
      credentials: Path of a credentials file (JWT and seed). Needs the extra ``nkeys``.
      nkey_seed: Path of a file that holds an nkey seed. Needs the extra ``nkeys``.
      tls: Use TLS with this context. A ``tls://`` URL uses TLS with the system's authorities.
      connect_timeout: Seconds until a server must have answered. A refused connection is tried
        again until then; of several servers each has its share, two seconds at most at first.
      manage_streams: Make the streams and durables that are missing. False: only use what is there.
      replicas: Copies of each stream that is made. 3 survive the loss of a machine, a power cut
        included.
      result_ttl: Seconds that a result is kept, where the stream of results is made.
      ack_wait: Seconds after which a silent worker's task goes to another, where a durable is made.
      reconnect_timeout: Seconds without a server after which the connection counts as lost for
        good.
    """

    url: str = ""
    _: KW_ONLY

    name: str | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | Path | None = None
    nkey_seed: str | Path | None = None
    tls: ssl.SSLContext | None = None
    connect_timeout: float = 5.0
    manage_streams: bool = True
    replicas: int = 1
    result_ttl: float = 24 * 60 * 60.0
    ack_wait: float = 30.0
    reconnect_timeout: float = math.inf

    def __post_init__(self) -> None:
        for setting in ("url", "name", "user", "password", "token", "credentials", "nkey_seed"):
            value = getattr(self, setting)
            allowed = str | Path if setting in _PATHS else str
            if value is not None and not isinstance(value, allowed):
                kind = type(value).__name__  # not the value: it may be a secret
                raise TypeError(f"{setting} must be a string, not {kind}")
        url = self.url or os.environ.get("NATS_URL") or _DEFAULT_URL
        object.__setattr__(self, "url", url)
        for server in self.servers:
            problem = _find_problem(server)
            if problem is not None:
                raise ValueError(_refusal(url, problem))
        for setting, least, most in _SECONDS:
            seconds = getattr(self, setting)
            check_seconds(setting, seconds)
            if not least <= seconds <= most:
                raise ValueError(
                    f"{setting} must be from {least:g} to {most:g} seconds, not {seconds!r}"
                )
        if type(self.replicas) is not int or not 1 <= self.replicas <= _MOST_REPLICAS:
            raise ValueError(
                f"replicas must be a whole number from 1 to {_MOST_REPLICAS}, "
                f"not {shorten(self.replicas)}"
            )
        if not isinstance(self.manage_streams, bool):
            raise TypeError(
                f"manage_streams must be True or False, not {shorten(self.manage_streams)}"
            )
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
        servers = [server.strip() for server in self.url.split(",")]
        if all(_WITHOUT_SCHEME.fullmatch(server) for server in servers):
            return [f"nats://{server}" for server in servers]
        return servers

    @property
    def logins(self) -> dict[str, tuple[str, str | None]]:
        """What the URLs hold of user and password, or token and None, by host and port.

        A login holds for all servers: those of the other URLs, and those that a cluster announces.
        """
        found = {}
        for server in self.servers:
            parts = urlsplit(server)
            if parts.username is not None:
                password = None if parts.password is None else unquote(parts.password)
                found[parts.netloc.rpartition("@")[2]] = (unquote(parts.username), password)
        return found

    @property
    def safe_url(self) -> str:
        """The URLs without user, password or token: for logs and errors."""
        return ",".join(_without_secrets(server) for server in self.servers)

    @property
    def wants_tls(self) -> bool:
        """Whether an unencrypted connection must be refused."""
        return self.tls is not None or any(url.startswith("tls://") for url in self.servers)


def _find_problem(server: str) -> str | None:
    """Why ``server`` is not a server's URL, without quoting any of it; None if it is one."""
    if not server.startswith(("nats://", "tls://")):  # lower case: nats-py misreads others
        return "it does not begin with nats:// or tls://"
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError:
        return "what stands where the port belongs is no number, or the brackets don't match"
    if port == 0:
        return "the port is 0"
    if parts.hostname is None or not _HOST.fullmatch(parts.hostname):
        return "what stands where the host belongs is no name of one"
    if parts.path not in ("", "/") or parts.query + parts.fragment:
        return "something stands behind host and port"
    return None


def _refusal(url: str, problem: str) -> str:
    # Reading may have stopped in the middle of a password, and a password may hold a comma.
    if _HARMLESS.fullmatch(url):
        shown = repr(url)
    else:
        shown = "what was given (not shown: it may hold a password)"
    return (
        f"{shown} is not the URL of a NATS server; write nats://host:port or tls://host:port, and "
        f"user and password in their own settings: {problem}. Without a url it is the "
        "environment's NATS_URL"
    )


def _without_secrets(server: str) -> str:
    scheme, _, rest = server.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
