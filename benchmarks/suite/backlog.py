# A backlog of 100,000 tasks: does one worker get slower as it goes, and does its memory grow?
#
# The rate at the start is that of the first tenth of the tasks, counted from when the worker is
# ready; at the end, that of the last tenth. Memory is compared with what it was after the first
# tenth, when everything that is made once has been made.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .drain import drain
from .runners import BARE, OURS

if TYPE_CHECKING:
    from .drain import Drained, Sample
    from .figures import Figures
    from .servers import Servers

TASKS: Final = 100_000
ROUNDS: Final = 3
SERIES_STEP: Final = 0.25  # seconds between the samples that are kept


async def measure_backlog(servers: Servers, figures: Figures) -> None:
    server = await servers.get("nats")
    for _ in range(ROUNDS):
        for runner in (BARE, OURS):
            drained = await drain(server, runner, TASKS)
            figures.add("backlog", "100,000 tasks", runner.name, backlog_values(drained))
            figures.series[f"backlog, {runner.name}"] = thin_out(drained.samples)


def backlog_values(drained: Drained) -> dict[str, float]:
    samples, tenth = drained.samples, drained.tasks // 10
    after_first = time_at(samples, tenth)
    before_last = time_at(samples, drained.tasks - tenth)
    first = tenth / (after_first - drained.ready_seconds)
    last = tenth / (drained.seconds - before_last)
    settled = [sample.rss for sample in samples if sample.at >= after_first]
    return {
        **drained.values(),
        "rate_first": first,
        "rate_last": last,
        "last_of_first": last / first,
        "rss_start": float(samples[0].rss),
        "rss_end": float(samples[-1].rss),
        "rss_growth": float(max(settled) - settled[0]),
    }


def time_at(samples: list[Sample], served: int) -> float:
    """When so many tasks were done: between two samples, in proportion."""
    before = samples[0]
    for sample in samples:
        if sample.served >= served:
            part = (served - before.served) / max(1, sample.served - before.served)
            return before.at + part * (sample.at - before.at)
        before = sample
    return samples[-1].at


def thin_out(samples: list[Sample]) -> list[dict[str, float]]:
    kept: list[dict[str, float]] = []
    for sample in samples:
        if not kept or sample.at - kept[-1]["at"] >= SERIES_STEP:
            kept.append({"at": sample.at, "served": sample.served, "rss": sample.rss})
    return kept
