# Ports for servers that tests kill and start again.

from __future__ import annotations

import itertools
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_free_ports() -> Iterator[int]:
    """Ports below those that the system gives out by itself.

    While a server is down, any other socket may be given a port of that range, and the server
    can't come back. Each process of pytest-xdist has numbers of its own, and begins somewhere
    among them, so that two runs may be on one machine.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = [12000 + worker % 10 * 2000 + (os.getpid() * 7 + n) % 2000 for n in range(2000)]
    for port in itertools.cycle(ports):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                yield port


free_ports = find_free_ports()
