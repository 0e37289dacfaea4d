"""Cron expressions: what is refused, and when they come next. (What a server says to them:
tests/jetstream/test_schedules.py.)"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings, strategies as st

from trio_swarmtask._cron import Cron, parse_cron

SUNDAY = datetime(2026, 11, 22, 14, 44, 6, 73_329, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * * * * *", "2026-11-22 14:44:07"),
        ("*/10 * * * * *", "2026-11-22 14:44:10"),
        ("5/25 * * * * *", "2026-11-22 14:44:30"),
        ("0 * * * * *", "2026-11-22 14:45:00"),
        ("6 44 14 * * *", "2026-11-23 14:44:06"),
        ("0 30 6 * * mon-fri", "2026-11-23 06:30:00"),
        ("0 30 6 ? * MON,fri", "2026-11-23 06:30:00"),
        ("0 0 0 * * 0", "2026-11-29 00:00:00"),
        ("0 0 0 1 * *", "2026-12-01 00:00:00"),
        ("0 0 0 31 * ?", "2026-12-31 00:00:00"),
        ("0 0 0 1 jan *", "2027-01-01 00:00:00"),
        ("0 0 0 29 2 *", "2028-02-29 00:00:00"),
        ("0 15,45 9-17/4 * * *", "2026-11-22 17:15:00"),
        # Two restricted days: either one will do. A star, even in a list, restricts nothing.
        ("0 0 0 24 * fri", "2026-11-24 00:00:00"),
        ("0 0 0 24 * mon", "2026-11-23 00:00:00"),
        ("0 0 0 31 2 mon", "2027-02-01 00:00:00"),
        ("0 0 0 */30 * fri", "2026-11-27 00:00:00"),
        ("0 0 0 */1 * fri", "2026-11-27 00:00:00"),
        ("0 0 0 *,24 * fri", "2026-11-27 00:00:00"),
        ("0 0 0 24 * */2", "2026-11-24 00:00:00"),
        ("0 0 0 30 2 *", None),
        ("0 0 0 31 4,6 *", None),
    ],
)
def test_next_time(text: str, expected: str | None) -> None:
    time = parse_cron(text).after(SUNDAY)
    assert time == (expected and datetime.fromisoformat(f"{expected}+00:00"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has 0 fields, and six are needed"),
        ("0 6 * * *", "has 5 fields, and six are needed: second, minute"),
        ("@hourly", "has 1 fields"),
        ("60 * * * * *", "field 1, the second, '60' is no number from 0 to 59"),
        ("* * * 0 * *", "field 4, the day of the month, '0' is no number from 1 to 31"),
        ("* * * * 13 *", "the month, '13' is no number from 1 to 12, or a name like 'jan'"),
        ("* * * * january *", "'january' is no number from 1 to 12, or a name like 'jan'"),
        ("* * * * * 7", "the day of the week, '7' is no number from 0 to 6, or a name like 'sun'"),
        ("* mon * * * *", "the minute, 'mon' is no number from 0 to 59"),
        ("9-5 * * * * *", "'9-5' runs backwards"),
        ("* * * * * fri-mon", "'fri-mon' runs backwards"),
        ("*/0 * * * * *", r"'\*/0' steps by 0"),
        ("1, * * * * *", "'' is none of"),
        ("+1 * * * * *", r"'\+1' is none of"),
        ("*-5 * * * * *", r"'\*-5' is none of"),
        ("1-2-3 * * * * *", "'1-2-3' is none of"),
        ("* * * L * *", "'L' is no number"),
        ("* * * * * 1#2", "'1#2' is none of"),
        ("٣ * * * * *", "is none of"),
    ],
)
def test_what_is_no_expression(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_cron(text)


FIELDS = st.tuples(
    st.sampled_from(["*", "0", "*/7", "50-59", "5/20"]),
    st.sampled_from(["*", "0", "*/13", "1,2,58-59"]),
    st.sampled_from(["*", "0", "23", "*/5", "8-10"]),
    st.sampled_from(["*", "?", "1", "31", "*/9", "28-30"]),
    st.sampled_from(["*", "1", "12", "nov-dec", "*/5"]),
    st.sampled_from(["*", "?", "0", "mon", "2-4", "*/3"]),
)


def allows(cron: Cron, time: datetime) -> bool:
    return cron.after(time - timedelta(seconds=1)) == time


@settings(max_examples=200, deadline=None)
@given(FIELDS, st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)))
def test_next_time_is_the_first(fields: tuple[str, ...], start: datetime) -> None:
    """No time between is one, as far as single seconds are looked at."""
    cron = parse_cron(" ".join(fields))
    start = start.replace(tzinfo=UTC)
    found = cron.after(start)
    assert found is not None
    assert found > start
    assert found.microsecond == 0
    assert allows(cron, found)
    last = min(found, start + timedelta(minutes=3))
    time = start.replace(microsecond=0) + timedelta(seconds=1)
    while time < last:
        assert not allows(cron, time)
        time += timedelta(seconds=1)
