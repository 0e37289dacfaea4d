# The targets: which figure, against what, and how much

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .figures import Key
from .peers import AWAITED, SECTION as PEERS_SECTION
from .runners import PEERS

if TYPE_CHECKING:
    from .figures import Figures, Spread


@dataclass(frozen=True)
class Target:
    """One figure, or its ratio to another one, and its limit."""

    title: str
    key: Key
    against: Key | None
    """None: the figure itself is compared with the limit."""
    limit: float
    at_least: bool = True
    unit: str = ""
    scale: float = 1.0

    @property
    def runners(self) -> set[str]:
        return {key.runner for key in (self.key, self.against) if key is not None}

    @property
    def text(self) -> str:
        sign = ">=" if self.at_least else "<="
        times = f" times {self.against_text}" if self.against else ""
        return f"{sign} {self.limit:g}{self.unit}{times}"

    @property
    def against_text(self) -> str:
        if self.against is None:
            return ""
        same_runner = self.against.runner == self.key.runner
        return self.against.metric if same_runner else self.against.runner

    def measure(self, figures: Figures) -> Spread | None:
        """The ratio or figure, in the unit of the limit."""
        if self.against is not None:
            return figures.ratio(self.key, self.against)
        measured = figures.spread(self.key)
        return measured and measured.scaled(self.scale)

    def is_met(self, median: float) -> bool:
        return median >= self.limit if self.at_least else median <= self.limit


def _no_op(title: str, workload: str, runner: str, metric: str) -> tuple[str, Key, Key]:
    key = Key("no-op", workload, runner, metric)
    return title, key, key._replace(runner="bare")


_FULL: Final = "100 in flight"
_ONE: Final = "1 in flight"
_OURS_ONE: Final = Key("no-op", _ONE, "ours", "p99")
_NAIVE: Final = Key("naive", _FULL, "naive", "rate")
_FIFTY: Final = Key("capabilities", _FULL, "ours, 50", "rate")
_BACKLOG: Final = Key("backlog", "100,000 tasks", "ours", "")
_IMPORT: Final = Key("imports", "import", "trio_swarmtask", "seconds")
_SLEEP: Final = Key("sleep", "", "ours", "rate")

FIXED: Final = (
    Target(*_no_op("tasks/s, 100 in flight", _FULL, "ours", "rate"), 1.1),
    Target(*_no_op("latency, one at a time, median", _ONE, "ours", "median"), 0.87, at_least=False),
    Target(*_no_op("the client's public API: tasks/s", _FULL, "ours-public", "rate"), 0.85),
    Target(
        *_no_op("the client's public API: latency", _ONE, "ours-public", "median"),
        1.3,
        at_least=False,
    ),
    Target(
        "latency, p99 against median",
        _OURS_ONE,
        _OURS_ONE._replace(metric="median"),
        4,
        at_least=False,
    ),
    Target("tasks/s, against naive", _NAIVE._replace(runner="ours"), _NAIVE, 8),
    *(
        Target(
            f"tasks/s, handlers of {name}",
            _SLEEP._replace(workload=name),
            _SLEEP._replace(workload=name, runner="bare"),
            0.95,
        )
        for name in ("10 ms, 100 awaited", "10 ms, 400 awaited")
    ),
    Target("tasks/s, 50 capabilities", _FIFTY, _FIFTY._replace(runner="bare, 50"), 0.95),
    *(
        Target(
            f"tasks/s in a group, {name}",
            Key("groups", _FULL, f"{name}, in a group", "rate"),
            Key("groups", _FULL, name, "rate"),
            0.9,
        )
        for name in ("run", "start and wait")
    ),
    Target(
        "backlog: rate at the end",
        _BACKLOG._replace(metric="rate_last"),
        _BACKLOG._replace(metric="rate_first"),
        0.95,
    ),
    Target(
        "backlog: growth of the worker",
        _BACKLOG._replace(metric="rss_growth"),
        None,
        10,
        at_least=False,
        unit=" MB",
        scale=1e-6,
    ),
    Target(*_no_op("CPU, dispatcher and worker", _FULL, "ours", "cpu_both"), 1.1, at_least=False),
    Target(
        "import trio_swarmtask",
        _IMPORT,
        _IMPORT._replace(runner="trio, msgspec"),
        1.3,
        at_least=False,
    ),
)


def _against_peers() -> list[Target]:
    targets = []
    for peer in PEERS:
        for workload in (
            AWAITED.name,
            _ONE,
            "10 ms, 100 awaited",
            "drain, 1 worker",
            "drain, 4 workers",
        ):
            key = Key(PEERS_SECTION, f"{peer.name}: {workload}", "ours", "rate")
            limit = 5 if workload == AWAITED.name else 1
            title = f"against {peer.name}: {workload}"
            targets.append(Target(title, key, key._replace(runner=peer.name), limit))
    return targets


TARGETS: Final = (*FIXED, *_against_peers())
