# With SWARMTASK_PUBLIC_API in the environment, the tests run as with a nats-py that is not known:
# nats-py itself reads, writes and publishes, as it does for its other users.

from __future__ import annotations

import os

from trio_swarmtask._nats import _client


def use_public_api_if_asked() -> None:
    if "SWARMTASK_PUBLIC_API" in os.environ:
        _client._KNOWN_VERSIONS = "none"  # type: ignore[misc]  # Final, but for this
