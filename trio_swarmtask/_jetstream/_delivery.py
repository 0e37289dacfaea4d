# One task at a worker, and how it is settled.
#
# The order makes a loss impossible: the task is acked only after its result is stored and the
# PubAck is there.

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import trio

from .._abc import Delivery
from .._errors import BrokerError, SwarmTaskError
from .._nats._connection import NotConnected
from .._nats._io import size_of
from .._nats._requests import NoResponders, check_size, status_of
from .._util import LONGEST_SECONDS, get_logger
from ._api import NO_ANSWER_YET, APIError, Publish, call, measure_clock, publish
from ._group_leases import GroupLeases
from ._headers import find_deadline, message_key, parse_count
from ._refusals import NO_STREAM
from ._reports import Reports
from ._results import ResultStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._nats._protocol import Incoming
    from ._streams import JetStream

logger: Final = get_logger("trio_swarmtask.nats")
_NOTE_SECONDS: Final = 0.5

# Seconds. If a look-up of a group's lease takes longer, though there is a server, it is left for
# later: its task has one of the worker's places meanwhile.
_LOOK_SECONDS: Final = 5.0
_REASON_LIMIT: Final = 1000
_CLOCKS_DIFFER: Final = 60.0
_NOT_IN_TOKEN: Final = re.compile(r"[^A-Za-z0-9_-]")


class Settlement:
    """What the deliveries of one capability share. Their intake keeps it up to date."""

    def __init__(
        self,
        jetstream: JetStream,
        capability: str,
        ack_wait: float,
        clock: float,
        doubt: Callable[[], Awaitable[float]],
    ) -> None:
        self.capability = capability
        self.ack_wait = ack_wait
        self.clock = clock  # see `_api.measure_clock`
        self.doubt = doubt  # see `Delivery.doubt`
        self.connection = jetstream.connection
        self.requests = jetstream.requests
        self.streams = jetstream.streams
        self.results = ResultStore(jetstream)
        self.reports = Reports(jetstream.connection)
        self._leases = GroupLeases(jetstream)

    async def is_group_alive(self, lease: str) -> bool | None:
        """See `Delivery.is_group_alive`."""
        while True:
            with trio.move_on_after(_LOOK_SECONDS):
                return bool(await self._leases.find([lease]))
            if self.connection.is_up:
                return None  # their stream has no leader, say
            await self.connection.wait_up()

    async def measure_clock(self) -> float:
        """Ask the server what `clock` is now."""

        async def measure() -> float:
            stream = await self.streams.tasks(self.capability)
            asked_at = trio.current_time()
            answer = await call(self.requests, f"STREAM.INFO.{stream}")
            return measure_clock(answer.get("ts"), asked_at)

        return await self.streams.persist("say what time it is", measure)

    async def keep(
        self, kind: str, task_id: str, subject: str, data: bytes, headers: dict[str, str] | None
    ) -> None:
        """Keep a note, or a dead letter; if that is refused, it is lost, and the loss is logged."""

        async def keep() -> None:
            if await self.streams.dead() is not None:
                await publish(self.requests, subject, data, headers)

        try:
            await self.streams.persist(f"keep {kind} of task {task_id}", keep)
        except BrokerError as exc:
            if self.connection.lost is not None:
                raise
            # The result remains. Stopping here would stop one worker after the other.
            logger.error("%s is lost, of task %s: %s", kind, task_id, exc)

    async def find_notes(self, task_id: str, pattern: str) -> dict[str, int]:
        """How many notes there are of a task, by subject; none, if that is refused."""

        async def find() -> dict[str, int]:
            stream = await self.streams.dead()
            if stream is None:
                return {}
            try:
                info = await call(self.requests, f"STREAM.INFO.{stream}", subjects_filter=pattern)
            except APIError as exc:
                if exc.err_code == NO_STREAM:
                    raise NoResponders(f"stream {stream}, which was there before") from exc
                raise
            subjects: dict[str, int] = info["state"].get("subjects") or {}
            return subjects

        what = f"look up the notes of task {task_id}"
        try:
            return await self.streams.persist(what, find)
        except BrokerError as exc:
            if self.connection.lost is not None:
                raise
            # As without a stream of notes. Stopping here would stop one worker after the other.
            logger.error("could not %s, so each delivery counts as a failure: %s", what, exc)
            return {}


