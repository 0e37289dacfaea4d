# A worker's side, for one capability: a standing pull, kept topped up.
#
# A pull request asks the server for a number of tasks, which it sends as they come. Its answers may
# also be statuses (ADR-37): 100 is a heartbeat; 404 and 408 end a request; 409 ends it, or says
# that the consumer is gone; 503 that nobody listens. This module counts the tasks that were asked
# for and not yet sent. If the count can't be known (the connection was lost, the consumer was
# deleted, heartbeats are missing), everything starts again: another inbox, a count of zero.
#
# A server that is killed forgets the last deliveries and acks: a task that was done may come again
# as if for the first time. So after each new start older tasks are marked, and their results are
# looked for first.
#
# Invariant: never more tasks are asked for than there are free places, so no task waits at a worker
# while its neighbour is idle. A task for a free place is asked for at once, unless more than half
# of the free places are asked for already: then the next arrival tops it up.

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from .._abc import Intake
from .._errors import BrokerError, SwarmTaskError
from .._nats._connection import NotConnected
from .._nats._requests import NoAnswer, refused_error, status_of
from .._subjects import matches
from .._util import get_logger
from ._api import NO_ANSWER_YET, call
from ._cancel import Notices
from ._delivery import NATSDelivery, Settlement
from ._group_leases import GroupLeases
from ._headers import (
    NO_HEADERS,
    OWN_HEADERS,
    RESENT,
    delivery_number,
    find_firing,
    is_first_delivery,
    parse_count,
    read_due,
    read_headers,
    stream_sequence,
)
from ._streams import find_durable, read_durable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .._abc import DeliveryListener
    from .._nats._connection import Subscription
    from .._nats._error_lines import Refusal
    from .._nats._protocol import Incoming
    from .._nats._requests import Requests
    from ._streams import Durable, JetStream

logger: Final = get_logger("trio_swarmtask.nats")


# The length of a lease follows the durable: an operator may change its `ack_wait`. The server does
# not tell that (it does tell of durables that are made, deleted or paused). So a worker looks at
# the durable: in each round of renewal, every third of `ack_wait`, while tasks are in hand; when
# the first task arrives after a pause; and when one is delivered again. That is one request, which
# each worker is permitted anyway, and none while a worker is idle.
# A shorter time counts at once, also for leases that were renewed by the longer one: 100 ms later
# the server delivers again the tasks that were not renewed within the new time, though healthy
# workers run them. Each of these workers finds out in its next round, at most a third of the old
# time later. Until then, a worker that has found out puts back what is delivered again, with a
# delay, and does not run it at the same time as another worker.

# Seconds that the server takes to deliver again what a shorter `ack_wait` has made due: an answer
# that is not older knows of the change.
_GRACE: Final = 0.1

# Seconds that a task which is delivered again waits for an answer, at most.
_PATIENCE: Final = 1.0


class LeaseTerms:
    """What the durable of one capability says of leases."""

    def __init__(
        self,
        requests: Requests,
        capability: str,
        durable: Durable,
        on_change: Callable[[float], None],
        on_unusable: Callable[[BrokerError], None],
    ) -> None:
        self._requests = requests
        self._capability = capability
        self._durable = durable
        self._on_change = on_change
        self._on_unusable = on_unusable
        self._asked_at = trio.current_time()
        self._asking = trio.Lock()
        self._doubt_until = -math.inf

    async def look(self, since: float = math.inf) -> None:
        """Ask for the durable, unless that was done after ``since``, on Trio's clock.

        Without an answer, or without a durable, nothing is known to have changed.
        """
        async with self._asking:
            if self._asked_at >= since:
                return
            asked_at = trio.current_time()
            name = f"{self._durable.stream}.{self._durable.name}"
            try:
                info = await call(self._requests, f"CONSUMER.INFO.{name}")
                durable = read_durable(info, self._capability)
            except NO_ANSWER_YET as exc:
                logger.debug("the durable %s was not looked at: %r", name, exc)
            except BrokerError as exc:
                self._on_unusable(exc)
            else:
                self._asked_at = asked_at
                self.learn(durable)

    def learn(self, durable: Durable) -> None:
        """Take in the durable as it is now."""
        before, now = self._durable.ack_wait, durable.ack_wait
        self._durable = durable
        if now == before:
            return
        doubt = before / 2 if now < before else 0.0  # until all workers know, and some more
        self._doubt_until = max(self._doubt_until, trio.current_time() + doubt)
        logger.warning(
            "the durable %s of stream %s was changed: its ack_wait was %g seconds, and is %g; "
            "leases are renewed by that from now on%s",
            durable.name,
            durable.stream,
            before,
            now,
            f", and what is delivered again in the next {doubt:g} seconds is put back, for another "
            "worker may run it"
            if doubt
            else "",
        )
        self._on_change(now)

    async def doubt(self) -> float:
        """For how many seconds a task that was delivered again is to be left to others."""
        now = trio.current_time()
        with trio.move_on_after(_PATIENCE):
            await self.look(now - _GRACE)
        return max(0.0, self._doubt_until - now)


