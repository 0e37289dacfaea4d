# What the documents show: the examples and the README's programs, run as their readers run them, as
# processes of their own against a real server; and whether what the documents point at is there.

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import tomllib
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests._helpers.brokers import within
from trio_swarmtask import Future, Message, Status, open_dispatcher, open_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_swarmtask.server import Server

ROOT: Final = Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "examples"
DOCUMENTS: Final = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]

# The first line of each of the README's programs is a comment with its name.
_PROGRAM: Final = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # one that leads to a file, not a site
_CODE: Final = re.compile(r"`([^`\n]+)`")
_TEST: Final = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


class Program:
    """A running program, and all that it has written so far."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.written = ""

    async def wait_for(self, text: str) -> None:
        """Wait until it has written ``text``."""
        while text not in self.written:
            assert await self._read(), f"it ended without {text!r}: {self.written}"

    async def wait(self) -> int:
        """Wait until it has ended by itself; return its exit status."""
        while await self._read():
            pass
        return await self.process.wait()

    async def _read(self) -> bool:
        assert self.process.stdout is not None
        chunk = await self.process.stdout.receive_some()
        self.written += chunk.decode()
        return bool(chunk)


@asynccontextmanager
async def running(path: Path, *arguments: str, url: str = "") -> AsyncIterator[Program]:
    """Run a program for the length of a block; ``url`` becomes its ``NATS_URL``.

    Leaving the block, in whatever way, ends the process and reaps it: `trio.run_process` does so
    when it is cancelled. What it wrote is shown if the test fails.
    """
    start = partial(
        trio.run_process,
        [sys.executable, str(path), *arguments],
        env={**os.environ, "NATS_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    async with trio.open_nursery() as nursery:
        program = Program(await nursery.start(start))
        try:
            yield program
        finally:
            nursery.cancel_scope.cancel()
            sys.stdout.write(f"{path.name} wrote:\n{program.written}")


async def run(path: Path, *arguments: str, url: str = "") -> str:
    """Run a program to its end, which must be a good one, and return what it wrote."""
    async with running(path, *arguments, url=url) as program:
        status = await program.wait()
    assert status == 0, program.written
    return program.written


def test_every_example_is_known_here() -> None:
    """A new one gets a test."""
    tasks = {"chain.py", "dispatcher.py", "fan_out.py", "graceful_shutdown.py", "worker.py"}
    groups = {"orchestrator.py"}
    results = {"progress.py", "follow.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tasks | groups | results


@within(30)
async def test_worker_and_dispatcher(server: Server) -> None:
    """One finds the server by NATS_URL, the other by its argument. Ctrl-C ends the worker."""
    async with running(EXAMPLES / "worker.py", url=server.url) as worker:
        await worker.wait_for("is ready\n")
        written = await run(EXAMPLES / "dispatcher.py", server.url)
        worker.process.send_signal(signal.SIGINT)
        assert await worker.wait() == 0
    assert written.splitlines() == [
        "'Tasks that happen to run on other machines' has 8 words, the longest is 'machines'",
        "'  ' failed: the text has no words",
    ]


@within(30)
async def test_fan_out(server: Server) -> None:
    """Two workers, 99 tasks at once; then one that fails."""
    worker = EXAMPLES / "worker.py"
    async with running(worker, server.url), running(worker, server.url):
        written = await run(EXAMPLES / "fan_out.py", url=server.url)
    counts, failure = written.splitlines()
    assert counts == "99 texts have 693 words"
    assert re.fullmatch(
        r"the nursery was left by: task \S+ failed at \S+: the text has no words", failure
    )


@asynccontextmanager
async def resting(
    server: Server, seconds: str, patience: str
) -> AsyncIterator[tuple[Program, Future]]:
    """graceful_shutdown.py with a task of so many seconds begun, and SIGTERM sent after that."""
    async with (
        open_dispatcher(server.url) as dispatcher,
        running(EXAMPLES / "graceful_shutdown.py", server.url, patience) as program,
    ):
        await program.wait_for("is ready\n")
        future = await dispatcher.start("rest", Message(inputs={"seconds": seconds}))
        await program.wait_for(f"{future.id} begins\n")
        program.process.terminate()
        yield program, future


@within(30)
async def test_graceful_shutdown_lets_handlers_finish(server: Server) -> None:
    """A handler that needs less than the patience ends well, after the signal."""
    async with resting(server, "0.5", "20") as (program, future):
        result = await future.wait()
        assert await program.wait() == 0
    assert (result.status, result.outputs) == (Status.SUCCESS, "rested")
    assert program.written.splitlines()[2:] == [
        "SIGTERM: no more tasks",
        "all that had begun is done",
    ]


@within(20)  # less than the lease, which another worker would wait for after a crash
async def test_graceful_shutdown_gives_back_the_rest(server: Server) -> None:
    """A handler that needs more is cancelled, and its task is another worker's at once."""

    async def rest(message: Message) -> str:
        return "rested elsewhere"

    async with resting(server, "3600", "0.1") as (program, future):
        assert await program.wait() == 0
        async with open_worker(server.url) as worker:
            await worker.handle("rest", rest)
            result = await future.wait()
    assert (result.outputs, result.attempt) == ("rested elsewhere", 2)
    assert program.written.splitlines()[2:] == [
        "SIGTERM: no more tasks",
        "what was not done in time is back in the queue",
    ]


