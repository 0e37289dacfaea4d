# Streams, found by the subject that is needed, and durables: made if missing, never changed.
#
# Looking up by subject, not by name, lets an operator give a busy capability a stream of its own,
# or use one that is there already. Whoever made a stream, it is used as it is; we do without what
# it can't do (see ResultStream). An operator may change it at any time, and a user with the least
# permissions is not told; so the streams that matter are looked at now and then, when something
# else is looked up anyway, and a change is logged.

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from .._errors import BrokerError
from .._nats._requests import NoResponders, persist
from .._subjects import covers
from .._util import get_logger
from ._api import APIError, call, measure_clock
from ._refusals import (
    CONSUMER_EXISTS,
    NAME_IN_USE,
    NO_CONSUMER,
    NO_JETSTREAM,
    NO_STREAM,
    SUBJECTS_OVERLAP,
)
from ._unfit import check_durable, check_stream, risks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._config import NATSConfig
    from .._nats._connection import Connection
    from .._nats._requests import Requests

T = TypeVar("T")
logger: Final = get_logger("trio_swarmtask.nats")
_NANOSECONDS: Final = 1_000_000_000
_DEAD_SECONDS: Final = 30 * 24 * 60 * 60
_LEASE_SECONDS: Final = 30
_DUPLICATE_SECONDS: Final = 120
_NOTIFY: Final = "notify.{{split(1,-)}}"

# Seconds. A younger answer is as good as a new one: several roles may ask, on one connection.
_SEEN_SECONDS: Final = 10.0

# Seconds. An answer takes a millisecond; or some seconds, until there is a leader.
_INFO_SECONDS: Final = 1.0

# Versions of the server that have schedules for one time, and for many times.
SCHEDULES_SINCE: Final = (2, 12)
RECURRENT_SINCE: Final = (2, 14)


@dataclass(frozen=True, slots=True)
class ResultStream:
    """The stream that holds ``done.*``, and what it can do."""

    name: str
    notifies: bool
    """It republishes each stored result to its dispatcher."""
    one_each: bool
    """It keeps the first result of a task and refuses others, so the last one is the first."""
    direct: bool
    """Any replica answers a direct get."""
    replicated: bool
    """A direct get may be stale."""


@dataclass(frozen=True, slots=True)
class LeaseStream:
    """The stream that holds ``lease.*``."""

    name: str
    seconds: float
    """How long a lease lasts; 0: for ever."""


# What a stream can do, as an operator knows it.
_SETTINGS: Final = {
    "notifies": "republish of results",
    "one_each": "max_msgs_per_subject 1 with discard_new_per_subject",
    "direct": "allow_direct",
    "replicated": "having replicas",
    "seconds": "max_age in seconds",
    "updates": "republish of changes to",
    "ttl_header": "TTL of entries",
    "marker_ttl": "TTL of markers",
    "max_size": "max_msg_size",
}


