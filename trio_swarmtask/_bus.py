# The message bus: publish and subscribe by subject, at most once.
#
# A kind of bus itself does little: publish, request, and call back for what arrives (`_attach`,
# `_detach`). The rest is the same for all and is here: what a subject may be, buffers that drop,
# closing.
#
# Invariant: a listener is attached from entering its block to leaving it, or until the bus is
# closed or lost; in that case `on_close` is called, once. After that no callback of it is called.
#
# A callback runs where all messages pass: in somebody else's `publish`, or in what reads a
# connection. So no exception of a callback gets out there. An interrupt, which must end the
# program, is handed to the bus, which raises it where it harms nobody else.

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from typing import TYPE_CHECKING, Final, TypeVar, final

import msgspec
import trio

from ._abc import Source
from ._check import check_count
from ._errors import BusClosedError, InvalidMessageError
from ._subjects import check_pattern, check_queue, check_subject
from ._sync import Buffered
from ._util import fresh, get_logger, leaves, shorten

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
logger: Final = get_logger("trio_swarmtask.bus")


class BusMessage(msgspec.Struct, frozen=True):
    """What arrives on a subject.

    Attributes:
      subject: The one it was published on, without wildcards.
      data: Its bytes.
      reply: The subject to publish an answer on, if it is a request; else empty.
    """

    subject: str
    data: bytes
    reply: str = ""


class MessageBus(trio.abc.AsyncResource):
    """Publish and subscribe by subject. A `MemoryBus`, or opened by `open_nats_bus`.

    A message reaches whoever is subscribed when it is published, once, and is gone: at most once.
    Messages of one publisher arrive in their order. Safe to use from any number of tasks of one
    Trio run. Closing ends all subscriptions; what they have buffered can still be read.
    """

    def __init__(self, buffer_size: int) -> None:
        check_count("buffer_size", buffer_size)
        self._buffer_size = buffer_size
        self._listeners: dict[Listener, None] = {}  # in the order of attaching
        self._closed = False
        self._lost: Exception | None = None  # what has closed it, if it was not the user
        self._interrupts: list[KeyboardInterrupt] = []  # of callbacks
        # Where messages that are to be sent later wait, if the bus sends over a network.
        self._nursery: trio.Nursery | None = None

    @property
    def max_payload(self) -> int | None:
        """Bytes that a message may hold; None: no limit."""
        return None

    @abstractmethod
    async def publish(self, subject: str, data: bytes) -> None:
        """Send ``data`` to whoever listens. Waits through an outage.

        Raises:
          InvalidSubjectError: if ``subject`` has an empty token, white space or a wildcard.
          TypeError: if ``data`` is not bytes.
          InvalidMessageError: if it is larger than `max_payload`.
          BusClosedError: if the bus is closed, or is closed while this waits.
          BrokerError: if the server is lost for good.
        """

    @abstractmethod
    async def request(self, subject: str, data: bytes) -> BusMessage:
        """Send ``data`` and wait for one reply. The caller's cancel scope is the deadline.

        Whoever answers publishes on the message's ``reply``. The first answer counts.

        Raises:
          NoRespondersError: if nobody listens on ``subject``.
          What `publish` raises.
        """

    def subscribe(self, subject: str) -> BusSubscription:
        """Messages on ``subject``: ``async with`` it, then ``async for`` each `BusMessage`.

        In the block, whatever is published from now on arrives. A full buffer drops its oldest
        message and counts it in `BusSubscription.dropped`.

        Args:
          subject: Tokens with dots between them. ``*`` stands for one, a last ``>`` for the rest.

        Raises:
          InvalidSubjectError: if ``subject`` has another form.
          BusClosedError: if the bus is closed.
          BrokerError: on entering, if the server does not permit it.
        """
        return BusSubscription(self, subject, "", self._buffer_size)

    def queue_subscribe(self, subject: str, queue: str) -> BusSubscription:
        """As `subscribe`, but each message goes to one member of ``queue``.

        One name is one queue, also over different subjects.
        """
        check_queue(queue)
        return BusSubscription(self, subject, queue, self._buffer_size)

    def listen(
        self,
        subject: str,
        callback: Callable[[BusMessage], None],
        *,
        on_close: Callable[[Exception | None], None] | None = None,
    ) -> Source:
        """Call ``callback`` for every message on ``subject``, in order, for the length of a block.

        Nothing is buffered and nothing dropped, so the callback must be short and must not block.
        What it raises is logged, whatever it is, and the next message comes; a
        ``KeyboardInterrupt`` ends the program, as anywhere. ``on_close`` is called if the bus is
        closed (with None) or its server is lost for good (with the `BrokerError`).

        Raises:
          TypeError: if a callback is async, or can't be called.
          What `subscribe` raises.
        """
        check_callback("callback", callback)
        if on_close is not None:
            check_callback("on_close", on_close)
        return Listener(self, subject, "", callback, on_close)

    @abstractmethod
    async def _attach(self, listener: Listener) -> None:
        """Let ``listener`` get what is published from when this returns."""

    @abstractmethod
    def _detach(self, listener: Listener) -> None:
        """Undo `_attach`."""

    async def aclose(self) -> None:
        """End all subscriptions and requests. Twice is fine."""
        self._close()
        self._raise_interrupts()
        await trio.lowlevel.checkpoint()

    def _close(self, error: Exception | None = None) -> None:
        if not self._closed:
            self._closed = True
            self._lost = error
        for listener in list(self._listeners):
            listener.leave(error)

    def _interrupt(self, exc: KeyboardInterrupt) -> None:
        """A callback was interrupted: end the program once the other callbacks were called."""
        self._interrupts.append(exc)

    def _raise_interrupts(self) -> None:
        if self._interrupts:
            raise self._interrupts.pop()

    def _check_message(self, subject: object, data: object) -> None:
        check_open(self)
        check_subject(subject)
        if not isinstance(data, bytes):
            raise TypeError(f"data must be bytes, not {shorten(data)}")
        if self.max_payload is not None and len(data) > self.max_payload:
            raise InvalidMessageError(
                f"{len(data)} bytes are more than the {self.max_payload} that the server takes; "
                "keep large data elsewhere and send a reference"
            )


