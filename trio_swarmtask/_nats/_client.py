# The one place that uses private parts of nats-py, together with `_protocol.py` and `_io.py`.
#
# Everything else calls public methods. There is no public way to do what is here:
#
# - A client that asks for TLS must not send its password before the connection is encrypted, and
#   nats-py connects in the clear if the server does not ask for TLS.
# - A pull subscription must end at the server while tasks that are under way still come in;
#   `unsubscribe` drops both ends at once, so those tasks stay leased until ack_wait.
# - Closing a transport waits until its buffer is sent, which over a dead network is never.
# - What the parser can't read ends the read loop while the client says that it is connected. So
#   does the PONG for a `flush` that was cancelled. A greeting that can't be read ends the task
#   that reconnects.
# - Any error line, except one about permissions, closes the client for good: see `_error_lines.py`.
#
# - Each message costs several task switches and a future in nats-py and asyncio. So, if the
#   version of nats-py is known (`_versions.py`), a Trio task reads the socket, and published bytes
#   are written in Trio's rounds (`_io.py`). Otherwise nats-py does both; with TLS it reads.
#
# The parser hands every message to the `Sink` that was given as the future of its subscription. A
# coroutine of the client is stepped once from a Trio task: it only suspends when a buffer is full,
# which the limits given to `connect` rule out.

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import nats.errors
import trio
from nats.aio.client import Client as NATS, Srv
from nats.aio.transport import TcpTransport

from .._util import get_logger
from ._error_lines import (
    TOO_MANY_SUBSCRIPTIONS,
    ErrorLine,
    Meaning,
    TooManySubscriptions,
    read_refusal,
)
from ._io import read_socket
from ._protocol import Parser
from ._subscriptions import Ledger
from ._versions import is_known

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from .._config import NATSConfig
    from ._protocol import Incoming

logger: Final = get_logger("trio_swarmtask.nats")

# Seconds. Two pings may stay unanswered, so a dead network is noticed after 15.
_PING_INTERVAL: Final = 5
_RECONNECT_WAIT: Final = 0.25

# Seconds for an attempt at one of several servers: one that accepts and says nothing, or is cut
# off, must not have the time of the others. Each further attempt at it has twice as much: the way
# to it may be long.
_ATTEMPT: Final = 2.0

# A coroutine that reaches a limit of nats-py suspends, so it can't be stepped. So these limits are
# out of reach, and `Connection.wait_room` keeps to a lower one.
_OUT_OF_REACH: Final = 1 << 40


def connect_options(config: NATSConfig) -> dict[str, Any]:
    """The arguments for nats-py's `connect`, without the servers and the callbacks."""
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


def _host_of(server: Srv) -> str:
    """Host and port, without a login."""
    netloc: str = server.uri.netloc
    return netloc.rpartition("@")[2]


class PlaintextError(OSError):
    """TLS was asked for, and the server does not offer it."""


class SilentServer(OSError):
    """A server did not answer in the time of one attempt."""