class Streams:
    """The streams on the server, as far as they were needed."""

    def __init__(self, connection: Connection, requests: Requests) -> None:
        self._connection = connection
        self._config: NATSConfig = connection.config
        self._requests = requests
        self._configs: dict[str, dict[str, Any]] = {}  # by stream, as they were seen last
        self._tasks: dict[str, str] = {}
        self._results: ResultStream | None = None
        self._results_before: ResultStream | None = None
        self._results_seen = 0.0  # when the stream was looked at
        self._dead: str | None = None
        self._leases: LeaseStream | None = None
        self._leases_before: LeaseStream | None = None
        self._leases_doubted = -math.inf  # until then, see `doubts_leases`
        self._warned_dead = False
        self._told: set[tuple[str, str]] = set()  # risks, by stream

    async def check_jetstream(self) -> None:
        """Raise BrokerError if the server or the account has no JetStream."""
        url = self._config.safe_url

        async def look() -> None:
            try:
                await call(self._requests, "INFO")
            except NoResponders:
                raise BrokerError(
                    f"{url} has no JetStream; start nats-server with --jetstream, or enable it for "
                    "this account"
                ) from None
            except APIError as exc:
                if exc.err_code in NO_JETSTREAM:
                    raise BrokerError(f"{url} has no JetStream for this account: {exc}") from exc
                raise

        await persist(self._connection, "say what JetStream may use", look)

    async def persist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """As `persist` of `_nats/_requests.py`; if nobody answers, streams are looked up again."""

        async def attempt_or_forget() -> T:
            try:
                return await attempt()
            except NoResponders:
                self.forget()
                raise

        return await persist(self._connection, what, attempt_or_forget)

    def forget(self) -> None:
        """Look everything up again when it is needed next: something was not there."""
        self._tasks.clear()
        self._results = None
        self._dead = None
        self._leases = None

    async def tasks(self, capability: str) -> str:
        """The name of the stream that holds the tasks of ``capability``."""
        name = self._tasks.get(capability)
        if name is None:
            config = await self.find_or_make(
                f"work.{capability}.*",
                {
                    "name": "TASKS",
                    "subjects": ["work.>"],
                    "retention": "workqueue",
                    "duplicate_window": _DUPLICATE_SECONDS * _NANOSECONDS,
                    "allow_msg_schedules": self.server_has(SCHEDULES_SINCE),
                },
            )
            name = self._tasks[capability] = config["name"]
        return name

    @property
    def known_results(self) -> ResultStream | None:
        """As `results`; None if it is not known yet."""
        return self._results

    async def results(self) -> ResultStream:
        """The stream that holds the results."""
        if self._results is None:
            config = await self.find_or_make(
                "done.*",
                {
                    "name": "TASK_RESULTS",
                    "subjects": ["done.>"],
                    "max_age": round(self._config.result_ttl * _NANOSECONDS),
                    "allow_direct": True,
                    "republish": {"src": "done.*", "dest": _NOTIFY},
                    "max_msgs_per_subject": 1,
                    "discard": "new",
                    "discard_new_per_subject": True,
                    "duplicate_window": min(
                        _DUPLICATE_SECONDS * _NANOSECONDS,
                        round(self._config.result_ttl * _NANOSECONDS),
                    ),
                },
            )
            self._learn_results(config)
        assert self._results is not None
        return self._results

    async def look_at_results(self) -> ResultStream:
        """As `results`, looked at again unless that was just done: it may have been changed.

        Raises:
          What a request raises.
        """
        if self._results is not None and trio.current_time() >= self._results_seen + _SEEN_SECONDS:
            config = await self.look_at(self._results.name, "done.*")
            if config is None:
                self._results = None
            else:
                self._learn_results(config)
        return await self.results()

    def _learn_results(self, config: dict[str, Any]) -> None:
        before, self._results = self._results_before, read_results(config)
        self._results_before = self._results
        self._results_seen = trio.current_time()
        if before is not None:
            tell_changes("results", before, self._results)

    async def dead(self) -> str | None:
        """The stream of dead letters and notes; None, with one warning, if there can't be one."""
        if self._dead is None and not self._warned_dead:
            try:
                config = await self.find_or_make(
                    "dead.>",
                    {
                        "name": "TASK_DEAD",
                        "subjects": ["dead.>", "back.>"],
                        "max_age": _DEAD_SECONDS * _NANOSECONDS,
                    },
                )
                self._dead = config["name"]
            except BrokerError as exc:
                if self._connection.lost is not None:
                    raise
                self._warned_dead = True
                logger.warning("dead letters are not kept, only logged and answered: %s", exc)
        return self._dead

    async def leases(self) -> LeaseStream:
        """The stream of the groups' leases."""
        if self._leases is None:
            config = await self.find_or_make(
                "lease.*",
                {
                    "name": "TASK_LEASES",
                    "subjects": ["lease.>"],
                    "max_age": _LEASE_SECONDS * _NANOSECONDS,
                    "duplicate_window": _LEASE_SECONDS * _NANOSECONDS,  # no longer than max_age
                    "max_msgs_per_subject": 1,
                },
            )
            self._learn_leases(config)
        assert self._leases is not None
        return self._leases

    async def find_lease_stream(self) -> LeaseStream | None:
        """The stream of the groups' leases; None if there is none: looking makes none."""
        if self._leases is None:
            config = await persist(
                self._connection, "name the stream of leases", partial(self.find, "lease.*")
            )
            if config is not None:
                check_stream(config, "lease.*")
                self._learn_leases(config)
        return self._leases

    async def look_at_leases(self) -> None:
        """Look at the stream of leases again: an operator may have changed it.

        Raises:
          What a request raises.
        """
        if self._leases is not None:
            config = await self.look_at(self._leases.name, "lease.*")
            if config is None:
                self._leases = None
            else:
                self._learn_leases(config)

    @property
    def doubts_leases(self) -> bool:
        """Whether a lease that is not there may be that of a group that is alive.

        If leases last for a shorter time than before, a program that renews them by the longer one
        finds out in its next round, at most a third of that time later.
        """
        return trio.current_time() < self._leases_doubted

    def _learn_leases(self, config: dict[str, Any]) -> None:
        before, now = self._leases_before, read_leases(config)
        self._leases = self._leases_before = now
        if before is not None:
            tell_changes("leases", before, now)
            if 0 < now.seconds < before.seconds:
                self._leases_doubted = trio.current_time() + before.seconds / 2

    async def find_or_make(self, subject: str, config: dict[str, Any]) -> dict[str, Any]:
        """The config of the stream that holds ``subject``, made with ``config`` if there is none.

        Raises:
          BrokerError: if there is none, and none can or may be made.
        """

        async def find() -> dict[str, Any]:
            found = await self.find(subject)
            if found is None:
                found = await self._make(subject, config)
            return found

        found = await persist(self._connection, f"give a stream that holds {subject}", find)
        check_stream(found, subject)
        for risk in risks(found, subject):
            if (found["name"], risk) not in self._told:
                self._told.add((found["name"], risk))
                logger.warning("the stream %s may lose what it holds: %s", found["name"], risk)
        return found

    async def find(self, subject: str) -> dict[str, Any] | None:
        """The config of a stream that holds ``subject``, or None."""
        answer = await call(self._requests, "STREAM.NAMES", subject=subject)
        for name in answer.get("streams") or ():
            config = await self.look_at(name, subject)
            if config is not None:  # else deleted meanwhile, or it holds a part of `subject`
                return config
        return None

    async def look_at(self, name: str, subject: str) -> dict[str, Any] | None:
        """The config of a stream that was there; None if it does not hold ``subject`` any more."""
        # Between two leaders a stream does not answer. Then its last known config counts, or a
        # publish would wait for the end of this request, and not for the next leader.
        with trio.move_on_after(_INFO_SECONDS if name in self._configs else math.inf):
            try:
                info = await call(self._requests, f"STREAM.INFO.{name}")
            except APIError as exc:
                if exc.err_code == NO_STREAM:
                    self._configs.pop(name, None)
                    return None
                raise
            self._configs[name] = info["config"]
        config = self._configs[name]
        held = config.get("subjects") or ()
        return config if any(covers(pattern, subject) for pattern in held) else None

    async def _make(self, subject: str, config: dict[str, Any]) -> dict[str, Any]:
        name = config["name"]
        if not self._config.manage_streams:
            raise BrokerError(
                f"{self._config.safe_url} has no stream that holds {subject}, and manage_streams "
                "is False: make one, or let it be made"
            )
        wanted = {"storage": "file", "num_replicas": self._config.replicas, **config}
        try:
            made = await call(self._requests, f"STREAM.CREATE.{name}", **wanted)
        except APIError as exc:
            if exc.err_code not in (NAME_IN_USE, SUBJECTS_OVERLAP):
                raise
            refusal = exc
        else:
            logger.info("made the stream %s", name)
            made_config: dict[str, Any] = made["config"]
            self._configs[name] = made_config
            return made_config
        found = await self.find(subject)
        if found is not None:
            return found  # another process was quicker
        raise BrokerError(
            f"a stream that holds {subject} is needed, and {name} can't be made: {refusal}. A "
            f"stream of that name without {config['subjects'][0]}, or one with a part of it, is "
            f"there: add {config['subjects'][0]} to a stream of any name, or remove that one"
        ) from refusal

    def server_has(self, since: tuple[int, int]) -> bool:
        """Whether the server that is connected is of this version, or newer."""
        return self._connection.client.version >= since


