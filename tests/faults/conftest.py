# Options and fixtures of the fault suite, and the table that it prints at its end.
#
#     pytest tests/faults                the short version, as in CI
#     pytest tests/faults --full         all the faults that docs/reliability.md counts
#     pytest tests/faults --seed 4711    the random choices of that run again
#     … --seed 4711 --round 12           of a test in rounds, that one alone

from __future__ import annotations

import os
import random
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from tests._helpers.faults.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--full", action="store_true", help="as many faults as the issue asks for")
    group.addoption("--seed", type=int, default=None, help="repeat the choices of another run")
    group.addoption("--round", type=int, default=None, help="of a test in rounds, that one alone")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name, full, short): one row of the table")
    if config.option.seed is None:
        handed = getattr(config, "workerinput", {}).get("seed")  # in a worker of pytest-xdist
        config.option.seed = handed or int.from_bytes(os.urandom(4))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - xdist may not be there
    """Let the workers of pytest-xdist have one seed."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: --seed {config.option.seed}{' --full' if config.option.full else ''}"


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """How often the test is to make its fault happen."""
    marker = request.node.get_closest_marker("fault")
    return marker.kwargs["full" if request.config.option.full else "short"]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The test's random choices; the seed is at the head of the run."""
    return random.Random(f"{request.config.option.seed} {request.node.name}")


@pytest.fixture
def row(
    request: pytest.FixtureRequest, times: int, record_property: Callable[[str, object], None]
) -> Iterator[Row]:
    """What the test puts into the table."""
    row = Row(request.node.get_closest_marker("fault").args[0], times)
    yield row
    record_property("row", asdict(row))


rows: list[Row] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        rows.extend(Row(**value) for name, value in report.user_properties if name == "row")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line("| fault | times | tasks | lost | doubled | recovery, s |")
        terminalreporter.write_line("|---|---|---|---|---|---|")
        for row in sorted(rows, key=lambda row: row.fault.lower()):
            terminalreporter.write_line(line(row))


def line(row: Row) -> str:
    recovery = "-"
    if row.recoveries:
        recovery = f"{statistics.median(row.recoveries):.2f} ({max(row.recoveries):.2f})"
    cells = (row.fault, row.times, row.tasks, row.lost, row.doubled, recovery)
    return f"| {' | '.join(map(str, cells))} |"
