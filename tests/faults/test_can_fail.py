"""The harness notices each guarantee that is taken away."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests._helpers.brokers import within
from tests._helpers.faults import mutants
from tests._helpers.faults.deployment import open_arena
from tests._helpers.faults.ledger import BrokenInvariant
from tests._helpers.faults.targeted_faults import CASES
from trio_swarmtask._jetstream import _outbox

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests._helpers.faults.table import Row


@pytest.mark.parametrize("mutant", CASES)
@pytest.mark.fault("", full=1, short=1)
@within(60)
async def test_broken_product_is_noticed(
    tmp_path: Path,
    row: Row,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    mutant: str,
) -> None:
    monkeypatch.setattr(_outbox, "SWEEP_SECONDS", 3600)
    row.fault = mutant.replace("_", " ")
    async with open_arena(tmp_path, row, rng) as arena:
        mutants.apply(mutant, monkeypatch.setattr)
        with pytest.raises(BrokenInvariant) as noticed:
            await CASES[mutant](arena, mutant)
            await arena.check()
            if row.doubled:
                raise BrokenInvariant(f"{row.doubled} handlers were called twice")
    assert str(noticed.value)
    sys.stdout.write(f"{row.fault}: {noticed.value}\n")  # pytest -rP shows it
