# Which versions of nats-py and trio-asyncio have private parts that are known here: the one place
# that checks this.
#
# The fast ways of reading and writing bypass the public methods of both, so they are used only with
# the versions for which they were made. With any other version nats-py reads and writes by itself,
# and trio-asyncio runs one callback after another: every promise holds, at a lower rate. Nobody
# would see why, so it is logged, once a process.

from __future__ import annotations

from typing import Final

import nats.aio.client
import trio_asyncio

from .._util import get_logger

KNOWN: Final = {"nats-py": "2.16.", "trio-asyncio": "0.16."}
"""How the known versions begin."""

logger: Final = get_logger("trio_swarmtask.nats")

_told: Final[set[str]] = set()


def versions() -> dict[str, str]:
    """The installed versions."""
    return {"nats-py": nats.aio.client.__version__, "trio-asyncio": trio_asyncio.__version__}


def is_known(package: str) -> bool:
    """Whether the fast ways were made for this version of the package."""
    return versions()[package].startswith(KNOWN[package])


def tell_unknown() -> None:
    """Log which of the installed versions are not known, once each."""
    for package, version in versions().items():
        if not is_known(package) and package not in _told:
            _told.add(package)
            logger.warning(
                "%s %s is not known to this version of trio_swarmtask, which leaves to it what it "
                "would do faster: that may cost 40%% of the rate. Install %s %s*, or a newer "
                "trio_swarmtask",
                package,
                version,
                package,
                KNOWN[package],
            )
