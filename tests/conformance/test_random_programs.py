"""Random programs come out alike on the memory broker and on a real server.

In CI there are 15 of them, the same each time. `nox -s random-programs` plays 300 others, and says
by which seed they are the same again:

    SWARMTASK_PROGRAMS=300 SWARMTASK_SEED=4711 pytest tests/conformance/test_random_programs.py

A failure shows the shortest program that was found, where it came out otherwise, and how to play it
alone:

    SWARMTASK_PROGRAM="Program(…)" pytest tests/conformance/test_random_programs.py
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Final

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests._helpers import random_programs
from tests._helpers.program_brokers import play_in_memory, play_on_server

if TYPE_CHECKING:
    from tests._helpers.random_programs import Program
    from trio_swarmtask.server import Server

COUNT: Final = int(os.environ.get("SWARMTASK_PROGRAMS", "15"))
SEED: Final = os.environ.get("SWARMTASK_SEED", "0")
ALONE: Final = os.environ.get("SWARMTASK_PROGRAM")
EACH: Final = 15  # played on one server, one after another
REPEATS: Final = 20  # of one that is played alone: it may fail only now and then

# Seconds that a scene may take to come: at first, and in the search for a shorter program, where
# each one that fails takes all of them. And that this search may take.
PATIENCE: Final = 10.0
SHORT_PATIENCE: Final = 2.0
SEARCH_SECONDS: Final = 40.0


class Comparison:
    """Plays programs on both, and remembers those that failed.

    Hypothesis plays the shortest one again to be sure. If that fails now and then, it is shown as
    it was the first time.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures: dict[Program, str] = {}
        self._search_ends = 0.0

    def play(self, program: Program) -> None:
        failure = self._failures.get(program, "")
        if not self._failures or (not failure and time.monotonic() < self._search_ends):
            failure = self._compare(program, SHORT_PATIENCE if self._failures else PATIENCE)
        if failure:
            self._search_ends = self._search_ends or time.monotonic() + SEARCH_SECONDS
            self._failures[program] = failure
            again = (
                f'SWARMTASK_PROGRAM="{program}" pytest tests/conformance/test_random_programs.py'
            )
            pytest.fail(f"{failure}\n\nTo play it alone:\n\n{again}\n")

    def _compare(self, program: Program, patience: float) -> str:
        """What is wrong, if anything."""
        try:
            script = play_in_memory(program)
            assert play_in_memory(program) == script, "it does not come out alike twice in memory"
            play_on_server(self._url, program, script, patience)
        except Exception as exc:  # noqa: BLE001 - whatever it is, a shorter program is looked for
            return f"{type(exc).__name__}: {exc}"
        return ""


if ALONE is None:

    @pytest.mark.parametrize("part", range(-(-COUNT // EACH)))
    async def test_random_programs(
        server: Server, part: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL, "trio_swarmtask")  # of a hundred programs it is no help
        comparison = Comparison(server.url)

        @seed(f"{SEED} {part}")
        @settings(
            max_examples=min(EACH, COUNT - EACH * part),
            database=None,  # the seed does it
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(random_programs.any_program())
        def play(program: Program) -> None:
            comparison.play(program)

        # In a thread, for each program is played in a Trio run of its own.
        await trio.to_thread.run_sync(play)

else:

    async def test_program_alone(server: Server) -> None:
        program = eval(ALONE or "", vars(random_programs))
        for _ in range(REPEATS):
            await trio.to_thread.run_sync(Comparison(server.url).play, program)
