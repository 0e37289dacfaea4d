# Plots of the figures, as PNG
#
# The only module that needs matplotlib; it is imported only where plots are asked for.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from .figures import Key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axis import Axis

    from .figures import Figures

SIZE: Final = (8.0, 4.5)  # inches
DOTS: Final = 120  # an inch
COLOURS: Final = {
    "bare": "#e07a3f",
    "bare-uvloop": "#f0b48c",
    "lean": "#c9a227",
    "ours": "#1f6f8b",
    "ours-public": "#7fb7c9",
    "ours-memory": "#7a9e7e",
    "naive": "#9a8fa8",
}
THICK: Final = ("bare", "ours")
PARTS: Final = {"dispatcher": "#1f6f8b", "worker": "#7fb7c9", "server": "#d5d5d5"}


def write_plots(figures: Figures, folder: Path) -> None:
    """Write a file for each plot that there are figures for."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "rate.png": plot_rates,
        "latency.png": plot_latency,
        "cpu.png": plot_cpu,
        "backlog.png": plot_backlog,
        "peers.png": plot_peers,
    }
    for name, plot in plots.items():
        figure = Figure(figsize=SIZE, layout="constrained")
        if plot(figures, figure):
            figure.savefig(folder / name, dpi=DOTS)


def plot_rates(figures: Figures, figure: Figure) -> bool:
    """Tasks per second by how many are in flight, for each runner."""
    axes = figure.subplots()
    for runner in _runners(figures, "no-op"):
        points = [
            (int(key.workload.split()[0].replace(",", "")), figures.median(key))
            for key in figures.rounds
            if key.section == "no-op" and key.runner == runner and key.metric == "rate"
        ]
        in_flight, rates = zip(*sorted(points), strict=True)
        width = 2.5 if runner in THICK else 1.2
        axes.plot(in_flight, rates, "o-", label=runner, color=COLOURS.get(runner), linewidth=width)
    axes.set(xscale="log", xlabel="tasks in flight", ylabel="tasks a second")
    axes.set_ylim(bottom=0)
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    if axes.lines:
        axes.legend()
    return bool(axes.lines)


def plot_latency(figures: Figures, figure: Figure) -> bool:
    """Latency one task at a time: median and two percentiles."""
    axes = figure.subplots()
    runners = _runners(figures, "no-op")
    metrics = {"median": "median", "p99": "99%", "p99_9": "99.9%"}
    for index, (metric, label) in enumerate(metrics.items()):
        keys = [Key("no-op", "1 in flight", runner, metric) for runner in runners]
        places = [place + (index - 1) * 0.27 for place in range(len(runners))]
        heights = [figures.median(key) * 1e3 for key in keys]
        axes.bar(places, heights, 0.25, label=label)
    axes.set_xticks(range(len(runners)), runners)
    axes.set(yscale="log", ylabel="ms, one task at a time")
    _plain_numbers(axes.yaxis)
    axes.legend()
    return bool(runners)


def plot_cpu(figures: Figures, figure: Figure) -> bool:
    """Processor time of dispatcher, worker and server for 10,000 tasks."""
    axes = figure.subplots()
    runners = _runners(figures, "no-op")
    below = [0.0] * len(runners)
    for part, colour in PARTS.items():
        keys = [Key("no-op", "100 in flight", runner, f"cpu_{part}") for runner in runners]
        widths = [figures.median(key) for key in keys]
        axes.barh(runners, widths, left=below, label=part, color=colour)
        below = [left + width for left, width in zip(below, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="processor seconds for 10,000 tasks, 100 in flight")
    axes.legend()
    return bool(runners)


def plot_backlog(figures: Figures, figure: Figure) -> bool:
    """Tasks left and the worker's memory, while a backlog is drained."""
    tasks, memory = figure.subplots(1, 2)
    for runner in THICK:
        colour = COLOURS[runner]
        samples = figures.series.get(f"backlog, {runner}", [])
        at = [sample["at"] for sample in samples]
        tasks.plot(at, [sample["served"] for sample in samples], color=colour, label=runner)
        memory.plot(at, [sample["rss"] / 1e6 for sample in samples], color=colour, label=runner)
    tasks.set(xlabel="seconds", ylabel="tasks done")
    memory.set(xlabel="seconds", ylabel="memory of the worker, MB")
    memory.set_ylim(bottom=0)
    _plain_numbers(tasks.yaxis)
    tasks.legend()
    return bool(figures.series)


def plot_peers(figures: Figures, figure: Figure) -> bool:
    """How many times this library's rate is that of another one."""
    axes = figure.subplots()
    ours = [key for key in figures.rounds if key.section == "peers" and key.runner == "ours"]
    keys = [key for key in ours if key.metric == "rate"]
    workloads = _distinct([key.workload.partition(": ")[2] for key in keys])
    peers = _distinct([key.workload.partition(": ")[0] for key in keys])
    thickness = 0.8 / max(1, len(workloads))
    for index, workload in enumerate(workloads):
        for place, peer in enumerate(peers):
            key = Key("peers", f"{peer}: {workload}", "ours", "rate")
            ratio = figures.ratio(key, key._replace(runner=peer))
            if ratio is not None:
                height = place + (index - (len(workloads) - 1) / 2) * thickness
                label = workload if place == 0 else None
                axes.barh(height, ratio.median, thickness, color=f"C{index}", label=label)
    axes.set_yticks(range(len(peers)), peers)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="tasks a second, as a multiple of the other library's")
    _plain_numbers(axes.xaxis)
    if peers:
        axes.legend()
    return bool(peers)


def _runners(figures: Figures, section: str) -> list[str]:
    return _distinct([key.runner for key in figures.rounds if key.section == section])


def _distinct(names: Sequence[str]) -> list[str]:
    """Each once, in the order in which they first come."""
    return list(dict.fromkeys(names))


def _plain_numbers(axis: Axis) -> None:
    """``1,000`` rather than ten to the third."""
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
