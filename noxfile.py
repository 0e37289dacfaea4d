# The checks, each in a fresh environment.
#
# The supported Pythons come from the classifiers, the lowest versions from the lower bounds, and
# the tools from the dependency groups: pyproject.toml is the one place for all of them.

from __future__ import annotations

import os
import shutil
import subprocess

import nox

nox.needs_version = ">=2026.8.10"  # `python` as a range
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"  # what isn't there is skipped; in CI it is an error

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# Its tests are run under coverage, so by default not without it as well.
MEASURED = PYTHONS[1]
TESTED = [f"tests-{python}" for python in PYTHONS if python != MEASURED]
nox.options.sessions = ["lint", "typing", *TESTED, "minimums", "coverage"]
# For sessions that need only one: the Python that runs nox, or another that is supported.
ANY_PYTHON = PROJECT["project"]["requires-python"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
FOLDERS = ("trio_swarmtask", "tests", "examples", "benchmarks")

# flake8 runs for flake8-async alone: it has rules that ruff does not, such as 102 (an unshielded
# await while cleaning up), 103 and 104 (a swallowed `Cancelled`), 900 (a bare async generator).
ASYNC_RULES = (
    "--select=ASYNC",
    # 114: wants a list of all that `nursery.start` calls. 122: only matters below Trio 0.27.
    # 910 to 912: for private functions too; that public ones are checkpoints is tested.
    "--extend-ignore=ASYNC114,ASYNC122,ASYNC910,ASYNC911,ASYNC912",
    # A handler and a fixture are async whether they await or not.
    "--per-file-ignores=tests/*:ASYNC124 examples/*:ASYNC124 benchmarks/*:ASYNC124",
)

IN_PARALLEL = ("--numprocesses=auto",)  # each test has a server of its own

# uv brings certificates of its own. pip trusts the system's, so let uv do as much.
os.environ.setdefault("UV_SYSTEM_CERTS", "1")


def activate_pyenv() -> None:
    """Let pyenv answer for every Python that it has: by default only one of them is active."""
    if "PYENV_VERSION" in os.environ or not (pyenv := shutil.which("pyenv")):
        return

    def ask(*command: str) -> str:
        return subprocess.run([pyenv, *command], capture_output=True, text=True).stdout.strip()

    versions = [ask("version-name"), *(ask("latest", python) for python in PYTHONS)]
    os.environ["PYENV_VERSION"] = ":".join(filter(None, versions))


activate_pyenv()


def group(name: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(PROJECT, name)


@nox.session(python=ANY_PYTHON)
def lint(session: nox.Session) -> None:
    """Style, common mistakes, and formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("flake8", *ASYNC_RULES, *FOLDERS)


@nox.session(python=ANY_PYTHON)
def typing(session: nox.Session) -> None:
    """mypy on everything typed, pyright on the public API alone: is it complete, is it right?"""
    session.install("-e", ".[server,nkeys]", *group("typing"))
    session.run("mypy", "trio_swarmtask", "tests/typing", "examples", "benchmarks", "noxfile.py")
    session.run("pyright", "--verifytypes", "trio_swarmtask", "--ignoreexternal")
    session.run("pyright", "tests/typing")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, against a real nats-server."""
    session.install(".[server,nkeys]", *group("test"))
    session.run("pytest", *IN_PARALLEL, *session.posargs)


@nox.session(python=PYTHONS[0])
def minimums(session: nox.Session) -> None:
    """The tests with the lowest version of every dependency."""
    bounds = [*PROJECT["project"]["dependencies"], *EXTRAS["server"], *EXTRAS["nkeys"]]
    lowest = [bound.replace(">=", "==") for bound in bounds]
    session.install(".[server,nkeys]", *lowest, *group("test"))
    session.run("pytest", *IN_PARALLEL, *session.posargs)


@nox.session(python=MEASURED)
def coverage(session: nox.Session) -> None:
    """Every line and branch is run by some test."""
    session.install("-e", ".[server,nkeys]", *group("test"))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *IN_PARALLEL, *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python=ANY_PYTHON)
def bench(session: nox.Session) -> None:
    """Tasks per second and latency, beside the same algorithm in plain asyncio."""
    session.install(".[server]")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(python=ANY_PYTHON)
def demo(session: nox.Session) -> None:
    """A server, three worker processes, a few hundred tasks; one worker is killed."""
    session.install(".[server]")
    session.run("python", "-m", "trio_swarmtask", "demo", *session.posargs)
