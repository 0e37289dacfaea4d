"""Faults at a chosen moment, each aimed at one guarantee."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests._helpers.brokers import within
from tests._helpers.faults.deployment import open_arena
from tests._helpers.faults.targeted_faults import CASES, push_is_missed
from trio_swarmtask._jetstream import _outbox

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests._helpers.faults.deployment import Arena
    from tests._helpers.faults.table import Row


@pytest.mark.parametrize("case", dict.fromkeys(CASES.values()))
@pytest.mark.fault("", full=5, short=1)
@within(120)
async def test_case(
    tmp_path: Path,
    row: Row,
    rng: random.Random,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
    case: Callable[[Arena, str], Awaitable[None]],
) -> None:
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)  # it would find what was missed as well
    row.fault = "case: " + case.__name__.replace("_", " ")
    for turn in range(times):
        directory = tmp_path / str(turn)
        directory.mkdir()
        async with open_arena(directory, row, rng) as arena:
            await case(arena, "")
            # A worker that does not hear of a cancellation runs on until it looks.
            await arena.check(leases_may_lapse=case is push_is_missed)
    assert row.doubled == 0 or case.__name__ == "result_is_refused"  # there a worker is killed
