# One connection to a NATS server, for any number of roles.
#
# nats-py reconnects by itself. It reports that by callbacks, which set state and events here and
# never raise: after an exception nats-py would reconnect for ever. Nothing is published while there
# is no connection, because the client would keep it and send it at some later time; a sender awaits
# `wait_up` and then checks what is still to be done.
#
# Invariant: `_up` is set while the server is connected and every subscription is replayed; and once
# the connection is lost for good, which ends all waits.

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import nats.errors
import trio

from .._errors import BrokerError
from .._sync import Starting
from .._util import fresh, get_logger, open_flat_nursery
from ._client import Client, Sink, connect_options
from ._credentials import check_credentials
from ._error_lines import Refusal, line_of, read_refusal
from ._errors import connect_error, fatal_error, lost_error
from ._io import Outgoing, too_large
from ._loop import Loop, open_loop
from ._protocol import parse_headers
from ._versions import is_known, tell_unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from nats.aio.subscription import Subscription as Subscription

    from .._config import NATSConfig
    from ._protocol import Incoming

T = TypeVar("T")
logger: Final = get_logger("trio_swarmtask.nats")


# A problem at the server is logged once, not once for each caller that meets it. If a disk is too
# slow or a stream is full, a thousand callers wait for the same. The first of them logs it. While
# any of them still waits, the others have nothing to add; after the last one is done, the same
# problem is news again.


class Troubles:
    """The troubles of one connection."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def open(self) -> Iterator[Trouble]:
        """The troubles of one caller, for as long as it tries."""
        trouble = Trouble(self._waiting)
        try:
            yield trouble
        finally:
            trouble.end()


class Trouble:
    """The problems that one caller has met."""

    def __init__(self, waiting: Counter[str]) -> None:
        self._waiting = waiting
        self._met: set[str] = set()

    def is_news(self, problem: str) -> bool:
        """Whether to log it: it is this caller's first problem, and no other caller has it now."""
        first = not self._met
        if problem in self._met:
            return False
        self._met.add(problem)
        self._waiting[problem] += 1
        return first and self._waiting[problem] == 1

    def end(self) -> None:
        for problem in self._met:
            self._waiting[problem] -= 1
            if not self._waiting[problem]:
                del self._waiting[problem]


_CLOSE_SECONDS: Final = 2.0

# Seconds, as good as no limit: nats-py asks for a number.
_AS_LONG_AS_IT_TAKES: Final = 24 * 60 * 60

# Bytes that may wait to be sent before publishers wait too.
_HIGH_WATER: Final = 8 * 1024 * 1024


class NotConnected(Exception):
    """There is no connection now; wait for `Connection.wait_up`."""


def _ignore(*_: object) -> None:
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """See `Connection.listening`."""

    on_down: Callable[[], object]
    on_up: Callable[[], object]
    on_refused: Callable[[Refusal], object]


