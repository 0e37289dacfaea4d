# What the tests of results in buckets on a real server share.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trio_swarmtask._nats._requests import persist

if TYPE_CHECKING:
    from tests._helpers.api_client import Raw

SECOND: Final = 1_000_000_000  # nanoseconds
DAY: Final = 24 * 60 * 60 * SECOND


async def config_of(raw: Raw, stream: str = "KV_results") -> dict[str, Any]:
    """As it is now, whole."""
    config: dict[str, Any] = (await raw.api(f"STREAM.INFO.{stream}"))["config"]
    return config


async def make_bucket(raw: Raw, name: str = "KV_results", **settings: Any) -> dict[str, Any]:
    """A bucket as somebody else may have made it: a stream that holds its subjects, no more."""
    config = {"name": name, "subjects": ["$KV.results.>"], "max_msgs_per_subject": 1, **settings}
    # nats-server 2.12 can't create a store while that of a deleted stream is being removed.
    await persist(raw.connection, "make", lambda: raw.api(f"STREAM.CREATE.{name}", **config))
    return await config_of(raw, name)


async def streams_of(raw: Raw) -> list[str]:
    """The names of all streams."""
    return (await raw.api("STREAM.NAMES")).get("streams") or []
