# The siege: a worker and a dispatcher on one server, an attacker who hears what they publish, and a
# server that is broken itself.

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter, deque
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from tests._helpers.faults.table import Row
from tests._helpers.hostile_messages import Case, Targets
from tests._helpers.nats_servers import listening
from tests._helpers.plain_nats import PlainClient, Received, open_plain_client, publication
from tests._helpers.proxy import HOST, Proxy
from trio_swarmtask import Dispatcher, Message, NATSConfig, open_dispatcher, open_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from trio_swarmtask.server import Server

MIB = 1 << 20
IN_FLIGHT = 20
INBOX = "_INBOX.hostile."
LOST = "lost the connection to "
EXPLAINED = re.compile(rf"{LOST}\S+: (?!None)\S")


class Log(logging.Handler):
    """Counts what is logged; keeps the last lines, and every one with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self.lines: deque[str] = deque(maxlen=100)
        self.tracebacks: deque[str] = deque(maxlen=5)

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        self.lines.append(f"{record.name}: {record.getMessage()}"[:300])
        if record.exc_info:
            self.tracebacks.append(self.format(record))

    def unexplained(self) -> list[str]:
        """The lines that tell of a lost connection and not why."""
        return [line for line in self.lines if LOST in line and not EXPLAINED.search(line)]


@contextmanager
def logged() -> Iterator[Log]:
    log = Log()
    loggers = [logging.getLogger(name) for name in ("trio_swarmtask", "nats")]
    for logger in loggers:
        logger.addHandler(log)
        logger.propagate = False  # pytest keeps every record
    try:
        yield log
    finally:
        for logger in loggers:
            logger.removeHandler(log)
            logger.propagate = True


@dataclass
class Siege:
    """A worker, a dispatcher, and who is after them."""

    client: PlainClient
    dispatcher: Dispatcher
    log: Log
    row: Row
    targets: Targets = field(default_factory=lambda: Targets("work"))
    acks: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)
    attacks: int = 0
    next_ack: trio.Event = field(default_factory=trio.Event)

    async def handle(self, message: Message) -> dict[str, str]:
        self.runs[message.id] += 1
        await trio.sleep(float(message.inputs.get("seconds", "0")))
        return message.inputs

    async def listen(self, heard: trio.MemoryReceiveChannel[Received]) -> None:
        """Learn what there is to be attacked."""
        pull = "$JS.API.CONSUMER.MSG.NEXT.TASKS.work-work"
        async for message in heard:
            if message.subject.startswith(INBOX):
                if message.data:
                    self.acks[message.subject.removeprefix(INBOX)] = json.loads(message.data)
                self.next_ack.set()
                self.next_ack = trio.Event()
            elif message.reply.startswith(("$JS.ACK.", "_INBOX.hostile.", "_INBOX.plain.")):
                pass
            elif message.subject == pull:
                if message.reply not in self.targets.pulls[-2:]:
                    self.targets.pulls.append(message.reply)
            elif (parts := message.reply.rpartition("."))[2].isdecimal():
                self.targets.requests[f"{parts[0]}."] = int(parts[2])

    async def attack(self, cases: Iterable[Case]) -> Counter[str]:
        """Publish; return how many dead letters are to come, by the end of their subjects."""
        self.acks.clear()
        self.attacks += 1
        last = [Case(b"%s.last-%d" % (to, self.attacks), b"bad") for to in (b"work.work", b"done")]
        asked: dict[str, Case] = {}
        buffer = bytearray()
        for case in itertools.chain(cases, last):
            reply = case.reply
            if case.subject.startswith((b"work.", b"done.")):
                asked[str(len(asked))] = case
                reply = f"{INBOX}{len(asked) - 1}"
            buffer += publication(case.subject, case.data, case.headers, reply)
            if len(buffer) > MIB // 32:
                await self.client.send(bytes(buffer))
                buffer.clear()
        await self.client.send(bytes(buffer))
        while not all(f"{len(asked) - back}" in self.acks for back in (1, 2)):
            await self.next_ack.wait()
        stored = [asked[n] for n, ack in self.acks.items() if ack["seq"] and "duplicate" not in ack]
        tasks = [case for case in stored if case.subject.startswith(b"work.work.")]
        return Counter(case.token for case in tasks if case.is_delivered)

    async def wait_buried(self, expected: Counter[str], seconds: float) -> Counter[str]:
        """Wait for the dead letters of an attack; return those that did not come."""
        missing = expected
        with trio.move_on_after(seconds):
            while missing:
                info = await self.client.api("STREAM.INFO.TASK_DEAD", subjects_filter="dead.work.*")
                subjects = info["state"].get("subjects") or {}
                found = {name.removeprefix("dead.work."): n for name, n in subjects.items()}
                missing = expected - Counter(found)
                await trio.sleep(0.02)
        return missing

    async def wait_left(self, count: int, seconds: float = 10) -> int:
        """Wait until so many tasks are left in the queue; return how many are."""
        left = -1
        with trio.move_on_after(seconds):
            while left != count:
                left = (await self.client.api("STREAM.INFO.TASKS"))["state"]["messages"]
                await trio.sleep(0.02)
        return left

    async def clear(self) -> None:
        """Remove what no worker takes, and what was checked."""
        for subjects in ("work.nobody.>", "work.work.*.>"):
            await self.client.api("STREAM.PURGE.TASKS", filter=subjects)
        await self.client.api("STREAM.PURGE.TASK_DEAD")

    async def serve(self, patience: float = 5, **inputs: str) -> str:
        """A good task, which is to be done as if nothing were. Returns what went wrong."""
        began = trio.current_time()
        self.row.tasks += 1
        self.row.lost += 1
        with trio.fail_after(patience):
            result = await self.dispatcher.run("work", Message(inputs=inputs))
        self.row.lost -= 1
        self.row.doubled += self.runs[result.id] > 1
        self.row.recoveries.append(trio.current_time() - began)
        return result.error

    async def find_harm(self, name: str, patience: float) -> list[str]:
        """Whether a good task is not served, or late, or there was trouble and no reason given."""
        error = await self.serve(40)
        took = self.row.recoveries[-1]
        harm = [f"{name}: a good task failed: {error}"] if error else []
        harm += [f"{name}: served after {took:.1f} s"] if took > patience else []
        if self.log.unexplained():
            harm.append(f"{name}: the connection was lost, and the log does not say why")
        self.log.lines.clear()
        await self.clear()
        return harm


@asynccontextmanager
async def open_siege(
    port: int, row: Row | None = None, *, url: str | None = None, ack_wait: float = 2
) -> AsyncIterator[Siege]:
    """Both attacked roles connect to ``url``; ``port`` is the server's."""
    config = NATSConfig(url or f"nats://{HOST}:{port}", ack_wait=ack_wait)
    with logged() as log:
        async with (
            open_plain_client(port) as client,
            open_plain_client(port) as spy,
            trio.open_nursery() as nursery,
        ):
            # What is published, and not `>`: who listens to the inboxes too keeps the pulls alive
            # of those that are gone, and tasks go there.
            subjects = ("$JS.API.>", "work.>", "done.>", "dead.>", f"{INBOX}*")
            heard = [await spy.subscribe(subject) for subject in subjects]
            await spy.flush()
            async with open_worker(config) as worker, open_dispatcher(config) as dispatcher:
                siege = Siege(client, dispatcher, log, row or Row("hostile input", 1))
                for messages in heard:
                    nursery.start_soon(siege.listen, messages)
                await worker.handle("work", siege.handle, max_in_flight=IN_FLIGHT)
                siege.targets.key = (await dispatcher.start("nobody", Message())).id.split("-")[0]
                assert not await siege.serve()
                await siege.clear()
                yield siege
            nursery.cancel_scope.cancel()


