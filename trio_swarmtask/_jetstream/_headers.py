# What the server and our own headers tell of a task that is delivered: which delivery it is, its
# deadline, and which schedule has started it.
#
# The subject to ack a task on:
#
#     $JS.ACK.<stream>.<consumer>.<number>.<sequence>.<consumer's sequence>.<time>.<pending>
#
# or with a domain and an account before the stream, and perhaps a token at the end.

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, Protocol

import trio

from .._check import is_task_id
from .._schedule import make_firing

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._nats._protocol import Incoming


class Consumer(Protocol):
    """A durable, as far as the subjects of its deliveries name it."""

    @property
    def stream(self) -> str: ...
    @property
    def name(self) -> str: ...


def is_first_delivery(durable: Consumer) -> Callable[[bytes], object]:
    """A test whether an ack subject is that of a task's first delivery, in the usual form.

    Nearly every one is. `delivery_number` reads the others.
    """
    before = re.escape(f"$JS.ACK.{durable.stream}.{durable.name}.1.".encode())
    count = rb"\d{1,19}"
    return re.compile(rb"%b%b\.%b\.%b\.%b" % (before, count, count, count, count)).fullmatch


def delivery_number(reply: str, durable: Consumer) -> int | None:
    """How often the task was delivered, from the ack subject; None if it is not our durable's."""
    tokens = _ack_tokens(reply)
    if len(tokens) < 9 or tokens[:4] != ["$JS", "ACK", durable.stream, durable.name]:
        return None
    return parse_count(tokens[4]) or None


def stream_sequence(reply: str) -> int:
    """The task's number in its stream, from an ack subject that `delivery_number` has accepted."""
    return parse_count(_ack_tokens(reply)[5]) or 0


def stored_at(reply: str) -> float:
    """When the server stored the task, by its clock: seconds since 1970. As `stream_sequence`."""
    return stored_nanoseconds(reply) / 1e9


def stored_nanoseconds(reply: str) -> int:
    """As `stored_at`, in nanoseconds, exactly."""
    return parse_count(_ack_tokens(reply)[7]) or 0


def message_key(reply: str) -> str:
    """Tells a stored task from all others, also in a stream that was deleted and made again."""
    tokens = _ack_tokens(reply)
    return f"{tokens[5]}-{tokens[7]}"


def parse_count(text: str) -> int | None:
    """A number from the network; None if it is none, or no machine could count that far."""
    return int(text) if len(text) < 20 and text.isascii() and text.isdigit() else None


def _ack_tokens(reply: str) -> list[str]:
    tokens = reply.split(".")
    if len(tokens) in (11, 12):
        del tokens[2:4]
    return tokens


# A deadline travels with its task, over machines whose clocks differ. Whoever starts the task sends
# the seconds that it has left. The server notes when it stored the task, by its own clock. So a
# worker that knows how far its clock is from the server's (the answers of the server's API say what
# time it is there) knows how long the task has waited. A task that was kept for later may enter the
# queue late: the server was down when it was due. So it carries the time at which it was due, and
# the seconds count from that.

SECONDS_LEFT: Final = "Swarm-Seconds-Left"
LEASE: Final = "Swarm-Lease"
DUE: Final = "Swarm-Due"
"""Of a task that was kept for later: when it was due, in seconds since 1970 by the server's
clock."""
RESENT: Final = "Swarm-Resent"
"""Of a task that may have been stored before: its result is looked for before it is run."""
OWN_HEADERS: Final = b"\r\nSwarm-"
"""What a header block holds if one of our headers is in it."""
NO_HEADERS: Final = (math.inf, "")
"""What `read_headers` returns for a task without any: no deadline, no lease."""


def seconds_left(deadline: float) -> str:
    """The value of `SECONDS_LEFT` for a task that is sent now."""
    return f"{max(0.0, deadline - trio.current_time()):.3f}"


def read_headers(message: Incoming) -> tuple[float, str]:
    """The seconds that a task had left when it was sent, and its lease: see `NO_HEADERS`."""
    lease = message.header(LEASE.encode())
    if not is_task_id(lease):
        lease = ""  # anybody may write there
    try:
        seconds = float(message.header(SECONDS_LEFT.encode()))
    except ValueError:
        seconds = math.inf
    return (seconds if seconds >= 0 else math.inf), lease  # a NaN is not


def read_due(message: Incoming) -> float | None:
    """When a task was due that was kept for later, by the server's clock; None for any other."""
    try:
        due = float(message.header(DUE.encode()))
    except ValueError:
        return None
    return due if 0 <= due < math.inf else None


def find_deadline(reply: str, seconds: float, clock: float, due: float | None = None) -> float:
    """The deadline of a task on Trio's clock.

    Args:
      reply: What it is acked on.
      seconds: See `read_headers`.
      clock: See `measure_clock`.
      due: See `read_due`.
    """
    began = stored_at(reply)
    if due is not None:
        began = min(began, due)
    # The task is here, so it began no later than now, however wrong the measured clock is.
    return min(began - clock, trio.current_time()) + seconds


# All tasks of a schedule come on one subject, with one envelope. So the worker gives each an ID of
# its own, by the time at which the server stored it: a redelivery has the same ID.
SCHEDULE: Final = "Swarm-Schedule"
"""In a schedule, and in what it starts: its name."""
_NAME: Final = SCHEDULE.encode()
_FIRING: Final = re.compile(r"(.+)-[0-9]{12,}")  # milliseconds, from 1973 on


def find_firing(name: str, message: Incoming) -> tuple[str, bytes] | None:
    """The ID and envelope of a task that a schedule has started; None for any other.

    Args:
      name: The ID in its subject.
      message: Whose reply subject `delivery_number` has accepted.
    """
    if message.header(_NAME) != name:
        return None  # anybody may write there
    return make_firing(name, message.data, stored_nanoseconds(message.reply) // 1_000_000)


def firings_like(task_id: str) -> list[str]:
    """Where to look for the schedule that may have started a task, or for what it has started."""
    match = _FIRING.fullmatch(task_id)
    return [] if match is None else [f"work.*.{match[1]}", f"work.*.{match[1]}.later"]
