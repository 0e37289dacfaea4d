# With SWARMTASK_PUBLIC_API in the environment, the tests run as with a next version of nats-py and
# of trio-asyncio, of which nothing is known: nats-py itself reads, writes and publishes, as it does
# for its other users, and what is private of trio-asyncio has another name.

from __future__ import annotations

import os
import sys

import nats.aio.client


def use_public_api_if_asked() -> None:
    if "SWARMTASK_PUBLIC_API" in os.environ:
        import trio_asyncio

        import trio_swarmtask._nats  # noqa: F401 - imports trio-asyncio without its warning

        nats.aio.client.__version__ = "2.999.0"
        trio_asyncio.__version__ = "0.999.0"
        sys.modules["trio_asyncio._handles"] = None  # type: ignore[assignment]  # as if it were gone
