# Opening a group: its nursery, its keeper, and its lease, if it is to have one.

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import trio

from ._group import OnFailure, TaskGroup
from ._lease import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._dispatcher import Dispatcher
    from ._wire import Message

Orphans = Literal["finish", "cancel"]


@asynccontextmanager
async def open_group(
    dispatcher: Dispatcher,
    task_id: str,
    parent: Message | None,
    on_failure: OnFailure,
    grace: float,
    orphans: Orphans,
) -> AsyncIterator[TaskGroup]:
    lease = None
    if orphans == "cancel":
        lease = Lease(dispatcher._outbox, task_id)
        await lease.begin()
    async with trio.open_nursery(strict_exception_groups=True) as nursery:
        group = TaskGroup._create(dispatcher, nursery, task_id, parent, on_failure, grace, lease)
        dispatcher._groups.add(group)  # until its keeper has ended
        nursery.start_soon(group._keep)
        if lease is not None:
            nursery.start_soon(lease.keep)
        try:
            yield group
        finally:
            group._left.set()
