# The product, broken on purpose: one guarantee removed at a time.
#
# A harness that can't fail proves nothing. Each mutant is applied in the process that runs the part
# it breaks, a worker's or the test's own, and test_can_fail.py expects that it is noticed.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trio_swarmtask._jetstream import (
    _outbox,
    _results as _result_store,
    _tasks as _task_store,
)
from trio_swarmtask._jetstream._api import PubAck, publish
from trio_swarmtask._jetstream._delivery import NATSDelivery
from trio_swarmtask._jetstream._intake import NATSIntake
from trio_swarmtask._nats._connection import NotConnected
from trio_swarmtask._nats._io import encode_headers
from trio_swarmtask._worker import _runner as _admission
from trio_swarmtask._worker._capability import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask._nats._requests import Requests

    Patch = Callable[[object, str, object], None]


def ack_before_the_results_puback(patch: Patch) -> None:
    complete = NATSDelivery.complete

    async def broken(self: NATSDelivery, result: bytes) -> bool:
        self._settle(b"+ACK")
        return await complete(self, result)

    patch(NATSDelivery, "complete", broken)


def result_published_without_waiting(patch: Patch) -> None:
    async def broken(self: NATSDelivery, result: bytes) -> bool:
        connection = self._settlement.connection
        connection.publish(f"done.{self.task_id}", result, "", _result_store.FIRST)
        self._settle(b"+ACK")
        return True

    patch(NATSDelivery, "complete", broken)


def no_msg_id(patch: Patch) -> None:
    async def broken(requests: Requests, subject: str, data: bytes, _: object) -> PubAck:
        return await publish(requests, subject, data, None)

    patch(_task_store, "publish", broken)


def no_first_result_rule(patch: Patch) -> None:
    nothing = {"Swarm-Nothing": "0"}
    patch(_result_store, "FIRST", nothing)
    patch(_result_store, "FIRST_BLOCK", encode_headers(nothing))


def no_lease_renewal(patch: Patch) -> None:
    patch(NATSDelivery, "renew", lambda self: None)


def no_look_up_after_reconnect(patch: Patch) -> None:
    async def broken(self: _outbox.NATSOutbox) -> None:
        await trio.lowlevel.checkpoint()

    patch(_outbox.NATSOutbox, "_sweep", broken)


def no_dead_letter(patch: Patch) -> None:
    async def broken(self: NATSDelivery, reason: str) -> None:
        await trio.lowlevel.checkpoint()

    patch(NATSDelivery, "_keep_dead_letter", broken)


def newer_version_without_delay(patch: Patch) -> None:
    patch(_admission, "NEWER_WORKER_DELAY", 0.0)


def more_held_than_max_in_flight(patch: Patch) -> None:
    ask = NATSIntake.ask
    patch(NATSIntake, "ask", lambda self, places: ask(self, 2 * places))


def start_before_the_puback(patch: Patch) -> None:
    async def broken(
        requests: Requests, subject: str, data: bytes, headers: dict[str, str]
    ) -> PubAck:
        await trio.lowlevel.checkpoint()
        try:
            requests.connection.publish(subject, data, "", headers)
        except NotConnected:
            return await publish(requests, subject, data, headers)
        return PubAck()

    patch(_task_store, "publish", broken)


def give_back_while_the_pull_stands(patch: Patch) -> None:
    async def broken(self: NATSIntake) -> None:
        await trio.lowlevel.checkpoint()

    patch(NATSIntake, "stop", broken)


def no_look_up_after_a_servers_death(patch: Patch) -> None:
    make = NATSDelivery.__init__

    def broken(self: NATSDelivery, *args: Any, maybe_redelivered: bool, **settings: Any) -> None:
        number = args[4]
        make(self, *args, maybe_redelivered=number > 1, **settings)

    patch(NATSDelivery, "__init__", broken)


def no_look_for_cancellations(patch: Patch) -> None:
    async def broken(self: Service) -> None:
        await trio.sleep_forever()

    patch(Service, "_find_cancelled", broken)


def apply(name: str, patch: Patch = setattr) -> None:
    """Break the product in this process."""
    globals()[name](patch)