class BrokenServer(Proxy):
    """A real server that also says what none does."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self.garbled = b""  # the next of these that the server says
        self.garbled_to = b""  # what is said instead, as long; if nothing, question marks
        self.greetings: list[bytes] = []  # of the next connections, which end with it
        self._clients: dict[trio.SocketStream, trio.Lock] = {}

    async def serve(self, client: trio.SocketStream) -> None:
        if not self.greetings:
            return await super().serve(client)
        with suppress(trio.BrokenResourceError):
            await client.send_all(self.greetings.pop())

    async def say(self, data: bytes) -> None:
        for client, sending in list(self._clients.items()):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it has just gone
                async with sending:
                    await client.send_all(data)

    async def _join(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        self._clients[client] = trio.Lock()
        try:
            await super()._join(client, server)
        finally:
            del self._clients[client]

    async def _answer(self, client: trio.SocketStream, data: bytes) -> None:
        if self.garbled and self.garbled in data:
            instead = self.garbled_to or b"?" * len(self.garbled)
            assert len(instead) == len(self.garbled)
            data = data.replace(self.garbled, instead, 1)
            self.garbled = self.garbled_to = b""
        async with self._clients[client]:
            await super()._answer(client, data)


@asynccontextmanager
async def open_broken(
    server: Server, row: Row | None = None, *, ack_wait: float = 2
) -> AsyncIterator[tuple[BrokenServer, Siege]]:
    proxy = BrokenServer(server.port)
    async with (
        listening(proxy.serve) as port,
        open_siege(server.port, row, url=f"nats://{HOST}:{port}", ack_wait=ack_wait) as siege,
    ):
        yield proxy, siege