_NANOSECONDS: Final = 1_000_000_000
_HEARTBEAT: Final = 5

# Two heartbeats may get lost. To look now and then costs less than to note each message's time.
_LOOK_SECONDS: Final = _HEARTBEAT / 2
_SILENT_LOOKS: Final = 5
_ECHO_SECONDS: Final = 1.0
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0


class NATSIntake(Intake):
    """Made by `NATSBroker`."""

    def __init__(
        self,
        jetstream: JetStream,
        durable: Durable,
        capability: str,
        make_listener: Callable[[Intake], DeliveryListener],
    ) -> None:
        self.ack_wait = durable.ack_wait
        self._jetstream = jetstream
        self._connection = jetstream.connection
        self._requests = jetstream.requests
        self._streams = jetstream.streams
        self._terms = LeaseTerms(
            self._requests, capability, durable, self._change_ack_wait, self._on_unusable
        )
        self._durable = durable
        self._settlement = Settlement(
            jetstream, capability, durable.ack_wait, durable.clock, self._terms.doubt
        )
        self._capability = capability
        self._raw_prefix = f"work.{capability}.".encode()
        self._free = 0  # places
        self._asked = 0  # tasks asked for these places, and not arrived
        self._heard = False  # anything, since `_watch` last looked
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._trouble = trio.Event()
        self._ending = trio.Lock()
        self._known_until = 0  # tasks up to this sequence may have been delivered before
        self._reason = ""  # why the pull is to be begun anew
        self._refused: BrokerError | None = None
        self._stopped = False
        self._listener = make_listener(self)
        self.notices = Notices(self._connection, capability, self._listener.cancelled)

    def ask(self, places: int) -> None:
        self._free += places
        if self._asked * 2 <= self._free:  # most often it is not so
            self._top_up()

    async def look(self) -> None:
        await self._terms.look()
        with suppress(*NO_ANSWER_YET, BrokerError):  # the next round looks again
            await self._streams.look_at_results()

    async def find_done(self, task_ids: Sequence[str]) -> Mapping[str, bytes]:
        return await self._settlement.results.get_many(task_ids)

    async def find_group_leases(self, names: Collection[str]) -> Collection[str]:
        return await GroupLeases(self._jetstream).find(names)

    async def stop(self) -> None:
        self._stopped = True
        self._trouble.set()
        await self._end_in_order()

    # Asking

    def _top_up(self) -> None:
        while self._subscription is not None and self._asked * 2 <= self._free > self._asked:
            batch = min(self._free - self._asked, self._durable.max_batch)
            request = {
                "batch": batch,
                "expires": round(self._durable.expires * _NANOSECONDS),
                # More than half of `expires` would be refused.
                "idle_heartbeat": round(min(_HEARTBEAT, self._durable.expires / 2) * _NANOSECONDS),
            }
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._durable.stream}.{self._durable.name}"
            try:
                self._connection.publish(subject, msgspec.json.encode(request), self._inbox)
            except (NotConnected, BrokerError):
                self._end_for("there is no connection")
                return
            if self._asked == 0:
                self._heard = True  # the silence begins now
            self._asked += batch

    def _on_message(self, message: Incoming) -> None:
        self._heard = True
        if message.raw_subject.startswith(self._raw_prefix):
            self._on_task(message)
        elif (status := status_of(message)) is not None:
            self._on_status(message, status)
        else:
            logger.error(
                "dropped a message on the inbox of %s that is no task: subject %r, reply %r",
                self._capability,
                message.subject[:200],
                message.reply[:200],
            )

    def _on_task(self, message: Incoming) -> None:
        raw_reply = message.raw_reply or b""
        number: int | None = 1
        if not self._is_first(raw_reply):
            number = delivery_number(message.reply, self._durable)
        if number is None:
            logger.error(
                "dropped a message that JetStream did not send: subject %r, reply %r",
                message.subject[:200],
                message.reply[:200],
            )
            return
        self._free -= 1
        self._asked -= 1
        raw_id, data = message.raw_subject[len(self._raw_prefix) :], message.data
        task_id = raw_id.decode("utf-8", "backslashreplace")
        (seconds, lease), firing, resent, due = NO_HEADERS, None, False, None
        if OWN_HEADERS in message.head:
            (seconds, lease), firing = read_headers(message), find_firing(task_id, message)
            task_id, data = firing or (task_id, data)
            resent, due = bool(message.header(RESENT.encode())), read_due(message)
        self._listener.delivered(
            NATSDelivery(
                self._settlement,
                task_id,
                data,
                raw_reply,
                number,
                seconds,
                lease,
                due=due,
                # A schedule's task can't be taken out of the queue by its ID: if it was cancelled
                # there, its result tells. A task that was kept for later may have been started in
                # another capability too.
                maybe_redelivered=number > 1
                or resent
                or due is not None
                or firing is not None
                or (self._known_until > 0 and stream_sequence(message.reply) <= self._known_until),
            )
        )
        if self._asked * 2 <= self._free:  # as in `ask`
            self._top_up()

    def _on_status(self, message: Incoming, status: str) -> None:
        if status == "100":
            return
        pending = parse_count(message.header(b"Nats-Pending-Messages"))
        if status in ("404", "408", "409") and pending is not None:
            self._asked = max(0, self._asked - pending)
            self._top_up()
        else:
            self._end_for(f"the server says {status} {message.headers.get('Description', '')}")

    def _end_for(self, reason: str) -> None:
        self._reason = reason
        self._trouble.set()

    # Standing

    async def begin(self) -> None:
        """Subscribe to an inbox for tasks, and ask for tasks.

        Raises:
          BrokerError: if it refuses that.
        """
        self._begin()
        await self._terms.look()  # its answer comes after a refusal
        await self._connection.wait_certain()
        if self._refused is not None:
            raise self._refused
        self.notices.begin()

    async def stand(self) -> None:
        """Pull until stopped; begin again whenever the connection or the consumer is lost.

        To be called after `begin`.
        """
        pause = 0.0
        logged = ""
        while not self._stopped:
            began = trio.current_time()
            if self._subscription is None:
                self._begin()
            await self._watch()
            if self._stopped:
                return
            if self._refused is not None:
                raise self._refused
            await self._end_in_order()
            # Repeated trouble must not spin; after a long time without trouble there is no pause.
            long_ago = trio.current_time() - began > _LONGEST_PAUSE
            pause = 0.0 if long_ago else min(max(_FIRST_PAUSE, 2 * pause), _LONGEST_PAUSE)
            if pause == _LONGEST_PAUSE and self._reason != logged:
                logged = self._reason
                logger.warning("the pull of %s ends again and again: %s", self._capability, logged)
            await trio.sleep(pause)
            await self._connection.wait_up()
            self._streams.forget()
            self._durable = await find_durable(self._jetstream, self._capability)
            self._known_until = self._durable.last_sequence
            self._settlement.clock = self._durable.clock
            self._terms.learn(self._durable)
            self._listener.notices_missed()

    def _begin(self) -> None:
        self._trouble = trio.Event()
        self._asked = 0
        self._is_first = is_first_delivery(self._durable)
        self._inbox = self._connection.client.new_inbox()
        self._subscription = self._connection.subscribe(self._inbox, self._on_message)
        self._top_up()

    async def _end_in_order(self) -> None:
        # The pull ends when nobody is subscribed to its inbox. Tasks that the server had sent by
        # then still come in; the echo, on the same connection, comes after them. Otherwise they
        # would stay leased for `ack_wait`.
        async with self._ending:  # a second caller waits until the first has ended it
            subscription, self._subscription = self._subscription, None
            if subscription is None:
                return
            try:
                with trio.move_on_after(_ECHO_SECONDS):
                    self._connection.end_at_server(subscription)
                    await self._requests.echo()
            except (NotConnected, NoAnswer, SwarmTaskError) as exc:
                logger.debug("the pull of %s ended without an echo: %r", self._capability, exc)
            finally:
                self._connection.unsubscribe(subscription)

    def end_pull(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._connection.unsubscribe(subscription)

    async def _watch(self) -> None:
        # Returns when there is trouble, or silence where a heartbeat was due.
        silent = 0
        while not self._trouble.is_set():
            self._heard = not self._asked
            with trio.move_on_after(_LOOK_SECONDS):
                await self._trouble.wait()
            silent = 0 if self._heard else silent + 1
            if silent == _SILENT_LOOKS and not self._trouble.is_set():
                silent = 0
                await self._connection.catch_up()  # on a slow link it may be late
                if not self._heard and not self._trouble.is_set():
                    self._reason = "no heartbeat"
                    logger.warning("no heartbeat of the pull of %s: pulling anew", self._capability)
                    return

    def _change_ack_wait(self, seconds: float) -> None:
        self.ack_wait = self._settlement.ack_wait = seconds
        self._listener.ack_wait_changed()

    def _on_unusable(self, exc: BrokerError) -> None:
        self._end_for(str(exc))  # then `find_durable` raises it

    def on_down(self) -> None:
        self._settlement.reports.on_down()
        self._end_for("the connection was lost")

    def on_refused(self, refusal: Refusal) -> None:
        # Neither pulls nor acks have an answer of their own.
        if refusal.action == "subscription":
            if refusal.is_of(self._subscription):
                self._refuse(refusal)
            self.notices.on_refused(refusal)
            return
        self._settlement.reports.on_refused(refusal)
        durable = f"{self._durable.stream}.{self._durable.name}"
        pull = f"$JS.API.CONSUMER.MSG.NEXT.{durable}"
        for pattern in (pull, f"$JS.ACK.{durable}.>", f"$JS.ACK.*.*.{durable}.>"):
            if matches(pattern, refusal.subject):
                self._refuse(refusal, pattern)

    def _refuse(self, refusal: Refusal, pattern: str = "") -> None:
        self._refused = refused_error(self._connection, refusal, pattern)
        self._trouble.set()
