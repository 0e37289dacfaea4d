# Tables: each figure's median with its spread, its ratio to what it is compared with, its target

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .figures import Figures, Key, Spread


@dataclass(frozen=True)
class Metric:
    """How one kind of figure is shown."""

    title: str
    scale: float = 1.0
    digits: int = 0
    only: str = ""
    """If not empty: shown for the workload of this name alone, where a section has more."""

    def show(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}"


METRICS: Final = {
    "rate": Metric("tasks/s"),
    "of_ideal": Metric("of the ideal, %", 100),
    "median": Metric("latency, median, µs", 1e6),
    "p99": Metric("latency, p99, µs", 1e6),
    "p99_9": Metric("latency, p99.9, µs", 1e6),
    "cpu_dispatcher": Metric("CPU s/10,000, dispatcher", 1, 2, "100 in flight"),
    "cpu_worker": Metric("CPU s/10,000, worker", 1, 2, "100 in flight"),
    "cpu_both": Metric("CPU s/10,000, both", 1, 2, "100 in flight"),
    "cpu_server": Metric("CPU s/10,000, server", 1, 2, "100 in flight"),
    "rate_ready": Metric("tasks/s, from when ready"),
    "enqueue_rate": Metric("tasks/s, enqueued"),
    "rate_first": Metric("tasks/s, first tenth"),
    "rate_last": Metric("tasks/s, last tenth"),
    "rss_start": Metric("memory at the start, MB", 1e-6, 1),
    "rss_end": Metric("memory at the end, MB", 1e-6, 1),
    "rss_growth": Metric("growth after a tenth, MB", 1e-6, 1),
    "calls": Metric("calls a task", 1, 1),
    "instructions": Metric("thousand instructions a task", 1, 1),
    "seconds": Metric("ms", 1e3),
    "tasks": Metric("tasks drained"),
}
# Where a section is not listed: all that it has, but for the number of tasks.
SHOWN: Final = {
    "quick": ("rate", "median", "p99", "cpu_dispatcher", "cpu_worker"),
    "payload": ("rate",),
    "sleep": ("rate", "of_ideal"),
    "workers": ("rate",),
    "capabilities": ("rate",),
    "drain": ("rate", "rate_ready", "enqueue_rate"),
    "peers": ("rate", "tasks"),
}
_HEADS: Final = ("", "", "", "median", "(lowest to highest)", "ratio", "(lowest to highest)", "")
_TARGET_HEADS: Final = ("figure", "target", "measured", "(lowest to highest)", "met")


def compared_with(key: Key) -> Key:
    """What a figure is shown beside: the figure itself, if with nothing."""
    match key.section:
        case "workers":
            runner = f"{key.runner.partition(',')[0]}, 1 worker"
        case "capabilities":
            runner = f"{key.runner.partition(',')[0]}, 1"
        case "imports":
            runner = "trio, msgspec"
        case "peers":
            runner = key.workload.partition(":")[0]
        case _:
            runner = "bare"
    return key._replace(runner=runner)


def section_table(section: str, figures: Figures) -> str:
    """All figures of a section, in the order in which they came."""
    keys = [key for key in figures.rounds if key.section == section]
    shown = SHOWN.get(section, tuple(metric for metric in METRICS if metric != "tasks"))
    rows: list[Sequence[str]] = [_HEADS]
    for name in shown:
        metric = METRICS[name]
        of_metric = [key for key in keys if key.metric == name]
        if any(key.workload == metric.only for key in of_metric):
            of_metric = [key for key in of_metric if key.workload == metric.only]
        if name == "tasks":  # how many is the driver's choice only where a slow peer drains
            of_metric = [key for key in of_metric if "drain" in key.workload]
        rows += [_row(key, metric, figures) for key in of_metric]
    lines = _align(_without_repeats(rows), left=(0, 1, 2, 4, 6, 7))
    for (of_section, runner), why in figures.problems.items():
        if of_section == section:
            lines.append(f"{runner} did not run: {why}")
    return "\n".join(lines)


def _row(key: Key, metric: Metric, figures: Figures) -> list[str]:
    value = figures.spread(key)
    assert value is not None  # the key comes from there
    against = compared_with(key)
    ratio = None if against == key or key.metric == "tasks" else figures.ratio(key, against)
    return [
        metric.title,
        key.workload,
        key.runner,
        metric.show(value.median),
        f"({metric.show(value.lowest)} to {metric.show(value.highest)})",
        *_ratio_cells(ratio),
        ", ".join(target.text for target in TARGETS if target.key == key),
    ]


def targets_table(figures: Figures) -> str:
    """Each target, with what was measured beside it."""
    rows: list[Sequence[str]] = [_TARGET_HEADS]
    for target in TARGETS:
        measured = target.measure(figures)
        if measured is not None:
            met = "yes" if target.is_met(measured.median) else "no"
        elif any((target.key.section, name) in figures.problems for name in target.runners):
            met = "did not run"
        else:
            met = "not measured"
        rows.append([target.title, target.text, *_ratio_cells(measured), met])
    return "\n".join(_align(rows, left=(0, 1, 3, 4)))


def _ratio_cells(ratio: Spread | None) -> tuple[str, str]:
    if ratio is None:
        return "", ""
    return f"{ratio.median:.2f}", f"({ratio.lowest:.2f} to {ratio.highest:.2f})"


def _without_repeats(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Leave out a figure's and a workload's name where the row above has the same."""
    thinned: list[Sequence[str]] = []
    above: Sequence[str] = ("", "")
    for row in rows:
        first = "" if row[0] == above[0] else row[0]
        second = "" if list(row[:2]) == list(above[:2]) else row[1]
        thinned.append([first, second, *row[2:]])
        above = row
    return thinned


def _align(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
