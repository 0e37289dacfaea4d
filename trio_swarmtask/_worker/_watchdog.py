# The watchdog: tells when a handler keeps the Trio thread to itself.
#
# A handler that blocks (a loop, `time.sleep`, a library that is not async) stops everything else in
# its thread: renewals of leases too, so its tasks go to other workers. Nothing in that thread can
# say so while it lasts. So a thread of the watchdog's own looks whether the rounds of renewal go
# on; if one is long overdue, it says which handler runs and where.
#
# The thread is joined, not awaited: on a mock clock time would jump while Trio waits for it.

from __future__ import annotations

import sys
import threading
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .._util import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._capability import Service
    from ._job import Job

logger: Final = get_logger("trio_swarmtask.worker")


class Watchdog:
    """Watches the handlers of one worker."""

    def __init__(self) -> None:
        self._services: list[Service] = []
        self._beat_at = 0.0
        self._blocking: Job | None = None
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, service: Service) -> None:
        """Watch the handlers of this service as well; it calls `beat` in each of its rounds."""
        self._services.append(service)
        if self._thread is None:
            self._beat_at = time.monotonic()
            self._thread = threading.Thread(
                target=self._look_on, args=(threading.get_ident(),), name="watchdog", daemon=True
            )
            self._thread.start()

    def beat(self) -> None:
        """The Trio thread has come round."""
        now = time.monotonic()
        job, self._blocking = self._blocking, None
        if job is not None:
            logger.warning(
                "the handler of %s kept the Trio thread to itself for about %.1f seconds, with "
                "task %s; leases that lapsed meanwhile are other workers' by now. Await what takes "
                "long, or call it by trio.to_thread.run_sync",
                job.delivery.capability,
                now - self._beat_at,
                job.delivery.task_id,
            )
        self._beat_at = now

    @contextmanager
    def running(self) -> Iterator[None]:
        """Leaving the block ends the thread."""
        try:
            yield
        finally:
            self._enough.set()
            if self._thread is not None:
                self._thread.join()

    # In a thread of its own

    def _look_on(self, watched: int) -> None:
        before: Job | None = None  # what the last look found
        while not self._enough.wait(min(service.ack_wait for service in self._services) / 6):
            job = self._find_running()
            if job is not None and job is before and self._blocking is None:
                self._blocking = job
                job.blocked = True
                logger.warning(
                    "the handler of %s keeps the Trio thread to itself, with task %s; leases "
                    "can't be renewed meanwhile. It is at\n%s",
                    job.delivery.capability,
                    job.delivery.task_id,
                    _stack(watched),
                )
            before = job

    def _find_running(self) -> Job | None:
        """The job whose handler is being executed, if a round is overdue."""
        ack_wait = min(service.ack_wait for service in self._services)
        if time.monotonic() - self._beat_at < ack_wait / 2:
            return None
        for service in self._services:
            for job in list(service.jobs.values()):
                if getattr(job.call, "cr_running", False):
                    return job
        return None


def _stack(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame, limit=5)).rstrip()
