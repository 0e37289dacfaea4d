# Cron expressions of six fields, as nats-server reads them, and when they come next.
#
# They are checked here, so that a mistake is found where it is made, and worked out here, because
# the broker in memory must fire when the server would. (cronsim 2.8 and croniter 7.0 accept 7 as a
# day of the week, `L` and `#`, which the server refuses; cronsim gives `*/2` another meaning.)
#
# As in any cron, if both the day of the month and the day of the week are restricted, a day that
# matches one of them is enough. A field with `*` or `?` (but not `*/2`) is not restricted.

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ._util import shorten

_MONTHS: Final = (
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
)
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

# Name, lowest and highest value, names of values.
_FIELDS: Final[tuple[tuple[str, int, int, dict[str, int]], ...]] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 6, {name: number for number, name in enumerate(_DAYS)}),
)
_PART: Final = re.compile(r"(?:([*?])|(\w+)(?:-(\w+))?)(?:/([0-9]{1,4}))?", re.ASCII)

# The server looks no further ahead.
_YEARS: Final = timedelta(days=5 * 365)


@dataclass(frozen=True, slots=True)
class Cron:
    """The values that each field allows."""

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    is_any_day: bool
    is_any_weekday: bool

    def after(self, time: datetime) -> datetime | None:
        """The first time after ``time``, which is UTC; None if there is none for five years."""
        limit = time + _YEARS
        time = time.replace(microsecond=0) + timedelta(seconds=1)
        while time < limit:
            if time.month not in self.months:
                time = time.replace(day=1, hour=0, minute=0, second=0) + timedelta(days=32)
                time = time.replace(day=1)
            elif not self._has_day(time):
                time = time.replace(hour=0, minute=0, second=0) + timedelta(days=1)
            elif time.hour not in self.hours:
                time = time.replace(minute=0, second=0) + timedelta(hours=1)
            elif time.minute not in self.minutes:
                time = time.replace(second=0) + timedelta(minutes=1)
            elif time.second not in self.seconds:
                time += timedelta(seconds=1)
            else:
                return time
        return None

    def _has_day(self, time: datetime) -> bool:
        day = time.day in self.days
        weekday = time.isoweekday() % 7 in self.weekdays
        if self.is_any_day or self.is_any_weekday:
            return day and weekday
        return day or weekday


def parse_cron(text: str) -> Cron:
    """Read ``text``.

    Raises:
      ValueError: naming what is wrong with it.
    """
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(
            f"cron {shorten(text)} has {len(fields)} fields, and six are needed: second, minute, "
            "hour, day of the month, month, day of the week; '0 30 6 * * mon-fri' is half past six "
            "(UTC) on weekdays"
        )
    values: list[frozenset[int]] = []
    is_any: list[bool] = []
    for index, field in enumerate(fields):
        try:
            parts = [_read_part(part, *_FIELDS[index][1:]) for part in field.split(",")]
        except ValueError as exc:
            raise ValueError(
                f"cron {shorten(text)} can't be: in its field {index + 1}, the "
                f"{_FIELDS[index][0]}, {exc}"
            ) from None
        values.append(frozenset().union(*(allowed for allowed, _ in parts)))
        is_any.append(any(star for _, star in parts))
    seconds, minutes, hours, days, months, weekdays = values
    return Cron(seconds, minutes, hours, days, months, weekdays, is_any[3], is_any[5])


def _read_part(
    part: str, lowest: int, highest: int, names: dict[str, int]
) -> tuple[frozenset[int], bool]:
    """The values of one part of a field, and whether it leaves the field unrestricted."""

    def read(word: str) -> int:
        number = names.get(word.lower())
        if number is None:
            number = int(word) if word.isdigit() else -1
            if not lowest <= number <= highest:
                known = f", or a name like {next(iter(names))!r}" if names else ""
                raise ValueError(f"{word!r} is no number from {lowest} to {highest}{known}")
        return number

    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{shorten(part)} is none of '*', '?', '5', '1-5', '*/10', '1-30/10'")
    star, first, last, step_text = match.groups()
    step = 1 if step_text is None else int(step_text)
    if step == 0:
        raise ValueError(f"{part!r} steps by 0; use a number from 1 up")
    if star is not None:
        return frozenset(range(lowest, highest + 1, step)), step == 1
    start = read(first)
    # `5/10` means every tenth from 5 on.
    end = read(last) if last is not None else start if step_text is None else highest
    if end < start:
        raise ValueError(f"{part!r} runs backwards")
    return frozenset(range(start, end + 1, step)), False
