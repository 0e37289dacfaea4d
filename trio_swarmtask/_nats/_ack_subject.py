# What the subject to ack a task on tells of its delivery:
#
#     $JS.ACK.<stream>.<consumer>.<number>.<sequence>.<consumer's sequence>.<time>.<pending>
#
# or with a domain and an account before the stream, and perhaps a token at the end.

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Consumer(Protocol):
    """A durable, as far as the subjects of its deliveries name it."""

    @property
    def stream(self) -> str: ...
    @property
    def name(self) -> str: ...


def is_first_delivery(durable: Consumer) -> Callable[[bytes], object]:
    """What tells that an ack subject is that of a task's first delivery, in the usual form.

    Nearly every one is. What it does not take is for `delivery_number` to read.
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
    """When the server stored the task, by its clock: seconds of 1970. As `stream_sequence`."""
    return stored_nanoseconds(reply) / 1e9


def stored_nanoseconds(reply: str) -> int:
    """The same in nanoseconds, exactly."""
    return parse_count(_ack_tokens(reply)[7]) or 0


def message_key(reply: str) -> str:
    """What tells a stored task from all others: also in a stream that was deleted and made anew."""
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
