# Results announced on a message bus: each process holds what it published or heard.
#
# A publisher hears its own announcements too. Its subscriptions were told already, so these are
# recognised by their bytes and skipped. They come back in the order in which they were sent, so one
# that is recognised also accounts for all before it. (A tag would be simpler, but Go programs use
# the same bytes on the bus.) If another process was heard after ours was told, and before it came
# back, then ours came after that on the bus, and is told once more, so that all listeners end with
# the same result. On a bus in memory ours is back before it is told, and nothing has to be done.
#
# Over a network the pending results of each task keep to a pace: a follower may have a slow link.
# Subscriptions of this publisher are told of all. Of results that are published faster, the newest
# is announced when its time has come, or right before the end.

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from .._bus import MessageBus, background_of, check_open
from .._check import check_count
from .._errors import SwarmTaskError
from .._memory._bus import MemoryBus
from .._record import decode, encode
from .._subjects import check_subject
from .._sync import KeyedLocks, Pace
from .._util import get_logger, shorten
from ._errors import InvalidResultError
from ._local import LocalPublisher
from ._merge import merge, supersedes
from ._types import Result, clean, validate_task_id

if TYPE_CHECKING:
    from .._abc import Source
    from .._bus import BusMessage
    from ._publisher import Topic

# Announcements of a task on their way back. Past that the oldest are forgotten, and would be told
# twice.
_MOST_UNDER_WAY: Final = 1000

# Announcements of one task without a pause between them.
_AT_ONCE: Final = 64
logger: Final = get_logger("trio_swarmtask.results")


@dataclass(frozen=True)
class BusPublisherConfig:
    """How a `BusPublisher` works.

    Raises:
      InvalidSubjectError: if results can't be announced under ``subject_prefix``.
      ValueError, TypeError: if a number is not a whole one from 1 up.

    Attributes:
      subject_prefix: Updates are announced on ``<prefix>.<task id>``.
      buffer_size: Updates that a subscription holds for a slow reader.
      max_results: Results that this process holds. Past that the oldest ones go, first those that
        ended.
    """

    subject_prefix: str = "results"
    buffer_size: int = 16
    max_results: int = 10_000

    def __post_init__(self) -> None:
        check_subject(self.subject_prefix)
        check_subject(f"{self.subject_prefix}.{'x' * 128}")  # the longest task ID
        check_count("buffer_size", self.buffer_size)
        check_count("max_results", self.max_results)


