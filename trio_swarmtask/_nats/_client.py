# The one place that touches nats-py's insides, with `_parser.py`.
#
# Everything else goes through its public methods. What is here has no public way:
#
# - A client that asks for TLS must not send its password before the connection is encrypted, and
#   nats-py connects in the clear if the server does not ask for TLS.
# - A pull subscription must be ended at the server while what is under way still comes in;
#   `unsubscribe` drops both ends at once, and so leases what arrives until ack_wait.
# - Closing a transport waits until its buffer is sent, which over a dead network is never.
# - What the parser stumbles over ends the read loop while the client says that it is connected. So
#   does the PONG for a `flush` that was cancelled. And a greeting that can't be read ends the task
#   that reconnects.
#
# `subscribe(future=…)` takes any object with `cancelled` and `set_result` and calls it for every
# message in the read loop: no task and no queue for each subscription. A coroutine of the client
# is stepped once from a Trio task: it only suspends when a buffer is full, which the limits
# given to `connect` rule out.

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any, Final, cast

import nats.errors
from nats.aio.client import Client as NATS, Srv

from ._parser import Parser, parse_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from .._config import NATSConfig

logger: Final = logging.getLogger("trio_swarmtask.nats")


# Seconds. Two pings may stay unanswered, so a dead network is noticed after 15.
_PING_INTERVAL: Final = 5
_RECONNECT_WAIT: Final = 0.25

# A coroutine that meets a limit of nats-py's can't be stepped, so its limits are out of reach, and
# `Connection.wait_room` keeps to a lower one.
_OUT_OF_REACH: Final = 1 << 40


def connect_options(config: NATSConfig) -> dict[str, Any]:
    """What nats-py's `connect` is told, beside the servers and the callbacks."""
    return {
        "name": config.name,
        "tls": config.tls or (ssl.create_default_context() if config.wants_tls else None),
        "user": config.user,
        "password": config.password,
        "token": config.token,
        "user_credentials": str(config.credentials) if config.credentials else None,
        "nkeys_seed": str(config.nkey_seed) if config.nkey_seed else None,
        "connect_timeout": config.connect_timeout,
        "reconnect_time_wait": _RECONNECT_WAIT,
        "max_reconnect_attempts": -1,
        "ping_interval": _PING_INTERVAL,
        "max_outstanding_pings": 2,
        "pending_size": _OUT_OF_REACH,
        "flusher_queue_size": 0,  # no limit
    }


class PlaintextError(OSError):
    """TLS was asked for, and the server does not offer it."""


class Client(NATS):
    """nats-py's client, with what it lacks."""

    wants_tls = False

    def __init__(self) -> None:
        super().__init__()
        self._ps = Parser(self)  # type: ignore[assignment]  # all that nats-py calls is there
        self.trouble: Exception | None = None
        """Why the last connection was given up."""

    def is_encrypted(self) -> bool:
        """Whether the server asked for TLS: then nats-py has upgraded the connection."""
        return bool(self._server_info.get("tls_required"))

    def _connect_command(self) -> bytes:
        # Called at every connect, after the TLS handshake and before the credentials go out.
        if self.wants_tls and not self.is_encrypted():
            raise PlaintextError("TLS was asked for, and the server does not offer it")
        if type(self._max_payload) is not int:
            raise TypeError(f"max_payload {self._max_payload!r}")
        return super()._connect_command()

    async def _connect_to_server(self, s: Srv) -> None:
        self.abort()  # of an attempt that failed half way, whose socket would be leaked
        await super()._connect_to_server(s)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except (OSError, nats.errors.Error):
            raise
        except Exception as exc:  # a greeting that is none: to be tried again, as the rest is
            raise nats.errors.Error(f"it does not greet as a NATS server does: {exc!r}") from exc

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return self.msg_class(
            subject=subject.decode(errors="backslashreplace"),
            reply=reply.decode(errors="backslashreplace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        return parse_headers(headers)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # whoever waited for it was cancelled
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_op_err(self, e: Exception) -> None:
        # While it reconnects, further errors are of no interest to nats-py either.
        self.trouble = e if self.is_connected else self.trouble
        await super()._process_op_err(e)

    async def replace_connection(self, reason: Exception) -> None:
        """Drop the connection and make another one."""
        await self._process_op_err(reason)

    async def end_at_server(self, subscription: Subscription) -> None:
        """Let the server send nothing more; what is under way still arrives."""
        await self._send_unsubscribe(subscription._id)

    def abort(self) -> None:
        """Drop the connection without waiting for what is buffered."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


class Sink:
    """Calls ``callback`` for every message, in the read loop, in the Trio thread."""

    def __init__(self, callback: Callable[[Msg], None]) -> None:
        self._callback = callback

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        try:
            self._callback(message)
        except Exception:  # it would end the read loop, and with it everything
            logger.exception("a message on %r could not be handled", message.subject)

    def as_future(self) -> asyncio.Future[Msg]:
        """Itself, under the type that nats-py declares."""
        return cast("asyncio.Future[Msg]", self)
