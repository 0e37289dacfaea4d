# The command `swarmtask`: reads the arguments, and loads what a command needs only then.

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

DISTRIBUTION: Final = "trio-swarmtask"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: The arguments without the program's name. None: those of this process.

    Returns:
      The exit status.

    Raises:
      SystemExit: after ``--help`` and ``--version``, and for arguments that it does not know.
    """
    parser = argparse.ArgumentParser(
        prog="swarmtask",
        description="Send a unit of work to a worker somewhere and get its result back.",
    )
    parser.add_argument("--version", action="version", version=f"swarmtask {_version()}")
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser(
        "demo",
        help="start a server and three workers, send tasks, kill a worker, lose nothing",
    )
    parser.parse_args(argv)

    from . import _demo

    return _demo.main()


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "(not installed)"
