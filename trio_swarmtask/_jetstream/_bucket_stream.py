# The stream of a key-value bucket: found by its subjects, made where missing, used as it is.
#
# A stream that was made here republishes each stored change, and expiry leaves a marker that is
# republished too. So whoever follows a key hears of everything by a core subscription. A stream
# that somebody else made may lack that, or direct gets, or TTLs of single messages.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .._util import get_logger
from ._streams import tell_changes
from ._unfit import check_stream

if TYPE_CHECKING:
    from ._streams import Streams

logger: Final = get_logger("trio_swarmtask.nats")
_NANOSECONDS: Final = 1_000_000_000
_MARKER_SECONDS: Final = 1
_DUPLICATE_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class BucketStream:
    """The stream of a bucket, and what it can do."""

    name: str
    updates: str | None
    """Where each stored change of a key is republished, with the key behind it; or None."""
    one_each: bool
    """It holds the newest change of a key alone."""
    direct: bool
    """Any replica answers a direct get."""
    replicated: bool
    """A direct get may be stale."""
    ttl_header: str | None
    """The TTL that an entry needs to expire in time; None: the stream sees to it."""
    marker_ttl: str | None
    """The TTL with which the marker of a deleted key goes away; None: it stays."""
    max_size: int | None
    """Bytes that an entry may have, its headers included; None: as many as a message."""


async def find_bucket(streams: Streams, bucket: str, ttl: float) -> BucketStream | None:
    """The stream that holds ``$KV.<bucket>.*``, or None."""
    subject = f"$KV.{bucket}.*"
    config = await streams.find(subject)
    if config is None:
        return None
    check_stream(config, subject)
    return _use(config, bucket, ttl)


async def look_at_bucket(
    streams: Streams, before: BucketStream, bucket: str, ttl: float
) -> BucketStream | None:
    """The stream as it is now, or None if it no longer holds the bucket; changes are logged."""
    config = await streams.look_at(before.name, f"$KV.{bucket}.*")
    if config is None:
        return None
    now = _read(config, bucket, ttl)
    tell_changes(f"the bucket {bucket}", before, now)
    return now


async def make_bucket(streams: Streams, bucket: str, ttl: float) -> BucketStream:
    """The stream that holds ``$KV.<bucket>.*``, made if there is none."""
    max_age = _max_age(ttl)
    config = await streams.find_or_make(
        f"$KV.{bucket}.*",
        {
            "name": f"KV_{bucket}",
            "subjects": [f"$KV.{bucket}.>"],
            "max_msgs_per_subject": 1,
            "max_age": max_age,
            "duplicate_window": min(_DUPLICATE_SECONDS * _NANOSECONDS, max_age or math.inf),
            "discard": "new",
            "allow_rollup_hdrs": True,  # what a marker of the server's needs
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": _MARKER_SECONDS * _NANOSECONDS,
            "republish": {"src": f"$KV.{bucket}.>", "dest": f"kv.{bucket}.>"},
        },
    )
    return _use(config, bucket, ttl)


def _max_age(ttl: float) -> int:
    return 0 if ttl == math.inf else round(ttl * _NANOSECONDS)


def _use(config: dict[str, Any], bucket: str, ttl: float) -> BucketStream:
    max_age = _max_age(ttl)
    stream = _read(config, bucket, ttl)
    kept = config.get("max_age", 0)
    if kept != max_age and stream.ttl_header is None:
        logger.warning(
            "the bucket %s is there already and keeps results %s, not %s",
            bucket,
            f"{kept / _NANOSECONDS:g} seconds" if kept else "for ever",
            f"{ttl:g} seconds" if max_age else "for ever",
        )
    return stream


def _read(config: dict[str, Any], bucket: str, ttl: float) -> BucketStream:
    republish = config.get("republish") or {}
    updates = republish.get("dest", "")
    understood = (
        republish.get("src") == f"$KV.{bucket}.>"
        and updates.endswith(".>")
        and not republish.get("headers_only")
    )
    has_ttl = bool(config.get("allow_msg_ttl"))
    kept, max_age = config.get("max_age", 0), _max_age(ttl)
    # A TTL that is longer than the stream's limit does not outlive a restart of the server.
    shorter = has_ttl and max_age > 0 and (kept == 0 or max_age < kept)
    max_size = config.get("max_msg_size", -1)
    return BucketStream(
        name=config["name"],
        updates=updates.removesuffix(">") if understood else None,
        one_each=config.get("max_msgs_per_subject") == 1,
        direct=bool(config.get("allow_direct")),
        replicated=config.get("num_replicas", 1) > 1,
        ttl_header=str(math.ceil(ttl)) if shorter else None,
        marker_ttl=str(_MARKER_SECONDS) if has_ttl else None,
        max_size=max_size if max_size > 0 else None,
    )
