# What a bucket is: keys and values that any process can read, each change with a revision.
#
# The interface speaks of entries, not of streams and subjects. A key that was deleted, or has
# expired, may leave an entry without data behind for a while.

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from ._source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Entry(NamedTuple):
    """What a bucket has for a key."""

    key: str
    revision: int
    """Grows with each change of any key."""
    data: bytes | None
    """None: deleted, or expired."""
    stored_at: str = ""
    """Tells entries of one revision apart, where the bucket was made anew between them."""


class Page(NamedTuple):
    """A part of a listing."""

    entries: Sequence[Entry]
    """In the order of their revisions."""
    last: int
    """The revision to go on after."""
    more: bool


class Refused(Exception):
    """Another revision of the key is the newest."""

    def __init__(self, *, unsure: bool = False) -> None:
        super().__init__()
        self.unsure = unsure
        """An attempt before this one had no answer, and may have been stored."""


class Watch(Source):
    """A key that is followed."""

    @abstractmethod
    async def look(self) -> None:
        """See to it that what is stored now was told."""


class Bucket(ABC):
    """Keys and values. Opened by `Broker.open_bucket`."""

    one_each: bool
    """Listing gives a key once, but for keys that change meanwhile."""

    @property
    @abstractmethod
    def max_size(self) -> int | None:
        """Bytes that a value may have; None: no limit."""

    @property
    @abstractmethod
    def lost(self) -> Exception | None:
        """What has ended the bucket, if it was not its user."""

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """The newest entry of a key, or None."""

    @abstractmethod
    async def put(self, key: str, data: bytes, revision: int) -> None:
        """Store ``data`` if ``revision`` is still the newest of ``key`` (0: it has none).

        Raises:
          Refused: if it is not.
        """

    @abstractmethod
    async def remove(self, key: str, revision: int) -> None:
        """Delete ``key`` if ``revision`` is still its newest; raises as `put` does."""

    @abstractmethod
    async def page(self, after: int) -> Page:
        """The entries past a revision, as many as are good to hold at once."""

    @abstractmethod
    def watch(self, key: str, on_entry: Callable[[Entry], None]) -> Watch:
        """Call ``on_entry`` with the entry there is, if any, and then with each change.

        In the block, the first has been called. Through outages: what was missed is looked up, and
        of several changes the newest is told. ``on_entry`` never blocks or raises.
        """
