# Results and filters: what these hold, and whether a user's may be stored or asked for.
#
# Invariant: what `clean` gives has the declared types, a status that is the enum, times in UTC,
# and shares nothing that can change with what it was given.

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from .._check import is_task_id
from .._envelope import GO_ZERO_TIME
from .._record import Result as Result, ResultStatus as ResultStatus
from .._util import shorten
from ._errors import InvalidResultError, InvalidStatusError, InvalidTaskIDError

# msgspec would also take a string for a time, and base64 for bytes.
_AS_THEY_ARE: Final = (datetime, bytes)
_FIELD: Final = re.compile(r"\$\.(\w+)")
_S = TypeVar("_S", bound=msgspec.Struct)
_STATUSES: Final = frozenset(["pending", "success", "failed"])


class ResultFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which results to list. All conditions must hold; a blank one always does.

    Attributes:
      status: That of the result. None: any.
      task_id_prefix: What its task's ID begins with.
      created_after: Exclusive. With a time zone.
      created_before: Exclusive. With a time zone.
      limit: How many results at most, the oldest ones. 0: no limit.
      metadata: What a result's metadata must hold, beside anything else.
    """

    status: ResultStatus | None = None
    task_id_prefix: str = ""
    created_after: datetime | None = None
    created_before: datetime | None = None
    limit: int = 0
    metadata: dict[str, str] | None = None

    def matches(self, result: Result) -> bool:
        """Whether ``result`` fulfils all conditions; ``limit`` is none."""
        if self.status is not None and result.status != self.status:
            return False
        if not result.task_id.startswith(self.task_id_prefix):
            return False
        created = result.created_at
        if self.created_after is not None and (created is None or created <= self.created_after):
            return False
        if self.created_before is not None and (created is None or created >= self.created_before):
            return False
        if not self.metadata:
            return True
        return self.metadata.items() <= (result.metadata or {}).items()


def validate_task_id(task_id: object) -> None:
    """Raise `InvalidTaskIDError` unless ``task_id`` is 1 to 128 of ``A-Z a-z 0-9 _ -``.

    Such an ID works with every publisher. `MemoryPublisher` alone takes any string that is not
    empty.
    """
    if not is_task_id(task_id):
        raise InvalidTaskIDError(
            f"task ID {shorten(task_id)} must be a string of 1 to 128 letters, digits, '-' or '_'"
        )


def validate_not_empty(task_id: object) -> None:
    """Raise `InvalidTaskIDError` unless ``task_id`` is a string, and not an empty one."""
    if not isinstance(task_id, str) or not task_id:
        raise InvalidTaskIDError(f"task ID {shorten(task_id)} must be a string that is not empty")


def validate_result(result: object) -> None:
    """Raise unless a publisher would take ``result``; each publisher checks the size itself.

    Raises:
      InvalidStatusError: if its status is none of `ResultStatus`.
      InvalidResultError: if it is no `Result`, or another field has a wrong type or value.
    """
    clean(result)


def clean(result: object) -> Result:
    """A checked copy of a user's result, without the time of its update.

    Raises what `validate_result` raises.
    """
    if not isinstance(result, Result):
        raise InvalidResultError(f"{shorten(result)} is not a trio_swarmtask.results.Result")
    _check_status(result.status)
    copied = _convert(result, Result)
    try:
        copied.task_id.encode()
        copied.error.encode()
        for name, value in (copied.metadata or {}).items():
            name.encode()
            value.encode()
    except UnicodeError as exc:
        raise InvalidResultError(
            f"a result of task {shorten(result.task_id)} holds text that is not Unicode: {exc}"
        ) from exc
    created = copied.created_at
    if created is not None:
        created = _as_utc(created, "Result.created_at")
    return msgspec.structs.replace(
        copied, created_at=None if created == GO_ZERO_TIME else created, updated_at=None
    )


def clean_filter(result_filter: object) -> ResultFilter:
    """A checked copy of a user's filter.

    Raises:
      InvalidStatusError: if its status is none of `ResultStatus`.
      InvalidResultError: if it is no `ResultFilter`, or another field has a wrong type or value.
    """
    if not isinstance(result_filter, ResultFilter):
        raise InvalidResultError(
            f"{shorten(result_filter)} is not a trio_swarmtask.results.ResultFilter"
        )
    if result_filter.status is not None:
        _check_status(result_filter.status)
    copied = _convert(result_filter, ResultFilter)
    if copied.limit < 0:
        raise InvalidResultError(
            f"ResultFilter.limit must be a number from 0 up, not {result_filter.limit!r}; "
            "0 is no limit"
        )
    changes = {}
    for field in ("created_after", "created_before"):
        time = getattr(copied, field)
        if time is not None:
            changes[field] = _as_utc(time, f"ResultFilter.{field}")
    return msgspec.structs.replace(copied, **changes)


def copy(result: Result) -> Result:
    """``result``, with a metadata dictionary of its own."""
    if result.metadata is None:
        return result  # frozen, and so is all that it holds
    return msgspec.structs.replace(result, metadata=dict(result.metadata))


def _check_status(status: object) -> None:
    if not isinstance(status, str) or status not in _STATUSES:
        raise InvalidStatusError(
            f"status {shorten(status)} must be 'pending', 'success' or 'failed'"
        )


def _convert(struct: _S, kind: type[_S]) -> _S:
    try:
        # From a dictionary, for a struct of the right type passes unchecked.
        fields = msgspec.structs.asdict(struct)
        return msgspec.convert(fields, kind, builtin_types=_AS_THEY_ARE)
    except Exception as exc:
        # Not the struct itself: it may hold what is secret, or large.
        field = _FIELD.search(str(exc))
        value = shorten(getattr(struct, field[1], None)) if field else "?"
        name = f"{kind.__name__}.{field[1]}" if field else kind.__name__
        raise InvalidResultError(f"{name} = {value} can't be: {exc}") from exc


def _as_utc(time: datetime, field: str) -> datetime:
    try:
        if time.utcoffset() is None:
            raise ValueError("it has no time zone; for now write datetime.now(UTC)")
        return time.astimezone(UTC)
    except Exception as exc:
        raise InvalidResultError(f"{field} {time!r} can't be: {exc}") from exc
