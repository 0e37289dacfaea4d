"""What a task costs, in calls of the library's own functions: no machine changes that number."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests._helpers.brokers import within

BENCHMARKS: Final = Path(__file__).parents[1] / "benchmarks"

# A task, 100 in flight, as `benchmarks/suite/counts.py` counts. A change that adds to them has to
# be worth it, and says so here. One of a dispatcher's looks at the size that a second try has.
CALLS: Final = {"dispatcher": 49.4, "worker": 50.5}


@within(120)
async def test_calls_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("BENCH_ENVIRONMENTS", raising=False)
    from suite.counts import OWN_CALLS, count_slope
    from suite.runners import OURS
    from suite.servers import open_servers

    async with open_servers() as servers:
        counted = await count_slope(OWN_CALLS, servers, OURS)
    assert counted == pytest.approx(CALLS, rel=0.02)
