# Streams: found by the subject that is needed, made where missing, never changed.
#
# Looking up by subject, not by name, lets an operator give a busy capability a stream of its own,
# or use one that is there already. Whoever made it, it is used as it is; what it can't do is done
# without (see ResultStream).

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._errors import BrokerError
from ._jetstream import APIError, NoResponders, call, persist
from ._refusals import NAME_IN_USE, NO_JETSTREAM, NO_STREAM, SUBJECTS_OVERLAP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._config import NATSConfig
    from ._connection import Connection
    from ._requests import Requests

T = TypeVar("T")

logger: Final = logging.getLogger("trio_swarmtask.nats")

_NANOSECONDS: Final = 1_000_000_000
_DEAD_SECONDS: Final = 30 * 24 * 60 * 60
_LEASE_SECONDS: Final = 30
_DUPLICATE_SECONDS: Final = 120
_NOTIFY: Final = "notify.{{split(1,-)}}"

# Versions of the server: of schedules for one time, and for many.
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


class Streams:
    """What is on the server, as far as it was needed."""

    def __init__(self, connection: Connection, requests: Requests) -> None:
        self._connection = connection
        self._config: NATSConfig = connection.config
        self._requests = requests
        self._tasks: dict[str, str] = {}
        self._results: ResultStream | None = None
        self._dead: str | None = None
        self._leases: tuple[str, float] | None = None
        self._warned_dead = False

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
        """As `_jetstream.persist`; where nobody answers, streams are looked up anew."""

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
            republish = config.get("republish") or {}
            self._results = ResultStream(
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
        return self._results

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

    async def leases(self) -> tuple[str, float]:
        """The stream of the groups' leases, and how many seconds one lasts; 0: for ever."""
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
            self._leases = (config["name"], config.get("max_age", 0) / _NANOSECONDS)
        return self._leases

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

        return await persist(self._connection, f"give a stream that holds {subject}", find)

    async def find(self, subject: str) -> dict[str, Any] | None:
        """The config of a stream that holds ``subject``, or None."""
        answer = await call(self._requests, "STREAM.NAMES", subject=subject)
        for name in answer.get("streams") or ():
            try:
                info = await call(self._requests, f"STREAM.INFO.{name}")
            except APIError as exc:
                if exc.err_code == NO_STREAM:
                    continue  # deleted meanwhile
                raise
            config: dict[str, Any] = info["config"]
            if any(covers(held, subject) for held in config.get("subjects") or ()):
                return config
        return None

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
        version = self._connection.client.connected_server_version
        return (version.major, version.minor) >= since


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that ``subject`` matches is matched by ``pattern`` too."""
    held, needed = pattern.split("."), subject.split(".")
    for index, token in enumerate(held):
        if token == ">":
            return index < len(needed)
        if index >= len(needed) or needed[index] == ">":
            return False
        if token not in ("*", needed[index]):
            return False
    return len(held) == len(needed)
