# One capability at a worker: what it holds of it, and the leases.
#
# Leases. A delivery is ours for the durable's ack_wait. One task a capability renews all that are
# in hand, every third of that time. It outlives the handlers: during a shutdown they may run on,
# and a lease that lapses then starts the same task in a second worker. One that could not be
# renewed for ack_wait is another worker's by now, so its handler is cancelled, and the task
# neither ended nor given back.
#
# Invariant: a job is in `jobs` from its arrival until it is settled; no longer, no
# less.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ._broker import Intake
    from ._job import Job
    from ._lane import Lanes


class Service:
    """One capability that a worker handles."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.jobs: set[Job] = set()
        self.lanes: Lanes  # set before the first job
        self.running = 0  # handlers that have not ended

    @property
    def ack_wait(self) -> float:
        return self.intake.ack_wait

    async def keep_leases(self) -> None:
        """Renew what is held, and cancel what could not be renewed, for ever."""
        next_round = trio.current_time() + self.intake.ack_wait / 3
        while True:
            held = [job.delivery.lease_until for job in self.jobs if not job.lost]
            await trio.sleep_until(min([next_round, *held]))
            now = trio.current_time()
            for job in self.jobs:
                if job.lost:
                    continue
                if job.delivery.lease_until <= now:
                    job.lose_lease()
                elif now >= next_round:
                    job.delivery.renew()
            if now >= next_round:
                next_round = now + self.intake.ack_wait / 3