@dataclass(frozen=True, slots=True)
class JetStream:
    """JetStream on one server, as one role uses it."""

    requests: Requests
    """The role's own requests: they end with the role."""
    streams: Streams
    """The streams found there so far."""

    @property
    def connection(self) -> Connection:
        return self.requests.connection


def read_results(config: dict[str, Any]) -> ResultStream:
    """What a stream that holds ``done.*`` can do."""
    republish = config.get("republish") or {}
    return ResultStream(
        name=config["name"],
        notifies=(
            republish.get("src") == "done.*"
            and republish.get("dest") == _NOTIFY
            and not republish.get("headers_only")
        ),
        one_each=(
            config.get("max_msgs_per_subject") == 1
            and config.get("discard") == "new"
            and bool(config.get("discard_new_per_subject"))
        ),
        direct=bool(config.get("allow_direct")),
        replicated=config.get("num_replicas", 1) > 1,
    )


def read_leases(config: dict[str, Any]) -> LeaseStream:
    """What a stream that holds ``lease.*`` does."""
    return LeaseStream(config["name"], config.get("max_age", 0) / _NANOSECONDS)


def tell_changes(what: str, before: Any, now: Any) -> None:  # noqa: ANN401 - of one dataclass
    """Log how the stream of ``what`` differs from what it was, if it does."""
    changes = [
        f"{_SETTINGS.get(field.name, field.name)} was {getattr(before, field.name)}, and is "
        f"{getattr(now, field.name)}"
        for field in fields(now)
        if getattr(before, field.name) != getattr(now, field.name)
    ]
    if changes:
        logger.warning("the stream of %s was changed: its %s", what, "; its ".join(changes))


