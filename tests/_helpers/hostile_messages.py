# Hostile cases: what an attacker publishes who may do all that a server without permissions allows.
#
# A case is one publish. Each kind has a generator of its own, and every choice is `rng`'s. Left out
# is what a server lets anyone do who may publish: forge a well-formed acknowledgement or a notice
# of a result, end somebody's task by its ack subject, purge the queue (`Nats-Rollup: all`). And a
# header block of one byte: nats-server 2.15.1 panics when it has to republish such a message.

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests._helpers.hostile_bytes import (
    ANSWERS,
    DEADLY_CHARACTERS,
    FIELDS,
    FUTURE,
    HEADERS,
    MAX_PAYLOAD,
    NAMES,
    ODD_IDS,
    ODD_JSON,
    ODD_TEXTS,
    STATUSES,
    VALUES,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable


@dataclass
class Case:
    """One publish."""

    subject: bytes
    data: bytes = b""
    headers: bytes = b""
    reply: str = ""

    @property
    def task_id(self) -> bytes:
        return self.subject.split(b".", 2)[2]

    @property
    def is_delivered(self) -> bool:
        """Whether the durable's subject matches it."""
        return b"." not in self.task_id and not self.task_id.startswith(b"newer-")

    @property
    def token(self) -> str:
        """How the subject of its dead letter ends."""
        return re.sub("[^A-Za-z0-9_-]", "_", self.task_id.decode(errors="backslashreplace"))[:128]


@dataclass
class Targets:
    """What an attacker hears who listens to everything."""

    capability: str
    pulls: list[str] = field(default_factory=list)
    """Inboxes of pulls; the last one is the newest."""
    requests: dict[str, int] = field(default_factory=dict)
    """Inboxes of requests, and the number of the last request."""
    outstanding: list[str] = field(default_factory=list)
    """Tasks that somebody waits for, and that no worker takes."""
    key: str = "key"
    """Of the dispatcher."""


class Hostile:
    """Makes cases, numbered, so that no two have the same ID."""

    def __init__(self, rng: random.Random, targets: Targets) -> None:
        self.rng = rng
        self.targets = targets
        self.number = 0
        self._kinds: tuple[Callable[[], Case], ...] = (
            *(self.task,) * 12,
            *(self.result,) * 3,
            self.notice,
            self.guess,
            self.status,
            self.answer,
            self.delivery,
            self.noise,
        )

    def case(self) -> Case:
        self.number += 1
        return self.rng.choice(self._kinds)()

    def task(self) -> Case:
        """A task that must become a dead letter, if the server takes it."""
        rng = self.rng
        task_id = self._id()
        data = self.body(task_id.decode(errors="replace"), "inputs")
        if rng.random() < 0.001:
            headers, data = b"", data.ljust(MAX_PAYLOAD, b" ")
        else:
            headers = self.headers()
        return Case(b"work.%s.%s" % (self.targets.capability.encode(), task_id), data, headers)

    def newer(self) -> Case:
        """A task of a newer version, which waits for newer workers."""
        self.number += 1
        return Case(b"work.%s.newer-%d" % (self.targets.capability.encode(), self.number), FUTURE)

    def result(self) -> Case:
        waiting = self.targets.outstanding
        known = waiting and self.rng.random() < 0.3
        task_id = self.rng.choice(waiting).encode() if known else self._id()
        data = self.body(task_id.decode(errors="replace"), "status")
        return Case(b"done." + task_id, FUTURE if self.rng.random() < 0.1 else data, self.headers())

    def notice(self) -> Case:
        """Straight to a dispatcher's subscription; some with the header of a task's result.

        Those are believed. Only the server's permissions can tell who may publish there.
        """
        rng, targets = self.rng, self.targets
        token, headers = rng.choice((self._id(), b"1", b"1.2", b"*")), self.headers()
        if targets.outstanding and rng.random() < 0.1:
            task_id = rng.choice(targets.outstanding)
            headers = f"NATS/1.0\r\nNats-Subject: done.{task_id}\r\n\r\n".encode()
        return Case(b"notify.%s.%s" % (targets.key.encode(), token), self._bytes(), headers)

    def guess(self) -> Case:
        """What would use up or answer an ID that the dispatcher makes, if it could be guessed."""
        rng, targets = self.rng, self.targets
        # Its number (it makes one for some 50 cases), and the rest of one that is known.
        number = self.number // 50 + rng.randrange(50)
        known = rng.choice(targets.outstanding) if targets.outstanding else ""
        task_id = f"{targets.key}-{number}{rng.choice(('', known[-12:]))}".encode()
        if rng.random() < 0.5:
            return Case(b"done." + task_id, self.body(task_id.decode(), "status"))
        headers = b"NATS/1.0\r\nNats-Msg-Id: %s\r\n\r\n" % task_id
        return Case(b"work.nobody." + task_id, b"bad", headers)

    def status(self) -> Case:
        """A status, or what is none, to a pull."""
        pulls = self.targets.pulls
        inbox = self.rng.choice(pulls[-2:]) if pulls else "_INBOX.nobody"
        if self.rng.random() < 0.5:
            return Case(inbox.encode(), self._bytes(), self.headers())
        lines = [b"NATS/1.0 " + self.rng.choice(STATUSES) + self.rng.choice((b"", b" Why Not"))]
        if self.rng.random() < 0.7:
            lines.append(b"Nats-Pending-Messages: " + self.rng.choice(VALUES).encode())
        return Case(inbox.encode(), b"", b"\r\n".join([*lines, b"", b""]))

    def answer(self) -> Case:
        """An answer that is none, to a request of just now, or of the next moment."""
        if not self.targets.requests:
            return self.status()
        prefix = self.rng.choice(list(self.targets.requests))
        number = self.targets.requests[prefix] + self.rng.randrange(-10, 50)
        inbox = f"{prefix}{number}".encode()
        if self.rng.random() < 0.5:
            return Case(inbox, self.rng.choice(ANSWERS))
        return Case(inbox, b"", self.rng.choice((*HEADERS, b"NATS/1.0 503\r\n\r\n")))

    def delivery(self) -> Case:
        """A task that JetStream did not send, to a pull. The server refuses most of these."""
        rng, capability = self.rng, self.targets.capability
        words = [value for value in VALUES if " " not in value and len(value) < 100]
        tokens: list[Any] = ["TASKS", f"work-{capability}", *(rng.choice(words) for _ in range(5))]
        if rng.random() < 0.3:
            tokens[rng.randrange(2)] = rng.choice(("OTHER", "", "domain.account.TASKS"))
        reply = rng.choice(("$JS.ACK.", "JS.ACK.", "$JS.FC.", "x.")) + ".".join(tokens)
        inbox = self.targets.pulls[-1] if self.targets.pulls else "_INBOX.nobody"
        return Case(inbox.encode(), self.body("forged", "inputs"), b"", reply)

    def noise(self) -> Case:
        """Settlements of nothing, and requests that are none, to JetStream."""
        rng, name = self.rng, f"work-{self.targets.capability}"
        number = rng.choice(("0", "-1", "x", "", f"{10**17}", "9" * 30))
        ack = f"$JS.ACK.TASKS.{name}.{number}.{number}.{number}.{number}.0"
        info = rng.choice(
            ("STREAM.INFO.TASKS", f"CONSUMER.INFO.TASKS.{name}", "STREAM.NAMES", "INFO")
        )
        if rng.random() < 0.6:
            data = rng.choice((b"+ACK", b"-NAK", b"-NAK {", b"+WPI", b"+TERM", b"", self._bytes()))
            return Case(ack.encode(), data)
        return Case(f"$JS.API.{info}".encode(), self._bytes(), self.headers())

    def body(self, task_id: str, needed: str) -> bytes:
        """Never an envelope that fits: each one has something that is wrong in any version."""
        rng = self.rng
        good = {"version": 1, "id": task_id, "status": "success", "inputs": {"a": "b"}, "tags": []}
        text = json.dumps(good)
        match rng.randrange(8):
            case 0:
                return self._bytes()
            case 1:
                return text[: rng.randrange(len(text))].encode()
            case 2:  # one field wrong, and the needed one too, for the first may be harmless
                odd = {name: rng.choice(ODD_JSON) for name in rng.sample(FIELDS, 3)}
                odd.pop("version", None)
                pairs = [f'"{name}":{value}' for name, value in {**odd, needed: "5"}.items()]
                return ('{"version":1,' + ",".join(pairs) + "}").encode(errors="surrogatepass")
            case 3:
                version = rng.choice(("null", "0", "-1", '"2"', "1.5", "[]", "NaN"))
                return f'{{"version":{version},"id":"{task_id[:50]}"}}'.encode()
            case 4:
                return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7"))) + b"\xff"
            case 5:  # another task's, or twice
                other = f'"id":"other-{self.number}"'
                doubled = f'{{"version":1,"id":"a",{other},"{needed}":5}}'
                return rng.choice((doubled, f'{{"version":1,{other},"status":"failed"}}')).encode()
            case 6:
                mutated = bytearray(text.encode())
                mutated[rng.randrange(10)] = rng.choice(b"\0\xff]x")
                return bytes(mutated[1:]) if rng.random() < 0.5 else b"\xc3" + bytes(mutated)
            case _:
                return rng.choice(
                    (b"", b"\0", b"null", b"[]", b"{}", b'"\xed\xa0\x80"', b"[" * 9000)
                )

    def headers(self) -> bytes:
        rng = self.rng
        if (choice := rng.random()) < 0.4:
            return b""
        if choice < 0.7:
            return rng.choice(HEADERS)
        names = rng.sample(NAMES, rng.randrange(1, 4))
        lines = [f"{name}: {rng.choice(VALUES)}\r\n".encode() for name in names]
        return b"NATS/1.0\r\n" + b"".join(lines) + b"\r\n"

    def _id(self) -> bytes:
        rng, number = self.rng, b"%d" % self.number
        match rng.randrange(10):
            case 0:
                return rng.choice(ODD_IDS) + number
            case 1:
                return number + rng.choice(ODD_TEXTS).encode()
            case 2:
                return number + rng.choice(DEADLY_CHARACTERS) + b"x"
            case _:
                return b"bad-" + number

    def _bytes(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 1, 3, 40, 500)))