def check_open(bus: MessageBus) -> None:
    if bus._lost is not None:
        raise fresh(bus._lost)
    if bus._closed:
        raise BusClosedError("the bus is closed; open another one")


def background_of(bus: MessageBus) -> trio.Nursery | None:
    """The nursery where messages wait that are sent later; None: the bus uses no network."""
    return bus._nursery


def check_callback(name: str, callback: object) -> None:
    """Raise TypeError unless ``callback`` can be called, and is not async."""
    if not callable(callback):
        raise TypeError(f"{name} must be a function, not {shorten(callback)}")
    inner: object = callback
    while isinstance(inner, functools.partial):
        inner = inner.func
    for called in (inner, getattr(type(inner), "__call__", None)):  # noqa: B004 - not to call it
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(
                f"{name} must not be async, as {shorten(callback)} is: nobody would await it; use "
                "subscribe, or hand the message on, for example by send_nowait"
            )


class Listener(Source):
    """A callback on a subject, from entering its block to leaving it."""

    def __init__(
        self,
        bus: MessageBus,
        subject: str,
        queue: str,
        callback: Callable[[BusMessage], None],
        on_close: Callable[[Exception | None], None] | None,
    ) -> None:
        check_open(bus)
        check_pattern(subject)
        self.subject = subject
        self.queue = queue
        self._bus = bus
        self._callback = callback
        self._on_close = on_close
        self._used = False
        self._entered = False
        self._ended = False

    async def __aenter__(self) -> None:
        if self._used:
            raise RuntimeError(f"the block of {self.subject!r} was entered before: subscribe again")
        check_open(self._bus)
        self._used = True
        try:
            await self._bus._attach(self)
            self._bus._listeners[self] = None
            if self._bus._closed:  # just when the server said yes
                self.leave(self._bus._lost)
                check_open(self._bus)
            self._entered = True
        finally:
            self._used = self._entered

    def end(self) -> None:
        if self in self._bus._listeners:
            self._ended = True
            del self._bus._listeners[self]
            self._bus._detach(self)

    def hear(self, message: BusMessage) -> None:
        """Call back. Never raises: it is called where all messages pass."""
        if self._ended:  # just now, by the callback of another listener
            return
        try:
            self._call(self._callback, message)
        except BaseException as exc:  # noqa: ASYNC103, BLE001 - it must not stop other callbacks
            self._tell(exc, f"on {message.subject!r}")

    def leave(self, error: Exception | None) -> None:
        """The bus is closed, or lost by ``error``."""
        if self._ended:
            return
        self.end()
        try:
            if self._on_close is not None:
                self._call(self._on_close, error)
        except BaseException as exc:  # noqa: ASYNC103, BLE001 - the others must hear of it too
            self._tell(exc, "on the bus being closed")

    def _call(self, callback: Callable[[T], object], argument: T) -> None:
        result = callback(argument)
        if result is not None and inspect.iscoroutine(result):
            result.close()
            raise TypeError(f"the callback is async: nobody awaits what it returns, {result!r}")

    def _tell(self, exc: BaseException, where: str) -> None:
        for leaf in leaves(exc):
            if isinstance(leaf, KeyboardInterrupt):
                return self._bus._interrupt(leaf)
        logger.error("the listener of %r failed %s", self.subject, where, exc_info=exc)

    def check_entered(self) -> None:
        if not self._entered:
            raise RuntimeError(
                f"the subscription to {self.subject!r} was not entered: write 'async with "
                "bus.subscribe(…) as messages', then 'async for message in messages'"
            )


@final
class BusSubscription(Buffered[BusMessage]):
    """Messages on a subject, buffered. Made by `MessageBus.subscribe` and `queue_subscribe`.

    ``async with`` it, then ``async for``; several tasks may, and each message goes to one of them.
    The iteration ends when the bus is closed and what is buffered was read, or by `BrokerError`
    when its server is lost for good.
    """

    def __init__(self, bus: MessageBus, subject: str, queue: str, buffer_size: int) -> None:
        super().__init__(buffer_size)
        self._listener = Listener(bus, subject, queue, self._buffer.put, self._buffer.end)

    @property
    def dropped(self) -> int:
        """Messages that a full buffer lost, so far."""
        return self._buffer.dropped

    async def _enter(self) -> None:
        await self._listener.__aenter__()

    def _leave(self) -> None:
        self._listener.end()
        self._buffer.end()

    def _check_entered(self) -> None:
        self._listener.check_entered()
