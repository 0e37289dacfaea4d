# What was measured: one value for each round, and what is made of them
#
# A ratio is taken between the values of one round, never between medians: what slows the machine
# down for a while slows both. What is shown is the median of the rounds, with lowest and highest.

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Key(NamedTuple):
    """What a figure is of."""

    section: str
    workload: str
    runner: str
    metric: str


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    def scaled(self, scale: float) -> Spread:
        return Spread(self.median * scale, self.lowest * scale, self.highest * scale)


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


@dataclass
class Figures:
    """All that was measured."""

    rounds: dict[Key, list[float]] = field(default_factory=dict)
    series: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Samples over time, by a title of their own."""
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    """By section and runner: why it could not run."""

    def add(self, section: str, workload: str, runner: str, values: dict[str, float]) -> None:
        """One round's values, by metric."""
        for metric, value in values.items():
            self.rounds.setdefault(Key(section, workload, runner, metric), []).append(value)

    def median(self, key: Key) -> float:
        """Of what was measured; 0 if nothing was."""
        return statistics.median(self.rounds.get(key) or [0.0])

    def spread(self, key: Key) -> Spread | None:
        values = self.rounds.get(key)
        return spread(values) if values else None

    def ratio(self, key: Key, against: Key) -> Spread | None:
        """How many times the one is the other."""
        ours, theirs = self.rounds.get(key), self.rounds.get(against)
        if not ours or not theirs:
            return None
        # A round that one of them did not finish has no pair.
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if b]
        return spread([a / b for a, b in pairs]) if pairs else None

    def as_json(self) -> dict[str, Any]:
        return {
            "figures": [{**key._asdict(), "rounds": rounds} for key, rounds in self.rounds.items()],
            "series": self.series,
            "problems": [
                {"section": section, "runner": runner, "why": why}
                for (section, runner), why in self.problems.items()
            ],
        }