class _Completion(Publish):
    __slots__ = ("_delivery", "_on_end")

    def __init__(self, delivery: NATSDelivery, on_end: Callable[[bool], None]) -> None:
        self._delivery = delivery
        self._on_end = on_end

    def on_end(self, *, stored: bool, duplicate: bool = False, receipt: bytes = b"") -> None:
        if stored:
            self._delivery._settle(b"+ACK")
        self._on_end(stored)


class NATSDelivery(Delivery):
    """Made by the intake, for each message of a pull."""

    __slots__ = ("_due", "_raw_reply", "_seconds_left", "_settlement")

    def __init__(
        self,
        settlement: Settlement,
        task_id: str,
        data: bytes,
        raw_reply: bytes,
        number: int,
        seconds_left: float,
        group_lease: str,
        *,
        maybe_redelivered: bool,
        due: float | None = None,
    ) -> None:
        self.capability = settlement.capability
        self.task_id = task_id
        self.data = data
        self.number = number
        self.maybe_redelivered = maybe_redelivered
        self.lease_until = trio.current_time() + settlement.ack_wait
        self.group_lease = group_lease
        self.deadline = math.inf
        self._raw_reply = raw_reply
        if seconds_left < math.inf:
            self.deadline = find_deadline(self._reply, seconds_left, settlement.clock, due)
        self._seconds_left = seconds_left
        self._due = due
        self._settlement = settlement

    @property
    def _reply(self) -> str:
        return self._raw_reply.decode("utf-8", "backslashreplace")

    def repeats(self, other: Delivery) -> bool:
        assert isinstance(other, NATSDelivery)
        return message_key(self._reply) == message_key(other._reply)

    def renew(self) -> None:
        settlement = self._settlement
        asked_at = trio.current_time()

        def renewed(reply: Incoming | None) -> None:
            # A 503 says that nobody has heard it.
            if reply is not None and status_of(reply) is None:
                self.lease_until = asked_at + settlement.ack_wait

        try:
            settlement.requests.tell(self._reply, b"+WPI", renewed)
        except NotConnected:
            logger.debug("can't renew the lease of task %s now", self.task_id)

    async def doubt(self) -> float:
        return await self._settlement.doubt()

    async def is_group_alive(self) -> bool | None:
        return await self._settlement.is_group_alive(self.group_lease)

    async def measure_deadline(self) -> float:
        clock = await self._settlement.measure_clock()
        self.deadline = find_deadline(self._reply, self._seconds_left, clock, self._due)
        return self.deadline

    def check_report(self, data: bytes) -> None:
        check_size(self._settlement.connection, data, 0)

    def report(self, data: bytes) -> None:
        self._settlement.reports.send(self.task_id, data)

    async def complete(self, result: bytes) -> bool:
        first = await self._settlement.results.put(self.task_id, result) == result
        self._settle(b"+ACK")
        return first

    def complete_soon(self, result: bytes, on_end: Callable[[bool], None]) -> bool:
        completion = _Completion(self, on_end)
        return self._settlement.results.put_soon(self.task_id, result, completion)

    async def is_done(self) -> bool:
        settlement = self._settlement

        done = await settlement.results.get(self.task_id) is not None
        if done:
            self._settle(b"+ACK")
        return done

    async def give_back(self, delay: float = 0, *, in_order: bool = True) -> bool:
        # The note first: the worker that gets the task next must find it, if the limit is passed.
        # The task is given back in any case: that waits for nothing, so a cancellation can't
        # prevent it. A missing note counts as one failed delivery.
        given_back = False
        try:
            if in_order and not self.is_lost():
                with trio.move_on_after(_NOTE_SECONDS, shield=True):
                    await self._note()
        finally:
            given_back = self._put_back(delay)
        return given_back

    async def retry(self, delay: float) -> bool:
        if self.is_lost():
            return False
        headers = {"Nats-Msg-Id": f"retry-{self._delivery_key()}"}
        # The note says until when, because a server that is killed forgets the delay of a NAK.
        delay = min(delay, LONGEST_SECONDS)
        until = trio.current_time() + self._settlement.clock + delay
        subject = f"{self._retries()}.{math.ceil(until * 1000)}"
        await self._settlement.keep("the note of a retry", self.task_id, subject, b"", headers)
        return self._put_back(delay)

    def _put_back(self, delay: float) -> bool:
        # The server accepts a NAK even if another worker has the task by now, and hands the task
        # out again while it runs there (seen on nats-server 2.15.1).
        if self.is_lost():
            return False
        if delay > 0:
            nanoseconds = round(min(delay, LONGEST_SECONDS) * 1_000_000_000)
            self._settle(b'-NAK {"delay": %d}' % nanoseconds)
        else:
            self._settle(b"-NAK")
        return True

    async def count_given_back(self) -> int:
        notes = await self._find_notes(f"back.{self.capability}.{self._token()}")
        return sum(notes.values())

    async def count_retries(self) -> int:
        return sum((await self._find_notes(f"{self._retries()}.*")).values())

    async def rests_for(self) -> float:
        notes = await self._find_notes(f"{self._retries()}.*")
        ends = [parse_count(subject.rpartition(".")[2]) or 0 for subject in notes]
        now = trio.current_time() + self._settlement.clock
        rests = [end / 1000 - now for end in ends]
        # A note that says more is not ours, and the task would never be run.
        return max(
            (rest for rest in rests if rest <= LONGEST_SECONDS + _CLOCKS_DIFFER), default=0.0
        )

    def _retries(self) -> str:
        return f"back.{self.capability}.{self._token()}.retry"

    async def _find_notes(self, pattern: str) -> dict[str, int]:
        return await self._settlement.find_notes(self.task_id, pattern)

    async def bury(self, reason: str, result: bytes | None) -> bool:
        if self.is_lost():
            return False
        await self._keep_dead_letter(reason)
        settlement = self._settlement
        first = result is not None and await settlement.results.put(self.task_id, result) == result
        if not self.is_lost():
            self._settle(f"+TERM {_one_line(reason)}".encode())
        return first

    async def _keep_dead_letter(self, reason: str) -> None:
        subject = f"dead.{self.capability}.{self._token()}"
        headers = {
            "Nats-Msg-Id": f"dead-{self._delivery_key()}",
            "Swarm-Reason": _one_line(reason),
            "Swarm-Deliveries": str(self.number),
        }
        # The task's bytes are more important than our headers.
        await self._settlement.keep(
            "a dead letter", self.task_id, subject, self.data, self._fitting(headers)
        )

    def _fitting(self, headers: dict[str, str]) -> dict[str, str] | None:
        limit = self._settlement.connection.client.max_payload
        return headers if len(self.data) + size_of(headers) <= limit else None

    async def _note(self) -> None:
        settlement = self._settlement
        subject = f"back.{self.capability}.{self._token()}"
        headers = {"Nats-Msg-Id": f"back-{self._delivery_key()}"}
        try:
            if await settlement.streams.dead() is not None:
                await publish(settlement.requests, subject, b"", headers)
        except (*NO_ANSWER_YET, SwarmTaskError) as exc:
            settlement.streams.forget()  # it may have been deleted
            # Without a note this counts as a failed delivery. The task is still given back.
            logger.warning("could not note that task %s is given back: %s", self.task_id, exc)

    def _settle(self, answer: bytes) -> None:
        try:
            self._settlement.connection.publish_raw(self._raw_reply, answer, b"", b"")
        except (NotConnected, BrokerError):
            # The lease lapses, and whoever gets the task then finds its result.
            logger.debug("can't settle task %s now", self.task_id)

    def _delivery_key(self) -> str:
        # Tasks with different IDs may have the same token.
        return f"{self.capability}-{message_key(self._reply)}-{self.number}"

    def _token(self) -> str:
        # An ID from the network may hold anything that a subject can, a literal wildcard too.
        return _NOT_IN_TOKEN.sub("_", self.task_id)[:128] or "_"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_REASON_LIMIT]