class Client(NATS):
    """nats-py's client, with the parts that it lacks."""

    wants_tls = False

    def __init__(self) -> None:
        super().__init__()
        self.logins: Mapping[str, tuple[str, str | None]] = {}
        """See `NATSConfig.logins`; empty where the config has a login of its own."""
        self._ps = self._parser = Parser(self)  # type: ignore[assignment]  # as nats-py calls it
        self._silences: Counter[str] = Counter()
        """How often each server has been silent since the last connection."""
        self._attempt_seconds = 0.0
        self._attempt_end = 0.0
        self.has_backlog = False
        """Whether the system did not take all bytes of the last write."""
        self._ledger = Ledger()
        self.usable = False
        """Whether there is a connection, and the server knows all subscriptions."""
        self.trouble: Exception | None = None
        """Why the last connection was given up."""
        self.doubt: trio.Event | None = None
        """Not None while it is not known which subscriptions were refused; set when it is."""

    @property
    def version(self) -> tuple[int, int]:
        """The server's major and minor version; (0, 0) if it does not tell."""
        try:
            version = self.connected_server_version
            return version.major, version.minor
        except (TypeError, ValueError):  # not in the usual form
            return 0, 0

    def is_encrypted(self) -> bool:
        """Whether the server asked for TLS: then nats-py has upgraded the connection."""
        return bool(self._server_info.get("tls_required"))

    def _connect_command(self) -> bytes:
        # nats-py takes a login out of the URL of the server that it tries, as it stands there: one
        # that a cluster announces has none, and percent signs are sent as they are.
        if self.logins:
            assert self._current_server is not None
            name, password = self.logins.get(_host_of(self._current_server)) or next(
                iter(self.logins.values())
            )
            user, token = (None, name) if password is None else (name, None)
            self.options.update(user=user, password=password, token=token)
        # Called at every connect, after the TLS handshake and before the credentials go out.
        if self.wants_tls and not self.is_encrypted():
            raise PlaintextError("TLS was asked for, and the server does not offer it")
        if type(self._max_payload) is not int:
            raise TypeError(f"max_payload {self._max_payload!r}")
        return super()._connect_command()

    async def _connect_to_server(self, s: Srv) -> None:
        self.abort()  # or the socket of an attempt that failed halfway would leak
        self._attempt_seconds = self._seconds_for(s)
        self._attempt_end = asyncio.get_running_loop().time() + self._attempt_seconds
        async with self._in_time(s):
            await super()._connect_to_server(s)

    def _seconds_for(self, server: Srv) -> float:
        total: float = self.options["connect_timeout"]
        if len(self._server_pool) == 1:
            return total
        share = min(_ATTEMPT, total / len(self._server_pool))
        return min(share * 2.0 ** min(self._silences[_host_of(server)], 10), total)

    @asynccontextmanager
    async def _in_time(self, server: Srv) -> AsyncIterator[None]:
        # A connection and a login are one attempt, of which nats-py limits each part alone.
        try:
            async with asyncio.timeout_at(self._attempt_end):  # noqa: ASYNC100 - of the block
                yield
        except TimeoutError as exc:
            host, seconds = _host_of(server), self._attempt_seconds
            self._silences[host] += 1
            raise SilentServer(f"{host} did not answer within {seconds:.3g} seconds") from exc

    async def _process_connect_init(self) -> None:
        assert self._current_server is not None
        try:
            async with self._in_time(self._current_server):
                await super()._process_connect_init()
            self._silences.clear()
        except (OSError, nats.errors.Error):
            raise
        except Exception as exc:  # not a greeting of NATS: tried again, as other errors are
            raise nats.errors.Error(f"it does not greet as a NATS server does: {exc!r}") from exc
        # All subscriptions are sent again, so pending SUB and UNSUB lines would be sent twice.
        self._pending = [
            line for line in self._pending if not line.startswith((b"SUB ", b"UNSUB "))
        ]
        self._pending_data_size = sum(map(len, self._pending))
        # Subscriptions that were to end after so many messages have ended with the connection.
        for number, subscription in list(self._subs.items()):
            if subscription._max_msgs:
                del self._subs[number]
        self._ledger.restart(self._subs)
        self._end_doubt()

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    async def _read_loop(self) -> None:
        # Called once the connection is made.
        transport = self._transport
        if (
            not is_known("nats-py")
            or not isinstance(transport, TcpTransport)
            or self.is_encrypted()
        ):
            return await super()._read_loop()
        stream: Any = transport._io_reader
        writer: Any = transport._io_writer
        writer.transport.pause_reading()
        connection = writer.get_extra_info("socket").dup()
        await self._parser.parse(bytes(stream._buffer))  # what asyncio has read by now
        await read_socket(connection, self, self._parser)

    def write_held(self) -> bool:
        """Write the pending bytes; without a connection they are kept.

        Returns:
          Whether asyncio has something left to do: then its loop must run.
        """
        if not self._pending or not self.is_connected:
            return False
        writer: Any = cast("TcpTransport", self._transport)._io_writer
        data = b"".join(self._pending)
        self._pending = []
        self._pending_data_size = 0
        writer.write(data)
        self.has_backlog = writer.transport.get_write_buffer_size() > 0
        return self.has_backlog or writer.is_closing()

    async def _flush_pending(self, force_flush: bool = False) -> Any:  # noqa: ANN401 - nats-py's
        # A connection that has just broken, before nats-py knows: it would write by itself then,
        # and a transport of CPython 3.12.1 raises what nobody expects. What is pending is kept.
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None or not writer.is_closing():
            return await super()._flush_pending(force_flush)
        nothing: asyncio.Future[None] = asyncio.Future()
        nothing.set_result(None)
        return nothing

    @property
    def unsent_size(self) -> int:
        """Bytes that the system has not taken yet; only to be read while there is a backlog."""
        writer: Any = cast("TcpTransport", self._transport)._io_writer
        size: int = writer.transport.get_write_buffer_size()
        return self._pending_data_size + size

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        # After its first PONG a server tells the limit of the account, or of the user.
        if type(limit := info.get("max_payload")) is int:
            self._max_payload = limit

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        self.write_held()  # nats-py would send the PING before these bytes
        self._ledger.asked()
        await super()._send_ping(future)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # whoever waited for it was cancelled
            self._pongs[0] = asyncio.get_running_loop().create_future()
        for number in self._ledger.answered():
            if subscription := self._subs.get(number):
                await self._error_cb(TooManySubscriptions(subscription))
        self._end_doubt()
        await super()._process_pong()

    async def _send_subscribe(self, sub: Subscription) -> None:
        self._ledger.begun(sub._id)
        await super()._send_subscribe(sub)
        await self._ask_if_due()

    async def _send_unsubscribe(self, sid: int, limit: int = 0) -> None:
        if limit:
            self._ledger.limited(sid)
        else:
            self._ledger.ended(sid)
        await super()._send_unsubscribe(sid, limit)
        await self._ask_if_due()

    async def _ask_if_due(self) -> None:
        if self._ledger.must_ask and self.is_connected:
            await self._send_ping()

    async def _process_err(self, err_msg: str) -> None:
        line = ErrorLine(err_msg)
        if line.meaning is Meaning.OUTAGE:
            await self.replace_connection(line)
        elif line.meaning in (Meaning.LOGIN, Meaning.FINAL):
            await super()._process_err(str(line))  # closes the client
            self._err = line
        elif str(line) == TOO_MANY_SUBSCRIPTIONS:
            self._ledger.errors += 1
            if self.doubt is None:
                self.doubt = trio.Event()
                await self._send_ping()  # the PONG comes after all of these errors
        else:
            if refusal := read_refusal(line):
                for number in [n for n, sub in self._subs.items() if refusal.is_of(sub)]:
                    self._ledger.refused(number)
            await self._error_cb(line)

    def _end_doubt(self) -> None:
        if self.doubt is not None:
            self.doubt.set()
            self.doubt = None

    async def _process_op_err(self, e: Exception) -> None:
        # While nats-py reconnects, it ignores further errors too.
        self.trouble = e if self.is_connected else self.trouble
        self.usable = False
        await super()._process_op_err(e)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self.usable = False
        self._end_doubt()
        await super()._close(status, do_cbs)

    async def end_reconnecting(self) -> None:
        """Stop every attempt to connect; some swallow a cancellation, and then succeed."""
        task = self._reconnection_task
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_RECONNECT_WAIT)

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
    """Calls ``callback`` with every message as it is read, in the Trio thread."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[Incoming], None]) -> None:
        self.callback = callback

    def as_future(self) -> asyncio.Future[Msg]:
        """Itself, under the type that nats-py declares."""
        return cast("asyncio.Future[Msg]", self)