class Connection:
    """A client that is connected, or on its way back. Made by `open_connection`."""

    def __init__(self, config: NATSConfig, loop: Loop, closing: trio.Event) -> None:
        self.config = config
        self._loop = loop
        self._closing = closing
        self.client = Client()
        self.client.wants_tls = config.wants_tls
        if not any((config.user, config.token, config.credentials, config.nkey_seed)):
            self.client.logins = config.logins
        self.lost: BrokerError | None = None
        self._listeners: list[_Listener] = []
        self.troubles = Troubles()
        self.followed = 0  # tasks whose reports are followed
        self.report_size = 1000  # bytes that one of these reports had lately
        self._outgoing = Outgoing(self.client) if is_known("nats-py") else None
        self._up = trio.Event()
        self._down = trio.Event()
        self._was_up = False
        self._fatal = trio.Event()
        self._last_error: Exception | None = None

    # Sending

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Hand a message to the client; it is sent with the next write.

        Raises:
          NotConnected: if there is no connection now; nothing is kept.
          InvalidMessageError: if the server would close the connection over it.
        """
        self._check_up()
        if self._outgoing:
            self._outgoing.publish(subject, data, reply, headers)
        else:
            try:
                self._loop.step(self.client.publish(subject, data, reply, headers))
            except nats.errors.MaxPayloadError as exc:
                raise too_large(len(data), subject, self.client.max_payload) from exc

    def publish_raw(self, subject: bytes, data: bytes, reply: bytes, block: bytes) -> None:
        """As `publish`, for a message that is known to be no larger than the server takes.

        Args:
          block: The headers as they go onto the wire; empty where there are none.
        """
        if not self.client.usable:
            self._check_up()
        if self._outgoing:
            self._outgoing.publish_raw(subject, data, reply, block)
        else:
            headers = parse_headers(block) if block else None
            self._loop.step(self.client.publish(subject.decode(), data, reply.decode(), headers))

    def subscribe(
        self,
        subject: str,
        callback: Callable[[Incoming], None],
        queue: str = "",
        *,
        most: int = 0,
    ) -> Subscription:
        """Call ``callback`` with every message, or with those of ``queue`` that come here; also
        after a reconnect, unless the server is to end the subscription after ``most`` messages.
        """
        if self.lost is not None:
            raise self.lost_error()
        sink = Sink(callback).as_future()
        subscription = self._loop.step(self.client.subscribe(subject, queue, future=sink))
        if most:
            self.limit(subscription, most)
        return subscription

    def limit(self, subscription: Subscription, most: int) -> None:
        """Let the server end a subscription after ``most`` messages, if it has not done so yet."""
        self._loop.step(subscription.unsubscribe(most))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Drop both ends; what is under way is lost."""
        if self.client.is_closed:
            return
        self._loop.step(subscription.unsubscribe())

    def end_at_server(self, subscription: Subscription) -> None:
        """Let the server send nothing more; what is under way still arrives."""
        self._check_up()
        self._loop.step(self.client.end_at_server(subscription))

    @property
    def is_congested(self) -> bool:
        """Whether so much is to be sent that publishers should wait for room."""
        client = self.client
        size = client.unsent_size if client.has_backlog else client.pending_data_size
        return size > _HIGH_WATER

    async def wait_room(self) -> None:
        """Wait until less is waiting to be sent."""
        while self.is_up and self.is_congested:
            try:
                await self.call(self.client.flush())
            except (BrokerError, NotConnected):
                return  # the next publish says why

    async def catch_up(self) -> None:
        """Wait until everything that the server has sent by now is here, or the connection is lost.

        On a slow link there is no time limit: it is given up only if nothing comes at all.
        """
        if not self.is_up:
            return
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self._down.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            with suppress(BrokerError):  # the connection was lost meanwhile
                await self.call(self.client.flush(_AS_LONG_AS_IT_TAKES))
            nursery.cancel_scope.cancel()

    # State

    @property
    def is_up(self) -> bool:
        return self.client.usable

    async def wait_up(self) -> None:
        """Wait until there is a connection.

        Raises:
          BrokerError: if it is lost for good.
        """
        if not self.is_up:
            if self._up.is_set():
                # nats-py has noticed that the connection broke and has not said so yet.
                await self._down.wait()
            if self.lost is None:
                await self._up.wait()
        if self.lost is not None:
            raise self.lost_error()

    async def wait_certain(self) -> None:
        """Wait until it is known which subscriptions were refused, if some were just now.

        By then the ``on_refused`` of `listening` was called.
        """
        if self.client.doubt is not None:
            await self.client.doubt.wait()

    @contextmanager
    def listening(
        self,
        *,
        on_down: Callable[[], object] = _ignore,
        on_up: Callable[[], object] = _ignore,
        on_refused: Callable[[Refusal], object] = _ignore,
    ) -> Iterator[None]:
        """Call these functions while the block runs.

        Args:
          on_down: The connection was lost, for a while or for good.
          on_up: There is a connection again; not called for the first one.
          on_refused: The server has refused a publish or a subscription.
        """
        listener = _Listener(on_down, on_up, on_refused)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def lost_error(self) -> BrokerError:
        assert self.lost is not None
        return fresh(self.lost)

    def _check_up(self) -> None:
        if not self.client.usable:
            raise NotConnected if self.lost is None else self.lost_error()

    # The client's callbacks: asyncio's side, in the Trio thread

    async def _on_error(self, exc: Exception) -> None:
        self._last_error = exc
        refusal = read_refusal(exc)
        if refusal is not None:
            logger.error("%s: %s", self.config.safe_url, exc)
            for listener in list(self._listeners):
                listener.on_refused(refusal)
            return
        fatal = fatal_error(exc, self.config)
        if fatal is not None and not self._fatal.is_set():
            self._fatal.set()  # ends the first connect; later a server may change its mind
            logger.error("%s", fatal)
        level = logging.WARNING if self.is_up and line_of(exc) else logging.DEBUG
        logger.log(level, "the client of %s reports: %s", self.config.safe_url, exc)

    async def _on_disconnected(self) -> None:
        if not self._closing.is_set():
            reason = str(self.client.trouble) or repr(self.client.trouble)
            logger.warning("lost the connection to %s: %s", self.config.safe_url, reason)
        if self._up.is_set():  # else some may wait for this event, and must not lose it
            self._up = trio.Event()
        self._down.set()
        for listener in list(self._listeners):
            listener.on_down()

    async def _on_reconnected(self) -> None:
        logger.warning("connected again to %s", self.config.safe_url)
        self._fatal = trio.Event()
        self._down = trio.Event()
        self.client.usable = self.lost is None
        self._up.set()
        for listener in list(self._listeners):
            listener.on_up()

    async def _on_closed(self) -> None:
        if not self._closing.is_set():
            # The server closed it (a revoked user, say). nats-py does not reconnect, and keeps the
            # reason.
            self._last_error = self.client.last_error or self._last_error
            self._lose(f"the server closed the connection: {self._last_error or 'no reason given'}")

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = lost_error(self._last_error, self.config, reason)
        for listener in list(self._listeners):
            listener.on_down()
        self._down.set()
        self._up.set()

    # Life

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine of the client in the loop; its errors come out as BrokerError."""
        try:
            return await self._loop.run(coroutine)
        except asyncio.CancelledError as exc:
            # asyncio's cancellation, not Trio's: the loop or the client is being closed.
            error = BrokerError(f"the connection to {self.config.safe_url} was closed")
            raise error from exc  # noqa: ASYNC104 - see above
        except (nats.errors.Error, OSError, RuntimeError) as exc:
            text = str(exc) or type(exc).__name__
            raise BrokerError(f"{self.config.safe_url}: {text}") from exc

    def writing(self) -> AbstractContextManager[None]:
        """Write with our own writer while the block runs, if the version of nats-py is known."""
        return self._outgoing.writing() if self._outgoing else nullcontext()

    async def shut(self) -> None:
        # Buffered bytes go out first, unless the network is dead: then the transport is dropped. A
        # client that never connected has nothing to send, and its close() may assume that it has
        # connected.
        if self._was_up:
            with trio.move_on_after(_CLOSE_SECONDS):
                try:
                    await self.call(self.client.close())
                    await self.call(self.client.end_reconnecting())
                except Exception as exc:  # noqa: BLE001 - a TypeError of asyncio's, in an outage
                    logger.debug("closing: %r", exc)
        self.client.abort()

    def end(self) -> None:
        """It was closed, for whoever still has it."""
        closed = BrokerError(f"the connection to {self.config.safe_url} was closed")
        self.lost = self.lost or closed

    async def connect(self) -> None:
        """Connect, within the config's ``connect_timeout``."""
        config = self.config
        check_credentials(config)
        with trio.move_on_after(config.connect_timeout):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_if_fatal, nursery.cancel_scope)
                try:
                    await self.call(
                        self.client.connect(
                            config.servers,
                            error_cb=self._on_error,
                            disconnected_cb=self._on_disconnected,
                            reconnected_cb=self._on_reconnected,
                            closed_cb=self._on_closed,
                            **connect_options(config),
                        )
                    )
                    self.client.usable = self._was_up = True
                    self._up.set()
                except BrokerError as exc:
                    self._last_error = exc
                nursery.cancel_scope.cancel()
        if not self._up.is_set():
            raise connect_error(self._last_error, config)

    async def _cancel_if_fatal(self, scope: trio.CancelScope) -> None:
        await self._fatal.wait()
        scope.cancel()

    async def watch(self) -> None:
        """Raise when the connection is lost for good."""
        while self.lost is None:
            await self._down.wait()
            if self.lost is None:
                with trio.move_on_after(self.config.reconnect_timeout) as scope:
                    await self._up.wait()
                if scope.cancelled_caught:
                    self._lose(f"no server for {self.config.reconnect_timeout:g} seconds")
        raise self.lost_error()


async def _host(config: NATSConfig, closing: trio.Event, starting: Starting[Connection]) -> None:
    # The shield is ended by `closing`, which open_connection sets on its way out.
    with trio.CancelScope(shield=True):
        async with open_loop() as loop:
            connection = Connection(config, loop, closing)
            with connection.writing():
                starting.started(connection)
                await closing.wait()
                await connection.shut()


@asynccontextmanager
async def open_connection(config: NATSConfig) -> AsyncIterator[Connection]:
    """Connect; BrokerError leaves the block when the connection is lost for good."""
    tell_unknown()
    closing = trio.Event()
    with ExitStack() as ended:
        async with open_flat_nursery() as nursery:
            try:
                starting: Starting[Connection] = Starting()
                nursery.start_soon(_host, config, closing, starting)
                connection = await starting.wait()
                ended.callback(connection.end)
                await connection.connect()
                nursery.start_soon(connection.watch)
                yield connection
            finally:
                closing.set()
                nursery.cancel_scope.cancel()
