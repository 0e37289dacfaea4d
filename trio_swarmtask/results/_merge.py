# What is stored when a result is published and there may be one already.

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from ._errors import ResultExistsError

if TYPE_CHECKING:
    from ._types import Result


def merge(task_id: str, new: Result, stored: Result | None) -> Result:
    """The record to store: ``new``, a clean one, over ``stored``.

    Raises:
      ResultExistsError: if it would take back the end of a task. A redelivered task begins with
        a ``pending``, and its result must stand.
    """
    if supersedes(new, stored):
        now = datetime.now(UTC)
        created_at = new.created_at if stored is None else stored.created_at
        return msgspec.structs.replace(
            new, task_id=task_id, created_at=created_at or now, updated_at=now
        )
    assert stored is not None
    raise ResultExistsError(task_id, stored.status)


def supersedes(new: Result, stored: Result | None) -> bool:
    """Whether ``new`` may take the place of ``stored``: a terminal state yields only to another."""
    return stored is None or new.status.is_terminal or not stored.status.is_terminal
