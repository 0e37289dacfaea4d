# The durable of a capability: the consumer that all its workers share.
#
# It is created with `"action": "create"`: without it the server would silently change the one that
# is there, for everyone. One that is there is used as it is, if workers can share it at all.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from .._errors import BrokerError
from ._deadline import measure_clock
from ._jetstream import APIError, NoResponders, call, persist
from ._refusals import CONSUMER_EXISTS, NO_CONSUMER, NO_STREAM

if TYPE_CHECKING:
    from ._connection import Connection
    from ._requests import Requests
    from ._streams import Streams

_NANOSECONDS: Final = 1_000_000_000
_NO_LIMIT: Final = 1_000_000
_ACK_WAIT: Final = 30 * _NANOSECONDS  # the server's default
_EXPIRES: Final = 30.0


@dataclass(frozen=True, slots=True)
class Durable:
    """The consumer that the workers of one capability share."""

    stream: str
    name: str
    ack_wait: float
    max_batch: int = _NO_LIMIT
    """The largest batch that one pull may ask for."""
    expires: float = _EXPIRES
    """Seconds after which the server ends a pull."""
    last_sequence: int = 0
    """Of its stream, when it was looked up."""
    clock: float = 0.0
    """What to add to Trio's clock to have the server's, in seconds of 1970."""


def _wanted(name: str, capability: str, ack_wait: float) -> dict[str, object]:
    return {
        "name": name,
        "durable_name": name,
        "filter_subject": f"work.{capability}.*",
        "ack_policy": "explicit",
        "ack_wait": round(ack_wait * _NANOSECONDS),
        "max_deliver": -1,
        "max_ack_pending": 1_000_000,
        "max_waiting": 65_536,  # pulls; the default of 512 is one for each of so many workers
        "deliver_policy": "all",
        "replay_policy": "instant",
    }


async def find_durable(
    connection: Connection, requests: Requests, streams: Streams, capability: str
) -> Durable:
    """The durable of ``capability``, made if it is missing.

    Raises:
      BrokerError: if it may not be made, or the one that is there can't be used.
    """
    name = f"work-{capability}"
    wanted = _wanted(name, capability, connection.config.ack_wait)

    async def look(stream: str) -> dict[str, Any] | None:
        try:
            return await call(requests, f"CONSUMER.INFO.{stream}.{name}")
        except APIError as exc:
            if exc.err_code == NO_CONSUMER:
                return None
            raise

    async def make(stream: str) -> None:
        if not connection.config.manage_streams:
            raise BrokerError(
                f"stream {stream} has no durable {name}, and manage_streams is False: make one, or "
                "let it be made"
            )
        try:
            await call(
                requests,
                f"CONSUMER.CREATE.{stream}.{name}",
                stream_name=stream,
                config=wanted,
                action="create",
            )
        except APIError as exc:
            if exc.err_code not in CONSUMER_EXISTS:  # then another worker was quicker
                raise

    async def find() -> tuple[dict[str, Any], int, float]:
        stream = await streams.tasks(capability)
        try:
            info = await look(stream)
            if info is None:
                await make(stream)
                info = await look(stream)
            asked_at = trio.current_time()
            answer = await call(requests, f"STREAM.INFO.{stream}")
            if info is not None:
                clock = measure_clock(answer.get("ts"), asked_at)
                return info, answer["state"]["last_seq"], clock
        except APIError as exc:
            if exc.err_code != NO_STREAM:
                raise
        streams.forget()
        raise NoResponders(f"stream {stream}, which was there before")

    info, last_sequence, clock = await persist(connection, f"give the durable {name}", find)
    return read_durable(info, capability, last_sequence, clock)


def read_durable(
    info: dict[str, Any], capability: str, last_sequence: int = 0, clock: float = 0.0
) -> Durable:
    """What the server's answer says of the durable of ``capability``.

    Raises:
      BrokerError: if it can't be used.
    """
    config, stream, name = info["config"], info["stream_name"], info["name"]
    wanted = {"filter_subject": f"work.{capability}.*", "ack_policy": "explicit"}
    for setting, value in wanted.items():
        if config.get(setting) != value or config.get("deliver_subject"):
            raise BrokerError(
                f"the durable {name} of stream {stream} is not one that workers can share: it must "
                f"be a pull consumer with {setting} {value!r}, and has {config.get(setting)!r}; "
                "delete it to have it made anew"
            )
    if config.get("max_deliver", -1) > 0:
        raise BrokerError(
            f"the durable {name} of stream {stream} delivers a task {config['max_deliver']} times "
            "at most: one that needs more would stay in the queue, unseen, for ever; delete it to "
            "have it made anew, without that limit"
        )
    return Durable(
        stream=stream,
        name=name,
        ack_wait=config.get("ack_wait", _ACK_WAIT) / _NANOSECONDS,
        max_batch=config.get("max_batch") or _NO_LIMIT,
        expires=min(_EXPIRES, (config.get("max_expires") or math.inf) / _NANOSECONDS),
        last_sequence=last_sequence,
        clock=clock,
    )