# The durable of a capability is the consumer that all its workers share. It is created with
# `"action": "create"`: without that the server would silently change an existing one, for everyone.
# An existing durable is used as it is, if workers can share it at all.

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
    """What to add to Trio's clock to get the server's, in seconds since 1970."""


def _wanted(name: str, capability: str, ack_wait: float) -> dict[str, object]:
    return {
        "name": name,
        "durable_name": name,
        "filter_subject": f"work.{capability}.*",
        "ack_policy": "explicit",
        "ack_wait": round(ack_wait * _NANOSECONDS),
        "max_deliver": -1,
        "max_ack_pending": 1_000_000,
        "max_waiting": 65_536,  # pulls; the default is enough for 512 workers
        "deliver_policy": "all",
        "replay_policy": "instant",
    }


async def find_durable(jetstream: JetStream, capability: str) -> Durable:
    """The durable of ``capability``, made if it is missing.

    Raises:
      BrokerError: if it may not be made, or the one that is there can't be used.
    """
    connection, requests, streams = jetstream.connection, jetstream.requests, jetstream.streams
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
    check_durable(config, stream, name, capability)
    return Durable(
        stream=stream,
        name=name,
        ack_wait=config.get("ack_wait", _ACK_WAIT) / _NANOSECONDS,
        max_batch=config.get("max_batch") or _NO_LIMIT,
        expires=min(_EXPIRES, (config.get("max_expires") or math.inf) / _NANOSECONDS),
        last_sequence=last_sequence,
        clock=clock,
    )
