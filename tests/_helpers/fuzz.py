# Rounds of mutated messages, of one kind each: what comes of them is a function of the seed, the
# kind and the number of the round alone, as far as the network lets it.
#
# What is believed is no fault: a result that is one, a server that says in the right form that a
# task is not there. So where a mutated message has become one that means something else, each kind
# says so, and takes the next.

from __future__ import annotations

import os
import random
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests._helpers.hostile_bytes import HEADERS, VALUES
from tests._helpers.malformed import mutate
from trio_swarmtask import InvalidMessageError, Message, UnsupportedVersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COUNT: Final = int(os.environ.get("SWARMTASK_FUZZ", "200"))
"""Mutated messages of each kind."""
SEED: Final = os.environ.get("SWARMTASK_SEED", "0")
ALONE: Final = os.environ.get("SWARMTASK_ROUND")
ROUND: Final = 1000
SECONDS: Final = 60 + COUNT // 50
"""For all messages of one kind: some hundred a second are the fewest."""

WIRE: Final = Path(__file__).parents[1] / "wire"
MESSAGES: Final = [path.read_bytes() for path in sorted(WIRE.glob("message-*.json"))]
RESULTS: Final = [path.read_bytes() for path in sorted(WIRE.glob("result-*.json"))]
RECORDS: Final = [path.read_bytes() for path in sorted(WIRE.glob("stored-*.json"))]


_ID: Final = re.compile(rb'"t-[0-9]"')


def any_bytes(_: bytes) -> bool:
    return True


class Round:
    """What is chosen in one round."""

    def __init__(self, rng: random.Random, number: int, count: int) -> None:
        self.rng = rng
        self.number = number
        self.count = count

    def name(self, index: int) -> str:
        """An ID that no other message has."""
        return f"fuzz-{self.number}-{index}"

    def mutated(
        self, samples: Sequence[bytes], is_fair: Callable[[bytes], bool] = any_bytes
    ) -> bytes:
        """One of the samples, with something wrong, that ``is_fair``."""
        while not is_fair(data := mutate(self.rng, self.rng.choice(samples))):
            pass
        return data

    def about(
        self, task_id: str, samples: Sequence[bytes], is_fair: Callable[[bytes], bool] = any_bytes
    ) -> bytes:
        """As `mutated`, of samples with that ID."""
        own = [_ID.sub(b'"%b"' % task_id.encode(), sample, count=1) for sample in samples]
        return self.mutated(own, is_fair)

    def line(self, sample: bytes) -> bytes:
        """A text without line ends, for a header or a subject."""
        return self.mutated([sample]).replace(b"\r", b"?").replace(b"\n", b"?")[:2000]

    def headers(self, **samples: str) -> bytes:
        """A block with some of these, and something wrong; or another; or none.

        Never one of a byte: nats-server 2.15.1 panics when it republishes that.
        """
        if (choice := self.rng.random()) < 0.2:
            return b""
        if choice < 0.3:
            return self.rng.choice(HEADERS)
        names = self.rng.sample(list(samples), self.rng.randrange(1, len(samples) + 1))
        block = b"NATS/1.0\r\n"
        for name in names:
            sample = samples[name].encode()
            value = self.rng.choice((sample, self.line(sample), self.rng.choice(VALUES).encode()))
            block += b"%b: %b\r\n" % (name.replace("_", "-").encode(), value)
        if self.rng.random() < 0.2:
            block = b"NATS/1.0" + self.mutated([block[8:]])
        return block + b"\r\n"


def rounds(kind: str, count: int = COUNT) -> Iterator[Round]:
    """The rounds of a kind."""
    numbers = range((count + ROUND - 1) // ROUND) if ALONE is None else [int(ALONE)]
    for number in numbers:
        rng = random.Random(f"{SEED} {kind} {number}")
        yield Round(rng, number, min(ROUND, count - number * ROUND) if ALONE is None else ROUND)


@contextmanager
def told(played: Round) -> Iterator[None]:
    """Says how to play a round again that fails."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(
            f"The same round again: SWARMTASK_SEED={SEED} SWARMTASK_ROUND={played.number} pytest …"
        )
        raise


def is_for_today(data: bytes) -> bool:
    """Whether it is not a task of a newer version, which waits for newer workers."""
    try:
        Message.decode(data)
    except UnsupportedVersionError:
        return False
    except InvalidMessageError:
        pass
    return True
