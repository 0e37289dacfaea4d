# The wire, for the runners that are written by hand: bytes, subjects and streams
#
# Two forms. SAME has all that the library's own wire has: a message ID and an expected sequence in
# the headers, and results that their stream republishes to the dispatcher. LEAN has none of these,
# and subjects of its own, so that one server can hold both: a result goes to its dispatcher as it
# is published, whether it is stored or not.

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from nats.js import api
from nats.js.errors import NotFoundError

if TYPE_CHECKING:
    from nats.aio.client import Client

ACK_WAIT: Final = 30.0  # seconds
RESULT_TTL: Final = 86_400.0  # seconds
MAX_ACK_PENDING: Final = 1_000_000
DUPLICATE_RESULT: Final = 10071  # the server's error where the expected sequence differs


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task on the wire; the fields that this benchmark uses."""

    version: int = msgspec.field(default_factory=lambda: 1)
    id: str
    timeout: int = 0
    inputs: dict[str, str]
    created_at: datetime
    submitted_at: datetime


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One result on the wire; the fields that a success has."""

    version: int
    id: str
    status: str
    outputs: str | None = None
    agent: str
    attempt: int
    duration: int
    completed_at: datetime


MESSAGES: Final = msgspec.json.Decoder(Message)
RESULTS: Final = msgspec.json.Decoder(Result)
ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True)
class Wire:
    """Where tasks and results go, and with which headers."""

    tasks: str
    """The stream of tasks."""
    results: str
    work: str
    """The first token of a task's subject."""
    done: str
    lean: bool

    def task_subject(self, capability: str, task_id: str) -> str:
        return f"{self.work}.{capability}.{task_id}"

    def task_headers(self, task_id: str) -> dict[str, str] | None:
        return None if self.lean else {"Nats-Msg-Id": task_id}

    def result_subject(self, task_id: str) -> str:
        # The lean one has a token for the dispatcher, for it listens to the results themselves.
        return f"{self.done}.{task_id.replace('-', '.') if self.lean else task_id}"

    def result_headers(self) -> dict[str, str] | None:
        return None if self.lean else {"Nats-Expected-Last-Subject-Sequence": "0"}

    def results_of(self, key: str) -> str:
        """What a dispatcher subscribes to; ``<key>-<number>`` are the IDs of its tasks."""
        return f"{self.done}.{key}.*" if self.lean else f"notify.{key}.>"

    def durable(self, capability: str) -> str:
        return f"{self.work}-{capability}"


SAME: Final = Wire("TASKS", "TASK_RESULTS", "work", "done", lean=False)
LEAN: Final = Wire("LEAN_TASKS", "LEAN_RESULTS", "lean-work", "lean-done", lean=True)


def new_message(task_id: str, text: str) -> bytes:
    now = datetime.now(UTC)
    message = Message(id=task_id, inputs={"text": text}, created_at=now, submitted_at=now)
    return ENCODER.encode(message)


def new_result(task_id: str, agent: str, seconds: float, outputs: str | None) -> bytes:
    result = Result(
        version=1,
        id=task_id,
        status="success",
        outputs=outputs,
        agent=agent,
        attempt=1,
        duration=int(seconds * 1000),
        completed_at=datetime.now(UTC),
    )
    return ENCODER.encode(result)


async def make_streams(client: Client, wire: Wire) -> None:
    """Make the two streams if they are missing."""
    manager = client.jsm()
    try:
        await manager.stream_info(wire.results)
    except NotFoundError:
        await manager.add_stream(
            name=wire.tasks,
            subjects=[f"{wire.work}.>"],
            retention=api.RetentionPolicy.WORK_QUEUE,
            storage=api.StorageType.FILE,
            allow_msg_schedules=not wire.lean,
        )
        results = api.StreamConfig(
            name=wire.results,
            subjects=[f"{wire.done}.>"],
            storage=api.StorageType.FILE,
            max_age=RESULT_TTL,
            max_msgs_per_subject=1,
            allow_direct=True,
        )
        if not wire.lean:
            results.discard = api.DiscardPolicy.NEW
            results.discard_new_per_subject = True
            results.republish = api.RePublish(src="done.*", dest="notify.{{split(1,-)}}")
        await manager.add_stream(results)


async def make_durable(client: Client, wire: Wire, capability: str) -> None:
    """Make the consumer that the workers of a capability share, if it is missing."""
    await client.jsm().add_consumer(
        wire.tasks,
        durable_name=wire.durable(capability),
        filter_subject=f"{wire.work}.{capability}.*",
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT,
        max_deliver=-1,
        max_ack_pending=MAX_ACK_PENDING,
    )