@final
class BusPublisher(LocalPublisher):
    """Results announced on a bus, at most once.

    Holds what it published itself, and what it heard through its subscriptions while they were
    open; a process that was not subscribed knows nothing of the update, and one that was cut off
    has missed it. `delete` is for this process alone. Closing leaves the bus open.

    On a bus over a network, pending updates of one task are announced ten times a second in the
    long run, 64 at once at most, and of those above 10 kB fewer: of those that come faster, the
    newest is, in its time or right before the end. One that waits for its time when the publisher
    is closed is not announced.

    Args:
      bus: A `MessageBus`, in memory or on a server.
      config: The subjects and limits.
    """

    def __init__(
        self,
        bus: MessageBus,
        config: BusPublisherConfig = BusPublisherConfig(),
    ) -> None:
        if not isinstance(bus, MessageBus):
            raise TypeError(f"{shorten(bus)} is not a MessageBus: use MemoryBus or open_nats_bus")
        super().__init__(config.buffer_size, config.max_results)
        self._bus = bus
        self._prefix = config.subject_prefix
        self._locks = KeyedLocks()
        self._sent: dict[str, _Sent] = {}
        self._paces: dict[str, Pace] = {}
        self._held: dict[str, Result] = {}  # the newest that was told here, and not announced
        self._waiting: set[str] = set()  # tasks whose held result waits for its time

    async def publish(self, task_id: str, result: Result) -> None:
        self._lifetime.check()
        self._check_task_id(task_id)
        new = clean(result)
        await self._lifetime.run(partial(self._publish, task_id, new))

    async def _publish(self, task_id: str, new: Result) -> None:
        await trio.lowlevel.checkpoint()
        async with self._locks.hold(task_id):
            record = merge(task_id, new, self._find(task_id))
            data = encode(record)
            self._check_size(task_id, data)
            if self._is_too_fast(task_id, record):
                self._hold(task_id, record)
                return
            await self._send_held(task_id)
            await self._send(task_id, data)
            # While it was sent, somebody else may have announced how the task ended.
            if supersedes(record, self._find(task_id)):
                self._tell(task_id, record)

    def _tell(self, task_id: str, record: Result) -> None:
        self._keep(task_id, record)
        if task_id in self._sent:
            self._sent[task_id].was_overtaken = False

    # Pace

    def _is_too_fast(self, task_id: str, record: Result) -> bool:
        if background_of(self._bus) is None or record.status.is_terminal:
            return False
        pace = self._paces.get(task_id)
        if pace is None:
            pace = self._paces[task_id] = Pace(_AT_ONCE)
        return task_id in self._held or pace.free_at > trio.current_time()

    def _hold(self, task_id: str, record: Result) -> None:
        background = background_of(self._bus)
        assert background is not None
        check_open(self._bus)
        self._tell(task_id, record)
        self._held[task_id] = record
        if task_id not in self._waiting:
            self._waiting.add(task_id)
            background.start_soon(self._send_in_time, task_id)

    async def _send_in_time(self, task_id: str) -> None:
        try:
            while task_id in self._held:
                await self._lifetime.run(partial(trio.sleep_until, self._paces[task_id].free_at))
                async with self._locks.hold(task_id):
                    await self._lifetime.run(partial(self._send_held, task_id))
        except SwarmTaskError as exc:  # the publisher or its bus is closed, or lost
            logger.debug("an update of task %s is not announced: %r", task_id, exc)
            self._held.pop(task_id, None)
        finally:
            self._waiting.discard(task_id)

    async def _send_held(self, task_id: str) -> None:
        record = self._held.get(task_id)
        if record is not None and self._find(task_id) is record:  # else a newer one was told since
            await self._send(task_id, encode(record))
        self._held.pop(task_id, None)

    def _forget(self, task_id: str) -> None:
        super()._forget(task_id)
        self._paces.pop(task_id, None)
        self._held.pop(task_id, None)

    # Sending

    def _check_size(self, task_id: str, data: bytes) -> None:
        limit = self._bus.max_payload
        if limit is not None and len(data) > limit:
            raise InvalidResultError(
                f"the result of task {task_id!r} has {len(data)} bytes, more than the {limit} that "
                "the bus takes; keep large data elsewhere and publish a reference"
            )

    async def _send(self, task_id: str, data: bytes) -> None:
        pace = self._paces.get(task_id)
        if pace is not None:
            pace.spend(len(data))
        # Noted before it goes out: on a bus in memory it is back before `publish` returns.
        sent = self._sent.setdefault(task_id, _Sent())
        sent.announcements.append(data)
        sent.untold = data
        try:
            await self._bus.publish(f"{self._prefix}.{task_id}", data)
        except BaseException:
            sent.announcements.remove(data)
            raise
        finally:
            sent.untold = b""
            if task_id not in self._topics:
                self._sent.pop(task_id, None)  # nobody listens, so it won't come back

    def _check_task_id(self, task_id: object) -> None:
        validate_task_id(task_id)

    def _open_source(self, task_id: str) -> Source:
        return self._bus.listen(
            f"{self._prefix}.{task_id}",
            partial(self._hear, task_id),
            on_close=partial(self._on_close, task_id),
        )

    def _release(self, task_id: str, topic: Topic) -> None:
        super()._release(task_id, topic)
        if task_id not in self._topics and not self._locks.is_held(task_id):
            self._sent.pop(task_id, None)  # else what is under way may meet another listener

    def _on_close(self, task_id: str, error: Exception | None) -> None:
        self._topics[task_id].source = None  # the next subscriber is to meet the error too
        self._end(task_id, error)

    def _hear(self, task_id: str, message: BusMessage) -> None:
        sent = self._sent.get(task_id)
        if self._lifetime.is_over or (sent is not None and sent.is_own(message.data)):
            return
        try:
            heard = decode(message.data, task_id)
        except InvalidResultError as exc:
            logger.error("skipped what came on %s: %s", message.subject, exc)
            return
        held = self._find(task_id)
        if held is not None and held.created_at is not None:
            heard = msgspec.structs.replace(heard, created_at=held.created_at)
        if heard != held and supersedes(heard, held):
            self._keep(task_id, heard)
            if sent is not None:
                sent.was_overtaken = True


def announces_as_workers_do(publisher: BusPublisher) -> bool:
    """Whether it uses the subjects, on a server, on which workers send their reports."""
    return publisher._prefix == "results" and not isinstance(publisher._bus, MemoryBus)


class _Sent:
    """Own announcements of a task that will come back."""

    def __init__(self) -> None:
        self.announcements: deque[bytes] = deque(maxlen=_MOST_UNDER_WAY)
        self.untold = b""  # the one that is being sent: nobody here was told of it yet
        self.was_overtaken = False  # another process was heard since the last one was told

    def is_own(self, data: bytes) -> bool:
        """Whether ``data`` is one of them, and can be skipped."""
        if data not in self.announcements:
            return False
        while self.announcements.popleft() != data:
            pass  # one that was lost on its way
        if data == self.untold:
            return True
        again = self.was_overtaken and not self.announcements
        self.was_overtaken = self.was_overtaken and not again
        return not again
