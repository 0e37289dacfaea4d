# The checks, each in a fresh environment.
#
# The supported Pythons come from the classifiers, the lowest versions from the lower bounds, and
# the tools from the dependency groups: pyproject.toml is the one place for all of them.

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2026.8.10"  # `python` as a range
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"  # what isn't there is skipped; in CI it is an error

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# By default the oldest Python runs the tests with the lowest dependencies, and the newest under
# coverage; `nox -s tests` is all the tests on each. CI goes on with `nox -t longer`.
OLDEST, MIDDLE, NEWEST = PYTHONS
nox.options.sessions = [
    "lint",
    "typing",
    "minimums",
    "coverage",
    "faults-short",
    "bench-short",
]
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

# Tests of the fault suite that take clusters of five nodes, and minutes.
ON_FIVE_NODES = ("test_rounds", "test_stalls")

# Each test has a server of its own, and half of the time it waits for something.
IN_PARALLEL = (f"--numprocesses={2 * (os.cpu_count() or 1)}",)

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


@nox.session(python=OLDEST)
def minimums(session: nox.Session) -> None:
    """The tests with the lowest version of every dependency."""
    bounds = [*PROJECT["project"]["dependencies"], *EXTRAS["server"], *EXTRAS["nkeys"]]
    lowest = [bound.replace(">=", "==") for bound in bounds]
    session.install(".[server,nkeys]", *lowest, *group("test"))
    session.run("pytest", *IN_PARALLEL, *session.posargs)


@nox.session(python=NEWEST)
def coverage(session: nox.Session) -> None:
    """Every line and branch is run by some test."""
    session.install("-e", ".[server,nkeys]", *group("test"))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *IN_PARALLEL, *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python=MIDDLE, name="public-api", tags=["longer"])
def public_api(session: nox.Session) -> None:
    """What a server is needed for, as with a nats-py that is not known: without the fast ways."""
    session.install(".[server,nkeys]", *group("test"))
    session.env["SWARMTASK_PUBLIC_API"] = "1"
    folders = session.posargs or ("tests/conformance", "tests/jetstream", "tests/nats")
    session.run("pytest", *IN_PARALLEL, *folders)


@nox.session(python=ANY_PYTHON, name="random-programs")
def random_programs(session: nox.Session) -> None:
    """300 random programs, others each time: do they come out alike in memory and on a server?"""
    run_random(session, "programs", 300)


@nox.session(python=ANY_PYTHON, name="random-trees")
def random_trees(session: nox.Session) -> None:
    """1,000 random trees of groups, others each time: does anything run that was left?"""
    run_random(session, "trees", 1000)


def run_random(session: nox.Session, kind: str, count: int) -> None:
    session.install(".[server,nkeys]", *group("test"))
    seed = os.environ.get("SWARMTASK_SEED") or str(int.from_bytes(os.urandom(4)))
    session.log(f"The same ones again: SWARMTASK_SEED={seed} nox -s random-{kind}")
    session.env.update({f"SWARMTASK_{kind.upper()}": str(count), "SWARMTASK_SEED": seed})
    # Whoever looks for the shortest one that fails takes a while.
    patiently = (*IN_PARALLEL, "-o", "faulthandler_timeout=600")
    session.run("pytest", f"tests/conformance/test_random_{kind}.py", *patiently, *session.posargs)


@nox.session(python=ANY_PYTHON)
def fuzz(session: nox.Session) -> None:
    """100,000 mutated messages of each kind that is read from the network: a quarter of an hour."""
    session.install(".[server,nkeys]", *group("test"))
    seed = os.environ.get("SWARMTASK_SEED") or str(int.from_bytes(os.urandom(4)))
    session.log(f"The same ones again: SWARMTASK_SEED={seed} nox -s fuzz")
    session.env.update({"SWARMTASK_FUZZ": "100000", "SWARMTASK_SEED": seed})
    files = ("tests/jetstream/test_fuzz.py", "tests/jetstream/test_fuzz_server.py")
    readers = "tests/test_untrusted.py"
    patiently = (*IN_PARALLEL, "-o", "faulthandler_timeout=3600")
    session.run("pytest", *files, readers, *patiently, *session.posargs)


@nox.session(python=ANY_PYTHON)
def faults(session: nox.Session) -> None:
    """Real faults, as many as docs/reliability.md says: half an hour, and a table."""
    left_out = ("test_can_fail", "test_rounds")  # they have sessions of their own
    ignored = [f"--ignore=tests/faults/{file}.py" for file in left_out]
    run_faults(session, "--full", *ignored, *session.posargs)


@nox.session(python=ANY_PYTHON, name="faults-cluster")
def faults_cluster(session: nox.Session) -> None:
    """A cluster of five, harmed in 300 random rounds under every kind of use: an hour."""
    options = ("--full", "-o", "faulthandler_timeout=14400", *session.posargs)
    run_faults(session, *options, files="tests/faults/test_rounds.py")


@nox.session(python=ANY_PYTHON, name="faults-short")
def faults_short(session: nox.Session) -> None:
    """Each fault a few times, and each guarantee taken away once."""
    ignored = [f"--ignore=tests/faults/{file}.py" for file in ON_FIVE_NODES]
    run_faults(session, *ignored, *session.posargs)


@nox.session(python=ANY_PYTHON, name="clusters-short", tags=["longer"])
def clusters_short(session: nox.Session) -> None:
    """What needs a cluster of five: stalls and partitions, and a few of the random rounds."""
    for file in ON_FIVE_NODES:
        run_faults(session, *session.posargs, files=f"tests/faults/{file}.py")


@nox.session(python=ANY_PYTHON, name="faults-can-fail")
def faults_can_fail(session: nox.Session) -> None:
    """One guarantee after the other is taken away: each must be noticed."""
    run_faults(session, "-rP", *session.posargs, files="tests/faults/test_can_fail.py")


def run_faults(session: nox.Session, *options: str, files: str = "tests/faults") -> None:
    session.install(".[server,nkeys]", *group("test"))
    # Most of the time is waiting. A test may take minutes before it is taken for one that hangs.
    waiting = ("--numprocesses=4", "--dist=worksteal", "-o", "faulthandler_timeout=900")
    session.run("pytest", files, *waiting, *options)


@nox.session(python=ANY_PYTHON)
def bench(session: nox.Session) -> None:
    """Speed, beside the same work in plain asyncio and beside other libraries: half an hour."""
    session.install(".[server]", *group("bench"))
    if "--quick" not in session.posargs:
        # The others have environments of their own: not all of them go together.
        environments = Path(session.virtualenv.location).resolve() / "peers"
        for name in ("peers", "peers-old"):
            python = environments / name / "bin" / "python"
            session.run("python", "-m", "venv", "--clear", str(environments / name))
            session.run(str(python), "-m", "pip", "install", "--quiet", *group(name), external=True)
        session.env["BENCH_ENVIRONMENTS"] = str(environments)
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(python=ANY_PYTHON, name="bench-short")
def bench_short(session: nox.Session) -> None:
    """A minute of it: is the rate, against the same work by hand, what it should be at least?"""
    session.install(".[server]")
    session.run("python", "benchmarks/run.py", "--quick", "--minimum-ratio", "0.7")


@nox.session(python=ANY_PYTHON)
def demo(session: nox.Session) -> None:
    """A server, three worker processes, a few hundred tasks; one worker is killed."""
    session.install(".[server]")
    session.run("python", "-m", "trio_swarmtask", "demo", *session.posargs)