@within(30)
async def test_chain(server: Server) -> None:
    """The second task writes what the first one outlined."""
    assert await run(EXAMPLES / "chain.py", url=server.url) == (
        "ALL ABOUT NURSERIES\nWhy nurseries: ...\nHow nurseries: ...\n"
    )


@within(30)
async def test_orchestrator(server: Server) -> None:
    """One researcher is tried again, one is cancelled and replaced; the text is there at last."""
    written = (await run(EXAMPLES / "orchestrator.py", "better tea", url=server.url)).splitlines()
    steps = [line.split(maxsplit=1) for line in written[:-4]]
    for topic, step in [
        ("nurseries", "attempt 2: in the library"),
        ("nurseries", "done"),
        ("deadlines", "no answer in time: cancelled, and somebody else is asked"),
        ("deadlines", "done"),
    ]:
        assert [topic, step] in steps
    assert written[-4:] == [
        "Better Tea",
        "All about better tea.",
        "All about deadlines.",
        "All about nurseries.",
    ]


@within(30)
async def test_progress_is_followed(server: Server) -> None:
    """By one process from before the start, by another one from after the end."""
    async with running(EXAMPLES / "follow.py", "report", server.url) as follower:
        await follower.wait_for("following report\n")
        assert await run(EXAMPLES / "progress.py", "report", server.url) == ""
        assert await follower.wait() == 0
    written = follower.written.splitlines()
    percents = [f"pending: {percent}%" for percent in (0, 25, 50, 75)]
    assert written == ["following report", *percents, "success: 42"]
    assert (await run(EXAMPLES / "follow.py", "report", url=server.url)).splitlines() == [
        "following report",
        "success: 42",
    ]


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's programs."""
    folder = tmp_path_factory.mktemp("readme")
    for name, program in _PROGRAM.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        (folder / name).write_text(program, encoding="utf-8")
    return folder


def test_every_program_of_the_readme_is_known_here(readme: Path) -> None:
    """A new one gets a name and a test."""
    names = {"worker.py", "dispatcher.py", "test_overrun.py"}
    assert {path.name for path in readme.iterdir()} == names
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("```python") == len(names)


@within(30)
async def test_quickstart(server: Server, readme: Path) -> None:
    """In any order, as it says: the tasks wait for the worker."""
    async with (
        running(readme / "dispatcher.py", url=server.url) as dispatcher,
        running(readme / "worker.py", url=server.url),
    ):
        assert await dispatcher.wait() == 0
    assert sorted(dispatcher.written.splitlines()) == ["ONE", "THREE", "TWO"]


def test_program_of_the_results_page(capsys: pytest.CaptureFixture[str]) -> None:
    """It needs no server."""
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    [(_, program)] = _PROGRAM.findall(page)
    exec(compile(program, "progress.py", "exec"), {})  # as its reader would run it
    assert capsys.readouterr().out == "pending half way\nsuccess done\n"


def test_test_of_the_readme(readme: Path) -> None:
    """It passes, as it would under plain pytest."""
    runpy.run_path(str(readme / "test_overrun.py"))["test_overrun"]()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Files that a document links to are there."""
    links = _LINK.findall(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_architecture_names_what_is_there() -> None:
    """Its modules and tests exist: `_worker/_job.py`, `tests/test_layers.py`, `test_chain`."""
    folders = (ROOT, ROOT / "trio_swarmtask", ROOT / "tests")
    tests = {
        name
        for path in ROOT.glob("tests/**/test_*.py")
        for name in _TEST.findall(path.read_text(encoding="utf-8"))
    }
    wrong = []
    for word in _CODE.findall((ROOT / "docs/architecture.md").read_text(encoding="utf-8")):
        if word.startswith("test_") and not word.endswith(".py"):
            if word not in tests:
                wrong.append(word)
        elif word.endswith((".py", ".md", "/")) and not any((f / word).exists() for f in folders):
            wrong.append(word)
    assert wrong == []


def test_pre_commit_runs_what_nox_runs() -> None:
    """The same linters, of the same versions, with the same rules."""
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    linters = set(groups["dependency-groups"]["lint"])
    assert set(re.findall(r"[\w-]+==[\w.]+", config)) == linters
    rules = re.search(r"ASYNC_RULES = \((.*?)\n\)", (ROOT / "noxfile.py").read_text(), re.DOTALL)
    assert rules is not None
    for rule in re.findall(r'^    "(--.*)",$', rules[1], re.MULTILINE):
        assert rule in config
