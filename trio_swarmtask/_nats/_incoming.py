# A message that came in.
#
# In place of nats-py's `Msg`: half the cost, and the headers are parsed only where somebody asks
# for them. Most of what comes in is asked for its body alone.

from __future__ import annotations

from typing import Final

_VERSION: Final = "NATS/1.0"


class Incoming:
    """One message, as it was read. ``raw_reply`` is None where there is none."""

    __slots__ = ("data", "head", "raw_reply", "raw_subject")

    def __init__(
        self, raw_subject: bytes, raw_reply: bytes | None, head: bytes, data: bytes
    ) -> None:
        self.raw_subject = raw_subject
        self.raw_reply = raw_reply
        self.head = head
        """The header block, with its first line; empty where there is none."""
        self.data = data

    @property
    def subject(self) -> str:
        return self.raw_subject.decode("utf-8", "backslashreplace")

    @property
    def reply(self) -> str:
        """Empty where there is none."""
        reply = self.raw_reply
        return reply.decode("utf-8", "backslashreplace") if reply else ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers; what is not one is passed over. Parsed at each call.

        A status that the server wrote into the first line is ``Status``, its text
        ``Description``.
        """
        return parse_headers(self.head) if self.head else {}

    def header(self, name: bytes) -> str:
        """One header's value, found without parsing the others; empty if there is none."""
        _, found, value = self.head.rpartition(b"\r\n%b:" % name)
        return value.partition(b"\r\n")[0].decode(errors="replace").strip() if found else ""


def parse_headers(block: bytes) -> dict[str, str]:
    """See `Incoming.headers`."""
    first, *lines = block.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    if len(first) > len(_VERSION):
        status, _, description = first[len(_VERSION) :].strip().partition(" ")
        if len(status) == 3 and status.isascii() and status.isdigit():
            headers["Status"] = status
            if description:
                headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers
