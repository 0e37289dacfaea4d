# The programs that are compared: what each is, and how it is started

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class Runner:
    """One program with its two roles."""

    name: str
    file: str
    """Its path in the folder of the benchmarks."""
    options: dict[str, Any] = field(default_factory=dict)
    """What it is always told, beside what the workload asks for."""
    server: str = "nats"
    """``nats`` or ``redis``."""
    in_one_process: bool = False
    """The dispatcher does the worker's part as well."""
    most: int = 0
    """Tasks that it can be asked for at once, where it fails above; 0: any number."""
    rest: float = 0.0
    """Seconds that it has to be left alone before each turn."""
    environment: str = ""
    """Whose Python it runs with; empty: with this one."""

    def command(
        self, role: str, url: str, capability: str, python: Sequence[str] = ()
    ) -> list[str]:
        """How a role is started; ``python``: by this, in place of the runner's own."""
        python = python or [str(python_of(self.environment))]
        return [*python, str(FOLDER / self.file), role, url, capability]


def python_of(environment: str) -> Path:
    """The Python of an environment in the folder that ``BENCH_ENVIRONMENTS`` names, if it is."""
    folder = os.environ.get("BENCH_ENVIRONMENTS")
    if not environment or not folder:
        return Path(sys.executable)
    return Path(folder) / environment / "bin" / "python"


BARE: Final = Runner("bare", "runners/bare.py")
OURS: Final = Runner("ours", "runners/ours.py")
UVLOOP: Final = Runner("bare-uvloop", "runners/bare.py", {"uvloop": True})
LEAN: Final = Runner("lean", "runners/bare.py", {"lean": True})
PUBLIC: Final = Runner("ours-public", "runners/ours.py", {"public_api": True})
MEMORY: Final = Runner("ours-memory", "runners/memory.py", in_one_process=True)
NAIVE: Final = Runner("naive", "runners/naive.py")

# The other Python libraries. Not all of them can be installed beside each other, so they have
# environments of their own: the dependency groups `peers` and `peers-old`.
PEERS: Final = (
    # Its results leave too many consumers behind: see its file.
    Runner("taskiq-nats", "peers/taskiq_nats_runner.py", most=400, rest=6.0, environment="peers"),
    Runner("repid", "peers/repid_runner.py", environment="peers"),
    Runner("taskiq-redis", "peers/taskiq_redis_runner.py", server="redis", environment="peers"),
    Runner("streaq", "peers/streaq_runner.py", server="redis", environment="peers"),
    Runner("docket", "peers/docket_runner.py", server="redis", environment="peers"),
    Runner("saq", "peers/saq_runner.py", server="redis", environment="peers-old"),
    Runner("arq", "peers/arq_runner.py", server="redis", environment="peers-old"),
)
